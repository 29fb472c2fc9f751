"""Taps that never meet a pixel: a kernel wider than twice its map can be cut to that, exactly."""

from __future__ import annotations

from dataclasses import replace

from widefield.ops.depthwise_conv.problem import Problem

Margins = tuple[int, int]


def clip(problem: Problem) -> tuple[Problem, Margins]:
    """Return the problem without its dead taps, and how many rows and columns of taps go on each side.

    Output p reads row ``p stride + i dilation - padding`` through tap i. Rows of taps for which that is never in the
    image are dead; as many are cut above as below, which with "same" padding is all of them.
    """
    sizes = zip(
        (problem.height, problem.width),
        problem.output_size,
        problem.kernel_size,
        problem.stride,
        problem.padding,
        problem.dilation,
        strict=True,
    )
    rows, columns = (_dead_taps(*size) for size in sizes)
    if not rows and not columns:
        return problem, (0, 0)
    kernel, padding, dilation = problem.kernel_size, problem.padding, problem.dilation
    clipped = replace(
        problem,
        kernel_size=(kernel[0] - 2 * rows, kernel[1] - 2 * columns),
        padding=(padding[0] - rows * dilation[0], padding[1] - columns * dilation[1]),
    )
    return clipped, (rows, columns)


def _dead_taps(size: int, output: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    if size == 0 or output == 0:
        return 0
    last = (output - 1) * stride - padding
    above = max(0, -(last // dilation))
    below = max(0, kernel - 1 - (size - 1 + padding) // dilation)
    # One tap stays, and padding cannot become negative.
    return min(above, below, (kernel - 1) // 2, padding // dilation)
