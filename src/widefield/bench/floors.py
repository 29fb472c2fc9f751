"""What a depthwise convolution needs at least: useful operations and bytes, and their time at measured ceilings."""

from __future__ import annotations

from dataclasses import dataclass

from widefield.ops.depthwise_conv.problem import Problem


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """What a device was measured to reach."""

    copy_bytes_per_s: float
    """Bytes read and written per second of a large copy."""
    matmul_flops: dict[str, float]
    """Operations per second of a large matrix product by dtype ("bfloat16", "tf32", ...)."""


def useful_flops(problem: Problem) -> int:
    """Return the operations of one map that touch a real pixel, a multiplication and an addition each."""
    per_plane = 1
    for axis, size in enumerate((problem.height, problem.width)):
        output, kernel = problem.output_size[axis], problem.kernel_size[axis]
        stride, padding, dilation = problem.stride[axis], problem.padding[axis], problem.dilation[axis]
        starts = (index * stride - padding for index in range(output))
        per_plane *= sum(0 <= start + tap * dilation < size for start in starts for tap in range(kernel))
    return 2 * problem.batch * problem.channels * per_plane


def least_bytes(problem: Problem) -> int:
    """Return the bytes that any of the three maps must move: both images and the kernel, each once."""
    height, width = problem.output_size
    images = problem.batch * problem.channels * (problem.height * problem.width + height * width)
    taps = problem.channels * problem.kernel_size[0] * problem.kernel_size[1]
    return (images + taps) * problem.dtype.itemsize


def floor_s(problem: Problem, ceilings: Ceilings, matmul_dtype: str) -> float:
    """Return the larger of the times for the bytes and for the useful operations on tensor cores, in seconds.

    Args:
        problem: What is computed.
        ceilings: Of the device.
        matmul_dtype: Which of its matrix rates applies.
    """
    moving = least_bytes(problem) / ceilings.copy_bytes_per_s
    return max(moving, useful_flops(problem) / ceilings.matmul_flops[matmul_dtype])
