"""Images that a run leaves out because they cannot be decoded, counted over all its processes and resumptions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from widefield._core.checks import check

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from widefield.data import ImageLoader
    from widefield.engine import RunContext


class SkippedImages:
    """An extension of a run that keeps in its checkpoints which images were left out.

    Args:
        loaders: Of this process, by the name of what they read.
    """

    name = "skipped_images"
    is_required = True

    def __init__(self, loaders: Mapping[str, ImageLoader]) -> None:
        self._loaders = dict(loaders)

    def count(self) -> int:
        """Return how many different images were left out so far; called on all ranks."""
        return sum(map(len, self._found().values()))

    def started(self, context: RunContext) -> None:
        """Begin."""

    def after_step(self, step: int) -> None:
        """Follow an update."""

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the places of the images in their sources, those of all ranks."""
        return {}, self._found()

    def load_state_dict(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Take what `state_dict` gave.

        Raises:
            InputError: If it is not that.
        """
        for name, loader in self._loaders.items():
            places = state[name]
            check(
                isinstance(places, list) and all(type(place) is int and place >= 0 for place in places),
                f"a list of places of {name} images that were left out",
                f"{str(places)[:60]}",
                "resume from an earlier checkpoint",
            )
            loader.note_skipped(places)

    def metrics(self) -> dict[str, float]:
        """Return nothing for the row of an epoch."""
        return {}

    def closed(self) -> None:
        """End."""

    def _found(self) -> dict[str, list[int]]:
        own = {name: list(loader.skipped_indices) for name, loader in self._loaders.items()}
        ranks: list[Any] = [own]
        if dist.is_initialized() and dist.get_world_size() > 1:
            ranks = [None] * dist.get_world_size()
            dist.all_gather_object(ranks, own)
        return {name: sorted(set().union(*(found[name] for found in ranks))) for name in own}
