"""The teacher: merged, in evaluation mode, and never changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from widefield.tasks.distillation.features import Answer, answer


class Teacher:
    """A frozen network that is asked for its answers to the student's images.

    Args:
        network: A classifier; it is put into evaluation mode, and its parameters require no gradient any more.
        stages: Indices of the feature maps to return.
        autocast: Context of its forward pass, such as `accelerate.Accelerator.autocast`.
    """

    def __init__(
        self,
        network: nn.Module,
        stages: Sequence[int] = (),
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.network = network.requires_grad_(False).eval()
        self.stages = tuple(stages)
        self.autocast = autocast

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Answer:
        """(N, 3, H, W) -> logits (N, classes) and feature maps, without gradient."""
        with self.autocast():
            return answer(self.network, images, self.stages)
