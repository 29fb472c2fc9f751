from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.problems import make_case
from torch import Tensor

from widefield.ops.depthwise_conv.problem import Problem
from widefield.ops.depthwise_conv.reference import ReferenceBackend
from widefield.ops.depthwise_conv.triton import launch
from widefield.ops.depthwise_conv.triton.backend import convolve
from widefield.ops.depthwise_conv.triton.geometry import as_forward, band
from widefield.ops.depthwise_conv.triton.tiles import TileConfig

SMALL = TileConfig(kernel="rows", block_m=16, block_n=16, block_k=16)
KERNELS = (
    SMALL,
    replace(SMALL, rows=4),
    replace(SMALL, is_padded=True),
    replace(SMALL, kernel="columns"),
    replace(SMALL, kernel="planes", block_n=32, block_k=32),
    replace(SMALL, kernel="channels_last", channels=4),
)


def problem_of(
    size: tuple[int, int], kernel: tuple[int, int], *, batch: int = 2, channels: int = 3, **rest: object
) -> Problem:
    return Problem(
        batch=batch,
        channels=channels,
        height=size[0],
        width=size[1],
        kernel_size=kernel,
        padding=(kernel[0] // 2, kernel[1] // 2),
        **rest,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("config", KERNELS, ids=lambda c: f"{c.kernel}-{c.rows}-{c.is_padded}")
@pytest.mark.parametrize("place", [(0, 8), (4, 1)])
def test_a_kernel_of_one_tap_moves_the_image_exactly(config: TileConfig, place: tuple[int, int], device: str) -> None:
    # 16 bits are exact in products with 1 and 0; float32 in three parts of tf32 is not to the last bit.
    problem = problem_of((6, 18), (5, 9), channels=2, dtype=torch.float16)
    case = make_case(problem, with_bias=False)
    weight = torch.zeros(2, 1, 5, 9, dtype=torch.float16)
    weight[:, 0, place[0], place[1]] = 1
    actual = convolve(case.x.to(device), weight.to(device), None, problem, "forward", config)
    assert torch.equal(actual.cpu(), ReferenceBackend().forward(case.x, weight, None, problem))
    back = convolve(case.grad.to(device), weight.to(device), None, problem, "grad_input", config)
    assert torch.equal(back.cpu(), ReferenceBackend().grad_input(case.grad, weight, problem))


@pytest.mark.parametrize("config", KERNELS, ids=lambda c: f"{c.kernel}-{c.rows}-{c.is_padded}")
def test_numbers_that_are_not_finite_stay_in_their_image_and_channel(config: TileConfig, device: str) -> None:
    problem = problem_of((7, 18), (3, 5), channels=2)
    case = make_case(problem, with_bias=False)
    x = case.x.clone()
    x[1, 0] = torch.nan
    clean = convolve(case.x.to(device), case.weight.to(device), None, problem, "forward", config).cpu()
    actual = convolve(x.to(device), case.weight.to(device), None, problem, "forward", config).cpu()
    assert actual[1, 0].isnan().all()
    others = [(n, c) for n in range(2) for c in range(2) if (n, c) != (1, 0)]
    assert all(torch.equal(actual[n, c], clean[n, c]) for n, c in others)


@pytest.mark.parametrize("config", KERNELS, ids=lambda c: f"{c.kernel}-{c.rows}-{c.is_padded}")
def test_wide_indices_give_the_same_bits(config: TileConfig, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of((7, 18), (3, 5), channels=2)
    case = make_case(problem)
    assert case.bias is not None
    operands = (case.x.to(device), case.weight.to(device), case.bias.to(device))
    narrow = convolve(*operands, problem, "forward", config)
    assert not launch.needs_int64(case.x)
    monkeypatch.setattr(launch, "INT32_ELEMENTS", 0)
    assert launch.needs_int64(case.x)
    assert torch.equal(convolve(*operands, problem, "forward", config), narrow)


def strided(x: Tensor) -> Tensor:
    """The same values between others, two elements apart."""
    wide = torch.full((*x.shape[:3], 2 * x.shape[3]), torch.nan, dtype=x.dtype, device=x.device)
    wide[..., ::2] = x
    return wide[..., ::2]


def shifted(x: Tensor) -> Tensor:
    """The same values, contiguous, but one element beyond a boundary of 16 bytes."""
    buffer = x.new_full((x.numel() + 1,), torch.nan)
    buffer[1:] = x.flatten()
    return buffer[1:].view(x.shape)


@pytest.mark.parametrize("move", [strided, shifted, lambda x: x.contiguous(memory_format=torch.channels_last)])
@pytest.mark.parametrize("config", KERNELS, ids=lambda c: f"{c.kernel}-{c.rows}-{c.is_padded}")
def test_how_the_tensors_lie_changes_nothing(move, config: TileConfig, device: str) -> None:
    problem = problem_of((5, 16), (3, 5), channels=2)
    case = make_case(problem, with_bias=False)
    x, weight = case.x.to(device), case.weight.to(device)
    expected = convolve(x, weight, None, problem, "forward", config)
    larger = torch.full((2, 1, 5, 9), torch.nan, device=device)
    larger[:, :, 1:4, 2:7] = weight
    assert torch.equal(convolve(move(x), larger[:, :, 1:4, 2:7], None, problem, "forward", config), expected)


def test_a_load_is_never_wider_than_rows_and_addresses_allow() -> None:
    x = torch.zeros(64, dtype=torch.float16)
    assert x.data_ptr() % 16 == 0
    assert [launch.vector(x, row, 8) for row in (56, 28, 14, 7)] == [8, 4, 2, 1]
    assert [launch.vector(x[start:], 56, 8) for start in (1, 2, 4, 8)] == [1, 2, 4, 8]
    assert launch.vector(x, 56, 4) == 4
    assert launch.vector(x.float(), 56, 8) == 4


@pytest.mark.parametrize("width", [16, 40, 100])
@pytest.mark.parametrize(("kernel", "padding"), [(7, 3), (31, 15), (5, 0), (4, 9), (51, 25)])
def test_the_tiles_of_a_band_cover_every_tap_with_aligned_rows(width: int, kernel: int, padding: int) -> None:
    problem = Problem(batch=1, channels=1, height=1, width=width, kernel_size=(1, kernel), padding=(0, padding))
    outputs = problem.output_size[1]
    if outputs < 1:
        return
    for block_n, block_k in ((16, 16), (32, 64), (64, 32)):
        shape = band(problem, 1, block_n, block_k)
        assert shape.base % 8 == shape.distance % 8 == shape.length % 8 == 0
        for first in range(0, outputs, block_n):
            start = (
                (0 if shape.is_anchored else first + shape.distance) if first or shape.is_anchored else shape.distance
            )
            needed = [
                j + tap - padding
                for j in range(first, min(first + block_n, outputs))
                for tap in range(kernel)
                if 0 <= j + tap - padding < width
            ]
            assert all(start <= column < start + shape.chunks * block_k for column in needed)
            ends = [shape.base - (start - first) - k for k in (0, shape.chunks * block_k - 1)]
            assert min(ends) >= 0
            assert max(ends) + 7 + block_n <= shape.length + 7


def test_the_gradient_of_the_input_is_a_convolution_with_the_complementary_padding() -> None:
    problem = Problem(batch=1, channels=1, height=9, width=11, kernel_size=(3, 5), padding=(4, 1), dilation=(2, 1))
    form = as_forward(problem, "grad_input")
    assert (form.height, form.width) == problem.output_size
    assert form.output_size == (9, 11)
    assert form.padding == (0, 3)
    assert as_forward(problem, "forward") is problem
