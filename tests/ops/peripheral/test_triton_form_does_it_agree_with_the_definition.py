from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from widefield._core.errors import InputError
from widefield.ops.peripheral_conv import PeripheralProblem, registration
from widefield.ops.peripheral_conv.form import MAPS, Map
from widefield.ops.peripheral_conv.order import FORMS
from widefield.ops.peripheral_kernel import SharingGrid

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ASYMMETRIC = SharingGrid((3, 1, 2, 5, 4))

# Relative error of the whole output. In the interpreter bfloat16 is cut off, not rounded, which doubles it.
BOUNDS = {torch.float32: 1e-6, torch.float16: 6e-4, torch.bfloat16: 8e-3}


def draw(*size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(
    map_: Map,
    size: tuple[int, int, int, int],
    rows: SharingGrid,
    columns: SharingGrid,
    dtype: torch.dtype,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return what the kernels give and what the definition gives in float64."""
    x, grad = (scale * draw(*size, seed=1)).to(dtype), draw(*size, seed=2).to(dtype)
    cells, bias = (
        draw(size[1], 1, rows.parameters, columns.parameters, seed=3).to(dtype),
        draw(size[1], seed=4).to(dtype),
    )
    results: list[Tensor] = []
    for form, backend, kind in (("triton", "", dtype), ("expanded", "reference", torch.float64)):
        x_, grad_, cells_, bias_ = (value.to(DEVICE, kind) for value in (x, grad, cells, bias))
        settings = (rows.sizes, columns.sizes, form, backend)
        if map_ == "forward":
            results.append(registration.forward(x_, cells_, bias_, *settings))
        elif map_ == "grad_input":
            results.append(registration.grad_input(grad_, cells_, *settings))
        else:
            results.append(registration.grad_cells(grad_, x_, *settings))
    return results[0].double(), results[1]


SHAPES = {
    "even": ((2, 3, 16, 16), SharingGrid.exponential(31), SharingGrid.exponential(31)),
    "odd": ((3, 1, 11, 13), ASYMMETRIC, SharingGrid((2, 7, 1, 1, 2))),
    "wide": ((1, 2, 5, 70), SharingGrid.exponential(9), SharingGrid.exponential(101, 3)),
    "tall": ((1, 1, 35, 5), SharingGrid.exponential(51), SharingGrid((3,))),
    "beyond": ((2, 1, 4, 6), SharingGrid.exponential(31), SharingGrid((15, 1, 5, 2))),
    "no singles": ((2, 2, 9, 18), SharingGrid((2, 3, 2)), SharingGrid((5,))),
    "only singles": ((1, 2, 9, 18), SharingGrid.dense(5), SharingGrid.dense(3)),
}


@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize("map_", MAPS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernels_compute_the_convolution(shape: str, map_: Map, dtype: torch.dtype) -> None:
    out, exact = run(map_, *SHAPES[shape], dtype, scale=1.0)
    assert (out - exact).norm() <= BOUNDS[dtype] * exact.norm()


def test_a_sum_of_many_rows_does_not_overflow_half_precision() -> None:
    # 31 rows of about 3000 exceed the range of float16; their mean does not.
    grid = SharingGrid((31,))
    x = torch.full((1, 1, 31, 16), 3000.0, dtype=torch.float16, device=DEVICE)
    cells = torch.full((1, 1, 1, 1), 2.0**-10, dtype=torch.float16, device=DEVICE)
    y = registration.forward(x, cells, None, grid.sizes, (1,), "triton", "")
    expected = registration.forward(x.double(), cells.double(), None, grid.sizes, (1,), "expanded", "reference")
    assert ((y.double() - expected).abs() <= 1e-3 * expected).all()


@pytest.mark.parametrize("map_", MAPS)
def test_nothing_is_left_of_what_memory_held_and_runs_are_equal(map_: Map, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = run(map_, *SHAPES["odd"], torch.float32, scale=1.0)
    empty, empty_like = torch.empty, torch.empty_like
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: empty_like(*a, **k).fill_(float("nan")))
    second, _ = run(map_, *SHAPES["odd"], torch.float32, scale=1.0)
    assert torch.equal(first, second)


def test_every_tile_gives_the_same_within_rounding() -> None:
    from widefield.ops.peripheral_conv.triton.box_rows import BoxTiles, convolve

    rows, columns = ASYMMETRIC, SharingGrid.exponential(13)
    problem = PeripheralProblem(batch=2, channels=2, height=12, width=20, rows=rows, columns=columns)
    x, cells = draw(2, 2, 12, 20, seed=1).float().to(DEVICE), draw(2, 1, 5, 9, seed=2).float().to(DEVICE)
    wide = replace(problem, dtype=torch.float64)
    exact = FORMS[0].forward(x.double(), cells.double(), None, wide)
    for block_m, block_n, block_k in ((16, 16, 16), (32, 16, 32), (128, 64, 64)):
        out = convolve(x, cells, None, problem, BoxTiles(block_m=block_m, block_n=block_n, block_k=block_k))
        assert (out.double() - exact).norm() <= 1e-6 * exact.norm()


def test_reasons_against_it_are_listed() -> None:
    grid = SharingGrid.exponential(31)
    problem = PeripheralProblem(
        batch=1, channels=1, height=9, width=9, rows=grid, columns=grid, dtype=torch.float64, device_type="mps"
    )
    reasons = next(form for form in FORMS if form.name == "triton").refusals(problem, "forward")
    assert reasons == [
        "it computes in float32 or less, not torch.float64",
        "it is for CUDA tensors, not mps",
    ]
    x = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    with pytest.raises(InputError, match=r"it computes in float32 or less, not torch\.float64"):
        registration.forward(x, torch.zeros(1, 1, 11, 11).double(), None, grid.sizes, grid.sizes, "triton", "")


_COMPILE = """
import json, sys
from dataclasses import asdict
from widefield.ops.depthwise_conv.triton.resources import resources
from widefield.ops.peripheral_conv.triton.cases import compile_cases
chosen = [case for case in compile_cases() if " k101x101 " in case.name and "56x56" in case.name]
json.dump({case.name: asdict(resources(case, 90)) for case in chosen}, sys.stdout)
"""


def test_compiled_for_a_gpu_nothing_spills_and_tensor_cores_work(tmp_path: Path) -> None:
    # The interpreter's kernels cannot be compiled: this takes a process without it.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", _COMPILE], env=environment, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 4
    for resources in found.values():
        assert resources["spills"] == 0
        assert resources["stack"] == 0
        assert resources["tensor_core"] > 0
        assert resources["shared_bytes"] <= 227 * 1024
