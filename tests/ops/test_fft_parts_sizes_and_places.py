from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from support.problems import MAPS, make_case

from widefield.ops import depthwise_conv1d, use_backend
from widefield.ops.backends import find
from widefield.ops.depthwise_conv.fft import LibraryTransform, MatrixTransform, maps
from widefield.ops.depthwise_conv.fft.library import fast_size
from widefield.ops.depthwise_conv.fft.placement import Placement, geometry
from widefield.ops.depthwise_conv.order import BACKENDS
from widefield.ops.depthwise_conv.problem import Problem

KINDS = pytest.mark.parametrize("name", ["fft", "dft"])


def problem(batch: int, channels: int, *, layout: str = "contiguous", dtype: torch.dtype = torch.float64) -> Problem:
    return Problem(
        batch=batch,
        channels=channels,
        height=10,
        width=12,
        kernel_size=(5, 9),
        padding=(2, 4),
        dtype=dtype,
        layout="channels_last" if layout == "channels_last" else "contiguous",
    )


@KINDS
@pytest.mark.parametrize("map_", MAPS)
@pytest.mark.parametrize(("batch", "channels"), [(1, 7), (3, 7), (5, 2), (2, 1), (7, 3)])
@pytest.mark.parametrize("planes", [1, 2, 3, 4, 100])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_however_the_planes_are_parted_the_result_is_the_same(
    name: str, map_: str, batch: int, channels: int, planes: int, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case(problem(batch, channels, layout=layout))
    real = maps._split
    monkeypatch.setattr(maps, "_split", lambda images, all_channels, count: real(images, all_channels, planes))
    torch.testing.assert_close(case.run(map_, name), case.oracle(map_), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("images", "channels", "planes"), [(3, 7, 3), (4, 2, 5), (1, 1, 9), (6, 64, 64), (2, 65, 64)])
def test_parts_cover_every_plane_once_and_a_channels_images_in_turn(images: int, channels: int, planes: int) -> None:
    seen = [
        (c, n)
        for some, those in maps._split(images, channels, planes)
        for c in range(those.start, those.stop)
        for n in range(some.start, some.stop)
    ]
    assert sorted(seen) == [(c, n) for c in range(channels) for n in range(images)]
    for some, those in maps._split(images, channels, planes):
        assert (some.stop - some.start) * (those.stop - those.start) <= max(planes, 1)


@pytest.mark.parametrize("least", [1, 2, 3, 7, 13, 71, 106, 127, 1001, 16015])
def test_a_fast_size_is_large_enough_even_and_made_of_small_primes(least: int) -> None:
    size = rest = fast_size(least)
    assert least <= size <= max(2 * least, 2)
    assert size == 1 or size % 2 == 0
    for prime in (2, 3, 5, 7):
        while rest % prime == 0:
            rest //= prime
    assert rest == 1


def test_samples_before_the_origin_wrap_around_the_circle() -> None:
    for placement in (
        Placement(0, 1, 4),
        Placement(-3, 1, 7),
        Placement(-3, 2, 4),
        Placement(-4, 2, 5),
        Placement(-5, 1, 2),
    ):
        where = [0] * placement.count
        circle = list(range(12))
        for samples, places in placement.pieces(12):
            where[samples] = circle[places]
        assert where == [(placement.start + placement.step * i) % 12 for i in range(placement.count)]


def test_a_circle_is_no_larger_than_image_and_padding_together() -> None:
    same = Problem(batch=1, channels=1, height=56, width=28, kernel_size=(31, 29), padding=(15, 14))
    assert geometry(same).least == (71, 42)
    valid = Problem(batch=1, channels=1, height=56, width=28, kernel_size=(31, 27))
    assert geometry(valid).least == (56, 28)


@pytest.mark.parametrize("kind", [LibraryTransform, MatrixTransform])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_transform_is_undone_by_its_inverse(
    kind: type[LibraryTransform | MatrixTransform], dtype: torch.dtype
) -> None:
    transform, places = kind((14, 9), dtype), (Placement(-2, 1, 11), Placement(1, 2, 4))
    x = torch.randn(3, 2, 11, 4, dtype=dtype)
    spectrum = transform.analyse(x, places)
    assert spectrum.shape == (3, 2, *transform.shape)
    torch.testing.assert_close(transform.synthesise(spectrum, places), x)


def test_products_of_matrices_are_not_rounded_to_bfloat16_behind_the_users_back() -> None:
    before = torch.get_float32_matmul_precision()
    dft, fft = find(BACKENDS, "dft"), find(BACKENDS, "fft")
    try:
        torch.set_float32_matmul_precision("medium")
        assert dft.refusals(problem(1, 1), "forward") == [
            'torch.set_float32_matmul_precision("medium") would round its products to bfloat16'
        ]
        assert fft.refusals(problem(1, 1), "forward") == []
    finally:
        torch.set_float32_matmul_precision(before)
    assert dft.refusals(problem(1, 1), "forward") == []


@pytest.mark.parametrize("name", ["", "fft", "dft"])
@pytest.mark.parametrize(("length", "kernel_size"), [(300, 2001), (2000, 501), (257, 7)])
def test_kernels_of_thousands_of_taps_work_in_one_dimension(name: str, length: int, kernel_size: int) -> None:
    x = torch.randn(2, 3, length, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 1, kernel_size, dtype=torch.float64, requires_grad=True)
    with use_backend(name) if name else nullcontext():
        y = depthwise_conv1d(x, weight)
    expected = torch.nn.functional.conv1d(x, weight, padding=kernel_size // 2, groups=3)
    torch.testing.assert_close(y, expected)
    mine, theirs = (torch.autograd.grad(out.sin().sum(), (x, weight)) for out in (y, expected))
    for actual, wanted in zip(mine, theirs, strict=True):
        torch.testing.assert_close(actual, wanted)
