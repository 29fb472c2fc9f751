"""Eight truth values in a byte."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_PLACES = (1, 2, 4, 8, 16, 32, 64, 128)


def packed_size(count: int) -> int:
    """Return the bytes that `count` truth values take."""
    return -(-count // 8)


def pack_bits(values: Tensor) -> Tensor:
    """Return a bool tensor of any shape as 1-d uint8, the first value in the lowest bit, the last byte padded by 0."""
    flat = values.flatten()
    bits = F.pad(flat.to(torch.uint8), (0, -len(flat) % 8)).view(-1, 8)
    return (bits * torch.tensor(_PLACES, dtype=torch.uint8, device=bits.device)).sum(1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """Return what `pack_bits` packed.

    Args:
        packed: 1-d uint8, `packed_size` of the number of elements.
        shape: Of the bool tensor.
    """
    places = torch.tensor(_PLACES, dtype=torch.uint8, device=packed.device)
    count = torch.Size(shape).numel()
    return (packed.unsqueeze(1) & places).ne(0).flatten()[:count].reshape(shape)
