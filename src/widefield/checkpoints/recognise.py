"""What a state dict is: its family, its layout, its form, and the network that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from widefield.checkpoints.architecture import Form, architecture_of, form_of
from widefield.checkpoints.layouts import Family, Layout, Naming, name_layout


@dataclass(frozen=True, kw_only=True)
class Recognised:
    """What was found out about a state dict from its names and shapes."""

    naming: Naming
    """Its names and ours."""
    form: Form
    """Whether branches or norms have been folded."""
    model_kwargs: Mapping[str, Any]
    """Keyword arguments of the family's class for the network it belongs to, branched."""

    @property
    def family(self) -> Family:
        """Which networks it belongs to."""
        return self.naming.family

    @property
    def layout(self) -> Layout:
        """Whose names it has."""
        return self.naming.layout

    @property
    def left_out(self) -> Mapping[str, int]:
        """Tensors of other parts of a larger model, counted by the first part of their names."""
        return self.naming.left_out

    def ours(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the network's tensors under our names."""
        return {name: state[theirs] for name, theirs in self.naming.names.items()}


def recognise(state: Mapping[str, Tensor], source: str = "the checkpoint") -> Recognised:
    """Find out what a state dict is.

    Published RepLKNets, SLaKs and UniRepLKNets are known, branched and merged, under the authors' names, mmpretrain's,
    ours, or as the backbone of a larger model; with any widths, depths and kernel sizes. That the state dict is whole
    is not checked here, see `widefield.models.load_published`.

    Args:
        state: Names to tensors.
        source: Where it comes from, for messages.

    Raises:
        InputError: If it is none of these, if a whole part of the network is missing, or if its tensors contradict each
            other and none decides.
    """
    naming = name_layout(state, source)
    shapes = {name: tuple(state[theirs].shape) for name, theirs in naming.names.items()}
    kwargs = architecture_of(shapes, naming.family, naming.names, naming.title)
    return Recognised(naming=naming, form=form_of(shapes, naming.family), model_kwargs=kwargs)
