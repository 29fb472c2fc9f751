"""Whole-plane kernel, for small maps: images times the dense matrix that maps input pixels to output pixels.

``y[n, q] = sum over p of x[n, p] D[p, q]`` for one channel at a time, where D[p, q] is the tap between pixels p and q.
Its tiles are gathered from the kernel, which lies in the L1 cache, so there is nothing to expand.
"""

# Kernel bodies are Triton's language, not Python's.
# pyright: basic, reportArgumentType=false, reportCallIssue=false
# ruff: noqa: N803, N806

from __future__ import annotations

import math
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from widefield.ops.backends import Pass
from widefield.ops.depthwise_conv.problem import Problem
from widefield.ops.depthwise_conv.triton.epilogue import Activation, finished
from widefield.ops.depthwise_conv.triton.geometry import as_forward
from widefield.ops.depthwise_conv.triton.launch import compile_case as launch_case
from widefield.ops.depthwise_conv.triton.launch import on_device, options, vector
from widefield.ops.depthwise_conv.triton.tiles import CompileCase, TileConfig


@triton.jit(do_not_specialize=["N", "C", "stride_c", "stride_h", "stride_w"])
def planes_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    residual_ptr,
    y_ptr,
    N,
    C,
    stride_c,
    stride_h,
    stride_w,
    H: tl.constexpr,
    W: tl.constexpr,
    P: tl.constexpr,
    Q: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    GAP_H: tl.constexpr,
    GAP_W: tl.constexpr,
    FLIP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    CHANNELS: tl.constexpr,
    VECTOR: tl.constexpr,
    VECTOR_BYTES: tl.constexpr,
    PRECISION: tl.constexpr,
    UP: tl.constexpr,
    INT64: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Compute BN output pixels of BM images for some channels, one after another; channels slowest in the grid."""
    PIXEL_TILES: tl.constexpr = (P * Q + BN - 1) // BN
    CHUNKS: tl.constexpr = (H * W + BK - 1) // BK
    pid = tl.program_id(0)
    image_tiles = (N + BM - 1) // BM
    n = (pid % image_tiles) * BM + tl.arange(0, BM)
    rest = pid // image_tiles
    group = rest // PIXEL_TILES
    q0 = (rest % PIXEL_TILES) * BN
    if INT64:
        n = n.to(tl.int64)
        group = group.to(tl.int64)
    q = q0 + tl.arange(0, BN)
    i = q // Q
    j = q - i * Q
    # Input rows that the first and the last output row of this tile reach.
    top = tl.maximum(q0 // Q - PAD_H, 0)
    bottom = tl.minimum(tl.minimum(q0 + BN - 1, P * Q - 1) // Q - PAD_H + (KH - 1) * GAP_H, H - 1)
    first = top * W // BK
    last = tl.minimum((tl.maximum(bottom + 1, 0) * W + BK - 1) // BK, CHUNKS)
    for index in range(0, CHANNELS):
        c = group * CHANNELS + index
        is_image = n < tl.where(c < C, N, 0)
        # Masked-off lanes get addresses within the tensors: hardware may look at them.
        c = tl.minimum(c, C - 1)
        plane = tl.where(is_image, n, 0) * C + c
        acc = tl.zeros((BM, BN), dtype=tl.float32)
        for step in range(first, last):
            kk = tl.arange(0, BK)
            p = step * BK + kk
            is_pixel = p < H * W
            h = p // W
            w = p - h * W
            place_h = h[:, None] - i[None, :] + PAD_H
            place_w = w[:, None] - j[None, :] + PAD_W
            is_tap = (place_h >= 0) & (place_h < (KH - 1) * GAP_H + 1) & (place_h % GAP_H == 0) & is_pixel[:, None]
            is_tap = is_tap & (place_w >= 0) & (place_w < (KW - 1) * GAP_W + 1) & (place_w % GAP_W == 0)
            ky = place_h // GAP_H
            kx = place_w // GAP_W
            if FLIP:
                ky = KH - 1 - ky
                kx = KW - 1 - kx
            tap = tl.where(is_tap, ky * stride_h + kx * stride_w, 0)
            b = tl.load(w_ptr + c * stride_c + tap, mask=is_tap, other=0.0)
            x_tile = x_ptr + (plane * (H * W))[:, None] + tl.where(is_pixel, p, kk % VECTOR)[None, :]
            x_tile = tl.max_contiguous(tl.multiple_of(x_tile, (1, VECTOR_BYTES)), (1, VECTOR))
            a = tl.load(x_tile, mask=is_image[:, None] & is_pixel[None, :], other=0.0)
            if UP:
                a = a.to(tl.float32)
                b = b.to(tl.float32)
            acc = tl.dot(a, b, acc, input_precision=PRECISION)
        bias = 0.0
        if HAS_BIAS:
            bias = tl.load(bias_ptr + c).to(tl.float32)
        offsets = (plane * (P * Q))[:, None] + q[None, :]
        mask = is_image[:, None] & (q < P * Q)[None, :]
        acc = finished(acc, bias, residual_ptr, offsets, mask, HAS_RESIDUAL, ACTIVATION)
        tl.store(y_ptr + offsets, acc.to(y_ptr.dtype.element_ty), mask=mask)


@lru_cache(maxsize=4096)
def _constants(
    problem: Problem, config: TileConfig, itemsize: int, lanes: int, *, is_flipped: bool
) -> dict[str, object]:
    height, width = problem.output_size
    return {
        "H": problem.height,
        "W": problem.width,
        "P": height,
        "Q": width,
        "KH": problem.kernel_size[0],
        "KW": problem.kernel_size[1],
        "PAD_H": problem.padding[0],
        "PAD_W": problem.padding[1],
        "GAP_H": problem.dilation[0],
        "GAP_W": problem.dilation[1],
        "FLIP": is_flipped,
        "BM": config.block_m,
        "BN": config.block_n,
        "BK": config.block_k,
        "CHANNELS": config.channels,
        "VECTOR": lanes,
        "VECTOR_BYTES": lanes * itemsize,
    }


def grid_size(problem: Problem, config: TileConfig) -> int:
    """Return the number of programs."""
    height, width = problem.output_size
    tiles = -(-problem.batch // config.block_m) * -(-height * width // config.block_n)
    return tiles * -(-problem.channels // config.channels)


def launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    problem: Problem,
    config: TileConfig,
    *,
    is_flipped: bool,
    activation: Activation | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Convolve; as `rows.launch`, but with the kernel itself.

    Args:
        x: (N, C, H, W), contiguous.
        weight: (C, 1, K_h, K_w), any strides.
        bias: (C,) or none.
        problem: A forward problem (`geometry.as_forward`).
        config: Tiles.
        is_flipped: Whether to turn the kernel by 180 degrees.
        activation: What is applied last.
        residual: (N, C, P, Q), contiguous, added before the activation.
        out: Where to write, (N, C, P, Q), contiguous; else a new tensor.

    Returns:
        ``activation(F(x, w) + bias + residual)``, (N, C, P, Q).
    """
    if out is None:
        out = x.new_empty((problem.batch, problem.channels, *problem.output_size))
    lanes = vector(x, problem.height * problem.width, config.vector)
    with on_device(x):
        planes_kernel[(grid_size(problem, config),)](
            x,
            weight,
            x if bias is None else bias,
            x if residual is None else residual,
            out,
            problem.batch,
            problem.channels,
            weight.stride(0),
            weight.stride(2),
            weight.stride(3),
            **_constants(problem, config, x.element_size(), lanes, is_flipped=is_flipped),
            **options(config, x, (weight, out), bias, residual, activation),
        )
    return out


POINTERS = ("x_ptr", "w_ptr", "bias_ptr", "residual_ptr", "y_ptr")
SIZES = ("N", "C", "stride_c", "stride_h", "stride_w")


def compile_case(problem: Problem, pass_: Pass, config: TileConfig, dtype: torch.dtype) -> CompileCase:
    """Return the compile that `launch` asks for, with tensors on 16 bytes."""
    form = as_forward(problem, pass_)
    lanes = math.gcd(math.gcd(form.height * form.width, config.vector), 16 // dtype.itemsize)
    constants = _constants(form, config, dtype.itemsize, lanes, is_flipped=pass_ != "forward")
    return launch_case(planes_kernel, POINTERS, SIZES, constants, problem, pass_, config, dtype)
