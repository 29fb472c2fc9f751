"""The device side of `hankel`: one program sums the products of one channel, one tile of taps, one share of pixels."""

# Kernel bodies are Triton's language, not Python's: types of its values mean nothing to a checker.
# pyright: basic, reportAttributeAccessIssue=false
# ruff: noqa: N803, N806

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def hankel(
    x_ptr,
    grad_ptr,
    partial_ptr,
    batch,
    channels,
    splits,
    steps_per_split,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    PITCH: tl.constexpr,
    OUT_HEIGHT: tl.constexpr,
    OUT_PITCH: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    BLOCK_KX: tl.constexpr,
    BLOCK_KY: tl.constexpr,
    IMAGES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    COPIES: tl.constexpr,
    ALIGNED: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Write partial[split, c, ky, kx] = sum of x[n, c, i, j + kx - PAD_W] grad[n, c, i - ky + PAD_H, j].

    The contraction runs over (image, input row i, output column j), a block of IMAGES x ROWS x COLUMNS at a time, all
    powers of two so that a lane finds its place by shifts. `x_ptr` holds COPIES images, copy p shifted right by p zeros
    at row pitch PITCH: every group of COPIES neighbouring pixels is then one aligned load, whatever the tap. Rows of
    the gradient may be padded by zeros to OUT_PITCH; columns beyond a row meet zeros there.
    """
    PIXELS: tl.constexpr = IMAGES * ROWS * COLUMNS
    ROW_TILES: tl.constexpr = (HEIGHT + ROWS - 1) // ROWS
    COLUMN_TILES: tl.constexpr = (OUT_PITCH + COLUMNS - 1) // COLUMNS
    TILES: tl.constexpr = ROW_TILES * COLUMN_TILES
    KX_TILES: tl.constexpr = (KERNEL_W + BLOCK_KX - 1) // BLOCK_KX
    BYTES: tl.constexpr = x_ptr.dtype.element_ty.primitive_bitwidth // 8
    X_PLANE: tl.constexpr = HEIGHT * PITCH
    GRAD_PLANE: tl.constexpr = OUT_HEIGHT * OUT_PITCH

    # The channel is the slow index: neighbours share its pixels.
    c = tl.program_id(0) // splits
    split = tl.program_id(0) - c * splits
    kx = (tl.program_id(1) % KX_TILES) * BLOCK_KX + tl.arange(0, BLOCK_KX)
    ky = (tl.program_id(1) // KX_TILES) * BLOCK_KY + tl.arange(0, BLOCK_KY)

    p = tl.arange(0, PIXELS)
    column = p % COLUMNS
    row = (p // COLUMNS) % ROWS
    image = p // (COLUMNS * ROWS)

    groups = (batch + IMAGES - 1) // IMAGES
    first = split * steps_per_split
    last = tl.minimum(first + steps_per_split, groups * TILES)
    # Triton turns a 1 among the arguments into a constant, which has no method.
    copy_stride = tl.full((), X_PLANE, tl.int64) * batch * channels

    acc = tl.zeros((BLOCK_KX, BLOCK_KY), dtype=tl.float32)
    for step in range(first, last):
        group = step // TILES
        tile = step - group * TILES
        i = (tile // COLUMN_TILES) * ROWS + row
        j = (tile % COLUMN_TILES) * COLUMNS + column
        start = ((group * IMAGES).to(tl.int64) * channels + c).to(tl.int64)
        is_row = (group * IMAGES + image < batch) & (i < HEIGHT)
        is_pixel = is_row & (j < OUT_PITCH)

        shifted = j[None, :] + (kx - PAD_W)[:, None]
        copy = (COPIES - shifted % COPIES) % COPIES
        t = tl.max_contiguous(tl.multiple_of(shifted + copy, (1, COPIES)), (1, COPIES))
        is_x = is_row[None, :] & (t >= 0) & (t < PITCH) & (kx < KERNEL_W)[:, None]
        # A lane that is masked off points at a first pixel: never at a wild address.
        t = tl.where(is_x, t, 0)
        plane = tl.where(is_row, image * (channels * X_PLANE) + i * PITCH, 0)
        offset = plane[None, :] + t
        if COPIES > 1:
            offset = tl.where(is_x, copy, 0) * copy_stride + offset
        pointers = x_ptr + start * X_PLANE + offset
        # Of pointers, the alignment is in bytes.
        pointers = tl.max_contiguous(tl.multiple_of(pointers, (1, COPIES * BYTES)), (1, COPIES))
        a = tl.load(pointers, mask=is_x, other=0.0)

        out_row = i[:, None] + (PAD_H - ky)[None, :]
        is_grad = is_pixel[:, None] & (out_row >= 0) & (out_row < OUT_HEIGHT) & (ky < KERNEL_H)[None, :]
        plane = tl.where(is_pixel, image * (channels * GRAD_PLANE) + j, 0)
        pointers = grad_ptr + start * GRAD_PLANE + (plane[:, None] + tl.where(is_grad, out_row, 0) * OUT_PITCH)
        pointers = tl.max_contiguous(tl.multiple_of(pointers, (ALIGNED * BYTES, 1)), (ALIGNED, 1))
        b = tl.load(pointers, mask=is_grad, other=0.0)

        if UPCAST:
            acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
        else:
            acc = tl.dot(a, b, acc, input_precision=PRECISION)

    taps = ky[None, :] * KERNEL_W + kx[:, None]
    offset = (split.to(tl.int64) * channels + c) * (KERNEL_H * KERNEL_W)
    tl.store(partial_ptr + offset + taps, acc, mask=(kx < KERNEL_W)[:, None] & (ky < KERNEL_H)[None, :])


@triton.jit
def shift_copies(
    x_ptr,
    copies_ptr,
    size,
    WIDTH: tl.constexpr,
    PITCH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write copy p of the rows of x: PITCH elements each, WIDTH pixels after p zeros, zeros behind them."""
    copy = tl.program_id(1)
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = index // PITCH
    column = (index - row * PITCH).to(tl.int32) - copy
    is_x = (index < size) & (column >= 0) & (column < WIDTH)
    value = tl.load(x_ptr + tl.where(is_x, row * WIDTH + column, 0), mask=is_x, other=0.0)
    tl.store(copies_ptr + copy * size.to(tl.int64) + index, value, mask=index < size)
