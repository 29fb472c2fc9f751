"""How much free disk a run needs, from its start or from where it is taken up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from widefield.engine import RunFolder
from widefield.tasks.classification.config import RunConfig

_BESIDES = 20_000_000
"""Curves, figures and events of a whole run."""
_AT_THE_END = 2_000_000
"""Figures and summary."""


def needed_bytes(
    model: nn.Module, config: RunConfig, folder: RunFolder, state: Mapping[str, Any] | None, images: int
) -> int:
    """Return the bytes that must be free for a run to reach its end.

    What lies in the folder and will be replaced counts as there. Checkpoints and results are written beside what they
    replace, so that a last copy of each is always needed.

    Args:
        model: What is trained.
        config: The run.
        folder: Its folder.
        state: Of its newest checkpoint, None if there is none.
        images: Images of all parts, whose names are listed in the folder.
    """
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    # Weights and two moments, and the average.
    checkpoint = weights * (3 if config.ema.decay is None else 4)
    # The checkpoints and the one being written, the best weights and both results.
    whole = checkpoint * (config.trainer.keep_checkpoints + 1) + 4 * weights + 20 * images + _BESIDES
    if state is None:
        return whole
    curves = folder.size_bytes("steps.csv", "metrics.csv")
    if state["epoch"] >= config.trainer.epochs:
        return (1 if folder.model.is_file() else 2) * weights + curves + _AT_THE_END
    held = folder.size_bytes("checkpoints", "model.safetensors", "merged.safetensors", "tensorboard") + curves
    return max(whole - held, checkpoint + weights + curves + _AT_THE_END)
