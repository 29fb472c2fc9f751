"""The Triton kernels as a form: when they can run, and what is prepared before a launch."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from widefield.ops.peripheral_conv.form import Map, flipped
from widefield.ops.peripheral_conv.problem import PeripheralProblem

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class TritonForm:
    """Vertical box sums from float32 prefix sums, then P_h dots with row-Toeplitz tiles instead of K_h.

    Written for compute capability 8.0 and later. It has been run in Triton's interpreter and compiled for such GPUs,
    never yet on one: so it runs on request only.
    """

    name = "triton"
    summary = "box sums and Toeplitz tiles on tensor cores (GPU)"

    def refusals(self, problem: PeripheralProblem, map_: Map) -> list[str]:
        """It needs Triton, a GPU with tensor cores or Triton's interpreter, and at most 4 bytes a number."""
        reasons = [] if problem.dtype in _DTYPES else [f"it computes in float32 or less, not {problem.dtype}"]
        if importlib.util.find_spec("triton") is None:
            return [*reasons, "the package triton is not installed"]
        from widefield.ops.depthwise_conv.triton.launch import is_interpreted

        if problem.device_type == "cuda":
            major, minor = torch.cuda.get_device_capability()
            old = [] if major >= 8 else [f"it needs compute capability 8.0, and the GPU has {major}.{minor}"]
            return reasons + old
        is_simulated = problem.device_type == "cpu" and is_interpreted()
        return reasons if is_simulated else [*reasons, f"it is for CUDA tensors, not {problem.device_type}"]

    def forward(self, x: Tensor, cells: Tensor, bias: Tensor | None, problem: PeripheralProblem) -> Tensor:
        """Launch the row kernel."""
        from widefield.ops.peripheral_conv.triton.box_rows import convolve

        return convolve(x.contiguous(), cells, bias, problem)

    def grad_input(self, grad: Tensor, cells: Tensor, problem: PeripheralProblem) -> Tensor:
        """Run the forward map of the flipped kernel."""
        return self.forward(grad, flipped(cells), None, problem.transposed())

    def grad_cells(self, grad: Tensor, x: Tensor, problem: PeripheralProblem) -> Tensor:
        """Launch the kernel that multiplies box sums with box sums."""
        from widefield.ops.peripheral_conv.triton.box_products import multiply

        return multiply(grad.contiguous(), x.contiguous(), problem)
