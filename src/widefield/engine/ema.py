"""The exponential moving average of a model's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from widefield.engine.model_state import unique_state
from widefield.engine.sharding import local

if TYPE_CHECKING:
    from widefield.engine.config import EmaConfig


class ModelEma:
    """A copy of a model whose weights follow the model's with delay; the rule of the decay is timm's `ModelEmaV3`.

    Floating point buffers are averaged with the same decay as the parameters: BatchNorm statistics then belong to the
    same window of updates as the weights they normalise for, where a plain copy would pair old weights with the
    statistics of the newest. Other buffers (counters, masks) are copied. A tied tensor is averaged once.

    Args:
        model: The model to follow, already on its device; it is deep-copied.
        config: Decay and warmup; `decay` must be set.
    """

    def __init__(self, model: nn.Module, config: EmaConfig) -> None:
        from timm.utils import ModelEmaV3

        assert config.decay is not None
        self._rule = ModelEmaV3(model, decay=config.decay, use_warmup=config.warmup)

    @property
    def module(self) -> nn.Module:
        """The averaged model, in evaluation mode."""
        return self._rule.module

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards `model`.

        Args:
            model: The model that was copied.
            step: Number of the optimizer update just done, from 1; the first one copies.
        """
        weight = 1.0 - self._rule.get_decay(step)
        averages, values = [], []
        for average, value in zip(unique_state(self.module).values(), unique_state(model).values(), strict=True):
            if average.is_floating_point():
                averages.append(local(average))
                values.append(local(value))
            else:
                average.copy_(value)
        torch._foreach_lerp_(averages, values, weight)
