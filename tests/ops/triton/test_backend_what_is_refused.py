from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from widefield._core.errors import InputError
from widefield.ops.depthwise_conv.problem import Problem
from widefield.ops.depthwise_conv.triton import TritonBackend, backend, launch
from widefield.ops.depthwise_conv.triton.tiles import use_fp32_mode

PROBLEM = Problem(batch=1, channels=1, height=9, width=9, kernel_size=(3, 3), padding=(1, 1), device_type="cuda")


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with an H200, as far as refusals can tell."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_nothing_stands_in_the_way_of_any_map_on_hopper(dtype: torch.dtype) -> None:
    problem = replace(PROBLEM, dtype=dtype)
    for pass_ in ("forward", "grad_input", "grad_weight"):
        assert TritonBackend().refusals(problem, pass_) == []


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": torch.float64}, "it has no kernels for float64"),
        ({"stride": (2, 1)}, "it needs stride 1"),
        ({"kernel_size": (3, 601), "dilation": (1, 2), "padding": (1, 600)}, "the kernel spans more than 1024 pixels"),
        ({"device_type": "mps"}, "it is for CUDA tensors, not mps"),
    ],
)
def test_what_the_kernels_lack_is_named(change: dict, reason: str) -> None:
    assert TritonBackend().refusals(replace(PROBLEM, **change), "forward") == [reason]


@pytest.mark.usefixtures("hopper")
def test_dilation_is_run_in_both_maps_but_the_weight_gradient() -> None:
    problem = replace(PROBLEM, dilation=(2, 2), padding=(2, 2))
    assert TritonBackend().refusals(problem, "forward") == []
    assert TritonBackend().refusals(problem, "grad_input") == []
    assert TritonBackend().refusals(problem, "grad_weight") == ["its weight gradient needs dilation 1"]


@pytest.mark.usefixtures("hopper")
def test_all_reasons_are_given_at_once() -> None:
    problem = replace(PROBLEM, dtype=torch.float64, stride=(2, 2))
    assert TritonBackend().refusals(problem, "grad_weight") == ["it has no kernels for float64", "it needs stride 1"]


@pytest.mark.usefixtures("hopper")
def test_an_old_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    reasons = TritonBackend().refusals(PROBLEM, "forward")
    assert reasons == ["it needs compute capability 8.0, this GPU has 7.5"]


@pytest.mark.usefixtures("hopper")
def test_gpus_of_another_maker_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert TritonBackend().refusals(PROBLEM, "forward") == ["it is for NVIDIA GPUs"]


def test_without_a_device_or_without_triton_that_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert TritonBackend().refusals(PROBLEM, "forward") == ["there is no CUDA device"]
    monkeypatch.setattr(backend, "_has_triton", lambda: False)
    assert TritonBackend().refusals(PROBLEM, "forward") == ["the package triton is not installed"]


def test_cpu_tensors_run_in_the_interpreter_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = replace(PROBLEM, device_type="cpu")
    monkeypatch.setattr(backend, "is_interpreted", lambda: True)
    assert TritonBackend().refusals(problem, "forward") == []
    monkeypatch.setattr(backend, "is_interpreted", lambda: False)
    assert TritonBackend().refusals(problem, "forward") == ["it is for CUDA tensors, not cpu"]


def test_float32_is_multiplied_as_exactly_as_it_is_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "is_interpreted", lambda: False)
    assert launch.precision(torch.float32) == "tf32x3"
    with use_fp32_mode("tf32"):
        assert launch.precision(torch.float32) == "tf32"
        with use_fp32_mode("bf16x3"):
            assert launch.precision(torch.float32) == "bf16x3"
    assert launch.precision(torch.float32) == "tf32x3"
    assert not launch.needs_upcast(torch.bfloat16)
    monkeypatch.setattr(launch, "is_interpreted", lambda: True)
    assert launch.precision(torch.float32) == "ieee"
    assert launch.needs_upcast(torch.bfloat16)
    assert not launch.needs_upcast(torch.float16)


def test_an_unknown_float32_mode_is_named() -> None:
    with (
        pytest.raises(InputError, match="the name of a float32 mode, but got 'tf32x4': did you mean 'tf32x3'"),
        use_fp32_mode("tf32x4"),
    ):
        pass


def test_importing_and_refusing_leave_triton_alone() -> None:
    script = (
        "import sys, widefield.ops.depthwise_conv.triton as t\n"
        "from widefield.ops.depthwise_conv.problem import Problem\n"
        "p = Problem(batch=1, channels=1, height=9, width=9, kernel_size=(3, 3), padding=(1, 1), device_type='cuda')\n"
        "t.TritonBackend().refusals(p, 'forward')\n"
        "assert 'triton' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
