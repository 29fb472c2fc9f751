"""BatchNorms as after a training: no statistic, scale or shift has its first value."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

Network = TypeVar("Network", bound=nn.Module)


def randomise(model: Network, seed: int = 0) -> Network:
    """Draw statistics, scales and shifts of every BatchNorm, and put the model into evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for tensor, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
            ):
                if tensor is not None:
                    drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                    tensor.data.copy_(low + (high - low) * drawn)
    return model.eval()
