from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.problems import Case, make_case

from widefield.ops.backends import Pass
from widefield.ops.depthwise_conv.clip import clip
from widefield.ops.depthwise_conv.problem import Problem
from widefield.ops.depthwise_conv.triton import roll

SETTINGS = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], max_examples=25)
HOPPER = (9, 0)
IS_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9


def same(batch: int, channels: int, height: int, width: int, kernel: tuple[int, int]) -> Problem:
    problem = Problem(
        batch=batch,
        channels=channels,
        height=height,
        width=width,
        kernel_size=kernel,
        padding=(kernel[0] // 2, kernel[1] // 2),
    )
    return clip(problem)[0]


@st.composite
def problems(draw: st.DrawFn) -> Case:
    height, width = draw(st.integers(1, 64)), draw(st.integers(1, 64))
    kernel = (2 * draw(st.integers(0, height)) + 1, 2 * draw(st.integers(0, width)) + 1)
    return make_case(same(draw(st.integers(1, 3)), draw(st.integers(1, 2)), height, width, kernel))


def emulate(case: Case, pass_: Pass) -> np.ndarray:
    """What the kernel computes, statement by statement, but for layouts and asynchrony."""
    problem, form = case.problem, roll.geometry(case.problem)
    (kernel_h, kernel_w), height, width = problem.kernel_size, problem.height, problem.width
    pad_h, pad_w, tap_row = kernel_h // 2, kernel_w // 2, 2 * form.length
    taps = roll.expand(case.weight, problem, pass_).numpy().reshape(-1)
    image = (case.grad if pass_ == "grad_input" else case.x).numpy()
    y = np.full(image.shape, np.nan)
    out, inner = np.arange(64), np.arange(form.columns)
    j = out % form.columns
    copy = (j + pad_w + form.offset) % 2
    tap = (inner[None] + pad_w + form.offset) + (copy * (form.length + 1) - j - (out // form.columns) * (4 * tap_row))[
        :, None
    ]
    pairs = tap.reshape(64, -1, 2)
    assert (pairs[..., 0] % 2 == 0).all()
    assert (pairs[..., 1] == pairs[..., 0] + 1).all()
    for c in range(problem.channels):
        base = (c * (kernel_h + 2 * form.rows) + form.rows) * tap_row

        def tile(k: int, channel: int = c, start: int = base) -> np.ndarray:
            index = start + k * tap_row + tap
            rows = (kernel_h + 2 * form.rows) * tap_row
            assert channel * rows <= index.min()
            assert index.max() < (channel + 1) * rows
            return taps[index]

        for i0 in range(0, height, form.rows):
            first, last = max(i0 - pad_h, 0), min(i0 + form.rows + pad_h, height)
            k = first - i0 + pad_h
            tiles = [tile(k - a) for a in range(4)]
            sums = [np.zeros((64, problem.batch)) for _ in range(4)]
            for r in range(first, last):
                row = np.zeros((form.columns, problem.batch))
                row[:width] = image[:, c, r].T
                for a in range(4):
                    sums[a] += tiles[a] @ row
                tiles = [tile(r + 1 - i0 + pad_h), *tiles[:3]]
            for a in range(4):
                i = i0 + 4 * (out // form.columns) + a
                is_out = (j < width) & (i < height)
                y[:, c, i[is_out], j[is_out]] = sums[a][is_out].T
    return y


@SETTINGS
@given(case=problems(), pass_=st.sampled_from(("forward", "grad_input")))
def test_the_rolling_tiles_compute_the_map(case: Case, pass_: Pass) -> None:
    case = replace(case, bias=None)
    error = np.abs(emulate(case, pass_) - case.oracle(pass_).numpy()).max()
    assert error <= 1e-5 * case.magnitude(pass_)


@pytest.mark.parametrize(("side", "kernel"), [(56, 31), (28, 29), (14, 27), (7, 13), (56, 101)])
def test_the_layers_it_was_made_for_are_computed(side: int, kernel: int) -> None:
    case = replace(make_case(same(2, 1, side, side, (kernel, kernel))), bias=None)
    for pass_ in ("forward", "grad_input"):
        error = np.abs(emulate(case, pass_) - case.oracle(pass_).numpy()).max()
        assert error <= 1e-5 * case.magnitude(pass_)


@pytest.mark.parametrize(
    ("change", "pass_", "capability", "reason"),
    [
        ({}, "grad_weight", HOPPER, "the roll kernel has no weight gradient"),
        ({}, "forward", (8, 0), "the roll kernel needs a Hopper GPU, not capability 8.0"),
        ({}, "forward", (10, 0), "the roll kernel needs a Hopper GPU, not capability 10.0"),
        ({"dtype": torch.float32}, "forward", HOPPER, "16-bit types only, not torch.float32"),
        ({"stride": (2, 1)}, "forward", HOPPER, "needs stride 1 and dilation 1"),
        ({"padding": (0, 1)}, "grad_input", HOPPER, 'needs an odd kernel and "same" padding'),
        ({"height": 65}, "forward", HOPPER, "needs a map of at most 64x64"),
        ({"channels": 2**20}, "forward", HOPPER, "counts 64 images in 31 bits"),
    ],
)
def test_what_it_cannot_do_is_said(
    change: dict[str, object], pass_: Pass, capability: tuple[int, int], reason: str
) -> None:
    problem = replace(same(1, 1, 8, 8, (3, 3)), **{"dtype": torch.bfloat16, **change})  # type: ignore[arg-type]
    assert any(reason in text for text in roll.refusals(problem, pass_, capability))


def test_the_interpreter_is_refused_and_nothing_else() -> None:
    problem = replace(same(1, 1, 8, 8, (3, 3)), dtype=torch.bfloat16)
    expected = [] if torch.cuda.is_available() else ["Triton's interpreter does not know Gluon"]
    assert roll.refusals(problem, "forward", HOPPER) == expected


def test_small_batches_take_narrow_tiles() -> None:
    problem = same(64, 1, 56, 56, (31, 31))
    assert [roll.default(replace(problem, batch=n)).block_n for n in (1, 16, 17, 32, 33)] == [16, 16, 32, 32, 64]
    assert [config.block_n for config in roll.candidates(problem)] == [16, 32, 64]
    assert roll.default(replace(problem, width=44)).block_n == 32


def test_a_launch_passes_shapes_tiles_and_expanded_weights_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """`verify` with a kernel that is replaced by PyTorch: right answers pass, wrong and missing ones do not."""
    from widefield.ops.depthwise_conv.triton import roll_kernel

    problem = replace(same(3, 2, 9, 12, (5, 7)), dtype=torch.bfloat16)
    form, grids, wrong = roll.geometry(problem), [], 0.0

    class Kernel:
        def __getitem__(self, grid: tuple[int]) -> Kernel:
            grids.append(grid)
            return self

        def __call__(self, x, expanded, bias, y, batch, channels, image_tiles, **constants) -> None:
            assert (batch, channels, image_tiles, constants["HAS_BIAS"]) == (3, 2, 1, False)
            taps = expanded[:, form.rows : form.rows + 5, 0, form.offset : form.offset + 7]
            out = torch.nn.functional.conv2d(x.float(), taps[:, None].float(), padding=(2, 3), groups=2)
            y.copy_(out + wrong)

    monkeypatch.setattr(roll_kernel, "roll", Kernel())
    assert roll.verify(problem) < 4e-3
    assert grids == [(2,), (2,)]
    wrong = 1.0
    assert roll.verify(problem) > 1e-2
    wrong = float("nan")
    assert roll.verify(problem) == float("inf")


def test_a_map_whose_rows_are_no_multiple_of_16_bytes_is_computed_on_hopper_or_emulated() -> None:
    problem = same(70, 3, 30, 44, (13, 31))
    if IS_HOPPER:
        assert roll.verify(replace(problem, dtype=torch.float16, device_type="cuda")) < 1e-3
        return
    case = replace(make_case(replace(problem, batch=3)), bias=None)
    for pass_ in ("forward", "grad_input"):
        error = np.abs(emulate(case, pass_) - case.oracle(pass_).numpy()).max()
        assert error <= 1e-5 * case.magnitude(pass_)
