"""Each in a process of its own, with a limit: what is gone round would end the process, or never end."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch

from widefield.ops import Problem
from widefield.ops.depthwise_conv import defects

SHARED = """
import torch, torch.nn.functional as F
from widefield.ops import depthwise_conv2d, use_backend
from contextlib import nullcontext
torch.manual_seed(0)

def check(x, weight, make_gradient, tolerance, backend="", **geometry):
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    with use_backend(backend) if backend else nullcontext():
        y = depthwise_conv2d(x, weight, **geometry)
    gradient = make_gradient(y)
    actual = y, *torch.autograd.grad(y, (x, weight), gradient)
    wide = [tensor.detach().double().contiguous().requires_grad_() for tensor in (x, weight)]
    y = F.conv2d(*wide, groups=x.shape[1], **{"padding": [k // 2 for k in weight.shape[2:]], **geometry})
    expected = y, *torch.autograd.grad(y, wide, gradient.double().contiguous())
    for one, other in zip(actual, expected):
        error = (one.double() - other).abs().max() / other.abs().max()
        assert error < tolerance, (x.shape, weight.shape, backend, geometry, error)
"""


def run(code: str, seconds: int = 200) -> None:
    script = SHARED + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_one_channel_and_a_kernel_that_reaches_far_over_the_edge() -> None:
    run("""
    sizes = ((3, 16, 14, 31, 13), (2, 10, 17, 21, 9), (1, 13, 27, 25, 9), (2, 25, 40, 51, 3))
    ways = (torch.ones_like, lambda y: torch.randn_like(y[0]).expand_as(y),
            lambda y: torch.randn(1, 1, 1, 1).expand_as(y))
    for backend in ("", "aten", "channels_last"):
        for n, h, w, rows, columns in sizes:
            for way in ways:
                check(torch.randn(n, 1, h, w), torch.randn(1, 1, rows, columns), way, 1e-4, backend)
        check(torch.randn(1, 1, h, w).expand(n, 1, h, w), torch.randn(1, 1, rows, columns), way, 1e-4, backend)
        x, weight = torch.randn(2, 1, 30, 22), torch.randn(1, 1, 31, 7)
        check(x, weight, torch.ones_like, 1e-4, backend, stride=2, padding=(15, 3))
    x, weight = torch.randn(3, 1, 16, 14), torch.randn(1, 1, 31, 13, requires_grad=True)
    depthwise_conv2d(x, weight).sum(0).square().sum().backward()
    assert weight.grad.isfinite().all()
    """)


def test_wide_rows_of_few_channels_in_half_precision_end() -> None:
    run("""
    form = torch.channels_last
    for channels, size, kernel in ((8, 56, (5, 51)), (15, 56, (5, 51)), (16, 40, (1, 15)), (2, 32, (1, 31))):
        for dtype in (torch.bfloat16, torch.float16):
            x, weight = torch.randn(1, channels, 9, size).to(dtype), torch.randn(channels, 1, *kernel).to(dtype)
            laid = x.contiguous(memory_format=form)
            wide = torch.randn(1, channels, 9, size + 1).to(dtype).contiguous(memory_format=form)[..., 1:]
            for image, taps in ((laid, weight), (wide, weight), (x, weight.to(memory_format=form))):
                pads = [k // 2 for k in kernel]
                wanted = F.conv2d(image.double().contiguous(), weight.double(), padding=pads, groups=channels)
                for backend in ("", "aten", "channels_last", "transposed"):
                    with use_backend(backend) if backend else nullcontext():
                        y = depthwise_conv2d(image, taps)
                    assert (y.double() - wanted).abs().max() < 0.05 * wanted.abs().max()
                    assert y.dtype == dtype
    # So few products that nothing is chosen for them.
    x = torch.randn(1, 2, 3, 32).bfloat16().contiguous(memory_format=torch.channels_last)
    check(x, torch.randn(2, 1, 1, 31).bfloat16(), torch.ones_like, 0.05)
    """)


def test_the_gradient_of_a_dilated_kernel_in_half_precision_is_right() -> None:
    run("""
    for channels, size, kernel, gap in ((128, (9, 32), (3, 7), 3), (17, (9, 56), (3, 3), 3), (48, (9, 31), (1, 9), 2)):
        for form in (torch.contiguous_format, torch.channels_last):
            for dtype in (torch.bfloat16, torch.float16):
                x = torch.randn(1, channels, *size).to(dtype).contiguous(memory_format=form)
                pads = [gap * (k // 2) for k in kernel]
                way = lambda y: torch.randn(y.shape).to(y.dtype).contiguous(memory_format=form)
                weight = torch.randn(channels, 1, *kernel).to(dtype)
                for backend in ("", "aten", "channels_last"):
                    check(x, weight, way, 0.05, backend, dilation=gap, padding=pads)
    """)


def test_operands_that_overlap_themselves_are_read_right() -> None:
    run("""
    def spread(tensor, dims):
        size = tensor.shape
        for dim in dims:
            tensor = tensor.narrow(dim, 0, 1)
        return tensor.expand(size)
    for backend in ("", "aten", "channels_last", "fft", "dft"):
        for dims in ((0,), (1,), (0, 1), (2,), (3,), (2, 3), (0, 1, 2, 3)):
            x, weight = torch.randn(3, 2, 9, 8), torch.randn(2, 1, 5, 3)
            check(spread(x, dims), weight, torch.randn_like, 1e-4, backend)
            check(x, weight, lambda y: spread(torch.randn_like(y), dims), 1e-4, backend)
            if 1 not in dims:
                check(x, spread(weight, dims), torch.randn_like, 1e-4, backend)
        check(torch.randn(40).as_strided((2, 2, 9, 8), (3, 2, 3, 1)), weight, torch.randn_like, 1e-4, backend)
    """)


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({}, []),
        ({"dtype": torch.bfloat16, "channels": 16}, ["forward"]),
        ({"dtype": torch.bfloat16, "channels": 64}, []),
        ({"dtype": torch.bfloat16, "channels": 64, "dilation": (2, 1)}, ["grad_weight"]),
        ({"channels": 1}, ["grad_weight"]),
        ({"channels": 1, "device_type": "cuda"}, []),
        ({"dtype": torch.bfloat16, "channels": 16, "dilation": (2, 2), "device_type": "cuda"}, []),
    ],
)
def test_only_such_problems_are_called_with_care(changes: dict[str, object], passes: list[str]) -> None:
    values: dict[str, object] = {
        "batch": 2,
        "channels": 8,
        "height": 56,
        "width": 56,
        "kernel_size": (31, 31),
        **changes,
    }
    problem = Problem(**values)  # type: ignore[arg-type]
    assert [pass_ for pass_ in ("forward", "grad_input", "grad_weight") if defects.is_any(problem, pass_)] == passes
