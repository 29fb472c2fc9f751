"""The public function: argument checks, autocast, the positional embedding's constant, and the registered operator."""

from __future__ import annotations

import torch
from torch import Tensor

from widefield._core.checks import check, check_name
from widefield.ops.dispatch import forced_backend
from widefield.ops.operands import autocast_dtype, check_dense, check_floating, not_scriptable
from widefield.ops.peripheral_conv.differentiation import peripheral_forward
from widefield.ops.peripheral_conv.order import FORM_NAMES
from widefield.ops.peripheral_kernel.expansion import sum_cells
from widefield.ops.peripheral_kernel.grid import SharingGrid


@not_scriptable
def peripheral_conv2d(
    x: Tensor,
    cells: Tensor,
    bias: Tensor | None = None,
    *,
    rows: SharingGrid,
    columns: SharingGrid | None = None,
    embedding: Tensor | None = None,
    form: str | None = None,
) -> Tensor:
    """Convolve every channel with a kernel that shares parameters over cells (PeLK, equations 1 and 3).

    The same function as ``depthwise_conv2d(x, peripheral_kernel(cells, rows, columns), bias)``, at stride 1 with "same"
    padding, computed in the fastest form for the shape. The positional embedding h of equation 3 is added to the
    image under the window, padding included, so it contributes the constant ``<w, h>`` of each channel.

    Args:
        x: Images (N, C, H, W), any memory format (the output has the same).
        cells: Free parameters (C, 1, P_h, P_w).
        bias: Optional (C,).
        rows: Cells of the kernel's vertical axis; K_h odd.
        columns: Cells of its horizontal axis; without it, those of `rows`.
        embedding: Optional h (C, K_h, K_w).
        form: Name of the form that must compute all three maps, forward and backward; without it the choice is free.
            Within ``use_backend`` and without a form, the expanded kernel runs on that backend.

    Returns:
        (N, C, H, W).

    Raises:
        InputError: If shapes, dtypes or devices do not fit, a kernel size is even, there is no such form, or the form
            cannot run the problem.

    Example:
        >>> grid = SharingGrid.exponential(51)
        >>> y = peripheral_conv2d(torch.randn(1, 8, 56, 56), torch.randn(8, 1, 13, 13), rows=grid)
    """
    columns = rows if columns is None else columns
    forced = forced_backend()
    if form is None:
        form = "expanded" if forced else ""
    else:
        check_name(form, FORM_NAMES, "form")
    check_dense(x, cells, bias, embedding)
    _check_shapes(x, cells, bias, embedding, (rows, columns))
    x, cells, bias, embedding = _autocast(x, cells, bias, embedding)
    _check_types([x, *(tensor for tensor in (cells, bias, embedding) if tensor is not None)])
    if embedding is not None:
        constant = _constant(cells, embedding, rows, columns)
        bias = constant if bias is None else bias + constant
    return peripheral_forward(x, cells, bias, rows.sizes, columns.sizes, form, forced)


def _constant(cells: Tensor, embedding: Tensor, rows: SharingGrid, columns: SharingGrid) -> Tensor:
    """Return ``<w, h>`` of each channel (C,): the tap products, summed over cells first."""
    wide = torch.promote_types(cells.dtype, torch.float32)
    sums = sum_cells(embedding.to(wide).unsqueeze(1), rows, columns)
    return (cells.to(wide) * sums).sum((1, 2, 3)).to(cells.dtype)


def _check_shapes(
    x: Tensor, cells: Tensor, bias: Tensor | None, embedding: Tensor | None, grids: tuple[SharingGrid, SharingGrid]
) -> None:
    check(x.dim() == 4, "an input (N, C, H, W)", f"{x.dim()} dimensions {tuple(x.shape)}", "add the missing ones")
    taps = [grid.kernel_size for grid in grids]
    check(
        all(k % 2 == 1 for k in taps),
        "grids whose cells sum to an odd kernel size",
        f"{taps[0]} x {taps[1]} taps",
        "add or remove a tap",
    )
    channels = x.shape[1]
    wanted = (channels, 1, *(grid.parameters for grid in grids))
    check(
        tuple(cells.shape) == wanted,
        f"cells of shape {wanted}, for the input's channels and the grids",
        f"shape {tuple(cells.shape)}",
        "give one parameter for each cell of each channel",
    )
    check(
        bias is None or tuple(bias.shape) == (channels,),
        f"a bias of shape ({channels},)",
        "none" if bias is None else f"shape {tuple(bias.shape)}",
        "give one number for each channel",
    )
    check(
        embedding is None or tuple(embedding.shape) == (channels, *taps),
        f"an embedding of shape {(channels, *taps)}",
        "none" if embedding is None else f"shape {tuple(embedding.shape)}",
        "give one number for each tap of each channel",
    )


def _autocast(
    x: Tensor, cells: Tensor, bias: Tensor | None, embedding: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    dtype = autocast_dtype(x, cells, bias, embedding)
    if dtype is None:
        return x, cells, bias, embedding
    cast = [None if tensor is None else tensor.to(dtype) for tensor in (bias, embedding)]
    return x.to(dtype), cells.to(dtype), cast[0], cast[1]


def _check_types(tensors: list[Tensor]) -> None:
    x = tensors[0]
    check_floating(x)
    check(
        all(tensor.dtype == x.dtype for tensor in tensors),
        "input, cells, bias and embedding of one dtype",
        ", ".join(str(tensor.dtype) for tensor in tensors),
        "convert them to one, or use autocast",
    )
    check(
        all(tensor.device == x.device for tensor in tensors),
        "input, cells, bias and embedding on one device",
        ", ".join(str(tensor.device) for tensor in tensors),
        "move them to one",
    )
