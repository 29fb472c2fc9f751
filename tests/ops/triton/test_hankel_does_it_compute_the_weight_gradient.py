from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.problems import Case, make_case

from widefield.ops.depthwise_conv.clip import clip
from widefield.ops.depthwise_conv.problem import Problem
from widefield.ops.depthwise_conv.triton import hankel
from widefield.ops.depthwise_conv.triton.tiles import TileConfig

SETTINGS = {
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def _poisoned() -> Generator[None]:
    """Let torch fill what it allocates with NaN, so that a share that is not written shows in the sum."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def problem_of(
    batch: int, channels: int, size: tuple[int, int], kernel: tuple[int, int], dtype: torch.dtype = torch.float32
) -> Problem:
    return clip(
        Problem(
            batch=batch,
            channels=channels,
            height=size[0],
            width=size[1],
            kernel_size=kernel,
            padding=(kernel[0] // 2, kernel[1] // 2),
            dtype=dtype,
            device_type=DEVICE,
        )
    )[0]


def run(case: Case, config: TileConfig | None = None) -> torch.Tensor:
    return hankel.grad_weight(case.grad.to(DEVICE), case.x.to(DEVICE), case.problem, config)


def compare(case: Case, config: TileConfig | None = None) -> None:
    """All sums are float32, whatever the type of the pixels."""
    actual = run(case, config)
    assert actual.dtype == torch.float32
    assert actual.shape == case.weight.shape
    expected = case.oracle("grad_weight")
    error = (actual.double().cpu() - expected).abs().max().item()
    assert error <= 4e-6 * case.magnitude("grad_weight")


@st.composite
def problems(draw: st.DrawFn) -> tuple[Case, TileConfig]:
    height, width = draw(st.integers(1, 17)), draw(st.integers(1, 21))
    kernel = (draw(st.integers(1, 2 * height + 1)), draw(st.integers(1, 2 * width + 1)))
    least = tuple(max(0, -(-(k - n) // 2)) for k, n in zip(kernel, (height, width), strict=True))
    problem, _ = clip(
        Problem(
            batch=draw(st.integers(1, 5)),
            channels=draw(st.integers(1, 3)),
            height=height,
            width=width,
            kernel_size=kernel,
            padding=(least[0] + draw(st.integers(0, 6)), least[1] + draw(st.integers(0, 6))),
            dtype=draw(st.sampled_from(DTYPES)),
            layout=draw(st.sampled_from(("contiguous", "channels_last"))),
        )
    )
    config = replace(
        hankel.default(problem),
        block_k=draw(st.sampled_from((16, 64, 128, 256))),
        vector=draw(st.sampled_from((1, 2, 4))),
        splits=draw(st.integers(1, 4)),
        is_padded=draw(st.booleans()),
    )
    return make_case(problem, seed=draw(st.integers(0, 99))), config


@settings(max_examples=60, **SETTINGS)
@given(drawn=problems())
def test_any_problem_in_any_tiles_equals_the_definition(drawn: tuple[Case, TileConfig]) -> None:
    compare(*drawn)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@settings(max_examples=500, **SETTINGS)
@given(drawn=problems())
def test_many_problems_in_any_tiles_equal_the_definition(drawn: tuple[Case, TileConfig]) -> None:
    compare(*drawn)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("batch", "channels", "size", "kernel"),
    [
        (1, 1, (12, 20), (51, 5)),
        (2, 1, (20, 12), (5, 51)),
        (3, 5, (7, 7), (13, 13)),
        (2, 3, (1, 9), (1, 3)),
    ],
)
def test_the_default_tiles_compute_stripes_planes_and_kernels_beyond_one_tile(
    batch: int, channels: int, size: tuple[int, int], kernel: tuple[int, int], dtype: torch.dtype
) -> None:
    compare(make_case(problem_of(batch, channels, size, kernel, dtype)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_kernel_larger_than_a_tile_is_cut(dtype: torch.dtype) -> None:
    problem = problem_of(1, 1, (34, 36), (67, 71), dtype)
    config = replace(hankel.default(problem), block_k=256, splits=1)
    assert (config.block_m, config.block_n) == (64, 64)
    compare(make_case(problem), config)


@pytest.mark.parametrize("vector", [1, 2])
def test_two_runs_give_the_same_bits(vector: int) -> None:
    problem = problem_of(4, 2, (9, 14), (7, 7), torch.float16)
    case, config = make_case(problem), replace(hankel.default(problem), vector=vector, splits=5)
    assert torch.equal(run(case, config), run(case, config))


def test_strided_tensors_are_read_as_what_they_show() -> None:
    case = make_case(problem_of(2, 2, (8, 10), (5, 5)))
    x = torch.empty(2, 2, 8, 20)[..., ::2].copy_(case.x)
    grad = case.grad.expand(2, *case.grad.shape)[1].transpose(-1, -2).contiguous().transpose(-1, -2)
    strided = hankel.grad_weight(grad.to(DEVICE), x.to(DEVICE), case.problem)
    assert torch.equal(strided, run(case))


@pytest.mark.parametrize("vector", [1, 2])
def test_a_pixel_that_is_not_finite_shows_in_its_channel_alone(vector: int) -> None:
    problem = problem_of(1, 2, (9, 12), (3, 5), torch.float16)
    case = make_case(problem)
    case.x[0, 0, 4, 4] = torch.inf
    with np.errstate(invalid="ignore"):
        actual = run(case, replace(hankel.default(problem), vector=vector)).cpu()
    assert not actual[0].isfinite().any()
    assert actual[1].isfinite().all()


def test_an_element_beyond_31_bits_is_found() -> None:
    from widefield.ops.depthwise_conv.triton import hankel_kernel

    # One image lies beyond 2^31 elements; of it and of the first one channel is touched, so little memory is used.
    torch.use_deterministic_algorithms(False)
    channels = 2**31 // 16 + 1
    x, grad = (torch.empty((channels + 1) * 16, dtype=torch.float16, device=DEVICE) for _ in range(2))
    for part in (slice(0, 16), slice(channels * 16, None)):
        x[part], grad[part] = torch.arange(1, 17), 1
    partial = torch.zeros(1, device=DEVICE)
    problem = Problem(batch=2, channels=1, height=1, width=16, kernel_size=(1, 1), dtype=torch.float16)
    arguments = hankel.constants(problem, replace(hankel.default(problem), block_k=16))
    hankel_kernel.hankel[(1, 1)](x, grad, partial, 2, channels, 1, 2, **arguments, num_warps=1)
    assert partial.item() == 2 * 136


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"stride": (1, 2)}, "its weight gradient needs stride 1"),
        ({"dilation": (2, 1)}, "its weight gradient needs dilation 1"),
        ({"dtype": torch.float64}, "its weight gradient has no kernel for torch.float64"),
    ],
)
def test_what_it_cannot_do_is_said(change: dict[str, object], reason: str) -> None:
    problem = problem_of(1, 1, (8, 8), (3, 3))
    assert hankel.refusals(problem) == []
    assert hankel.refusals(replace(problem, **change)) == [reason]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("height", "width", "pixels", "expected"),
    [
        (56, 56, 64, (1, 1, 64)),
        (28, 28, 64, (1, 2, 32)),
        (96, 96, 64, (1, 2, 32)),
        (14, 14, 64, (1, 4, 16)),
        (7, 7, 64, (1, 8, 8)),
        (7, 7, 128, (2, 8, 8)),
        (1, 5, 64, (8, 1, 8)),
        (200, 8, 16, (1, 2, 8)),
    ],
)
def test_pixels_are_cut_into_powers_of_two_that_overhang_little(
    height: int, width: int, pixels: int, expected: tuple[int, int, int]
) -> None:
    assert hankel.pixel_block(height, width, pixels) == expected


def test_every_candidate_is_listed_once_and_the_default_first() -> None:
    problem = problem_of(64, 128, (56, 56), (31, 31), torch.bfloat16)
    found = hankel.candidates(problem)
    assert found[0] == hankel.default(problem)
    assert len(found) == len(set(found))
    assert {config.vector for config in found} == {1, 2, 4}
    assert {config.vector for config in hankel.candidates(replace(problem, dtype=torch.float32))} == {1}
