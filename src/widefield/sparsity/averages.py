"""An average of the weights that has the zeros of the masks, and takes what has grown at once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from widefield.sparsity.sharding import local, share_of


class FollowedAverage:
    """The sparse tensors of an average.

    A grown weight starts at zero, and an average that moved towards it from zero would need as many updates as its
    window is wide until it stood for it: at a decay of 0.9999 more than there are between two changes of the masks. So
    the average takes its first value that is not zero, as the average of the published code does.

    Args:
        tensors: By the names of the masks; updated in place.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)
        # Places that are active but were still zero when last looked at; None where all have to be searched.
        self._empty: dict[str, tuple[Tensor, ...] | None] = dict.fromkeys(tensors)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors by name."""
        return self._tensors

    def reopen(self) -> None:
        """Search all places again: tensors or masks were set from outside."""
        self._empty = dict.fromkeys(self._tensors)

    @torch.no_grad()
    def drop(self, name: str, mask: Tensor) -> None:
        """Set the average to zero where a changed mask is false.

        Args:
            name: Of the tensor.
            mask: Bool, of the shape of the whole tensor.
        """
        average = self._tensors[name]
        local(average).masked_fill_(~share_of(mask.to(average.device), average), 0)
        self._empty[name] = None

    @torch.no_grad()
    def take(self, name: str, parameter: Tensor, mask: Tensor) -> None:
        """Set the average to the weight where it is active and its average is still zero.

        Called after a step of the optimizer and before the average is moved.

        Args:
            name: Of the tensor.
            parameter: The weight.
            mask: Bool, of the shape of the whole tensor.
        """
        average, places = self._tensors[name], self._empty[name]
        mean = local(average)
        weight = local(parameter).to(mean)
        if places is None:
            here = share_of(mask.to(average.device), average)
            mean.copy_(torch.where(here & (mean == 0), weight, mean))
            # Found once, not anew at every step, which would wait for the device: weights that no image reaches.
            self._empty[name] = (here & (mean == 0)).nonzero(as_tuple=True)
        elif len(places[0]):
            before = mean[places]
            mean[places] = torch.where(before == 0, weight[places], before)
