"""What is left of a network: parameters and multiply-accumulates, dense and of the weights that are not zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from widefield._core.checks import check
from widefield.sparsity.macs import count_macs
from widefield.sparsity.sharding import whole, without_wrappers


@dataclass(frozen=True, kw_only=True)
class ParameterCost:
    """One parameter."""

    name: str
    """Its name in the model."""

    shape: tuple[int, ...]
    """Its shape."""

    parameters: int
    """Its elements."""

    nonzeros: int
    """Those that count: active ones of a masked tensor, all of a tensor that is not sparse."""

    macs: int
    """Multiply-accumulates with it; 0 without an example."""

    nonzero_macs: int
    """Those with elements that count: `macs` times the density."""

    @property
    def density(self) -> float:
        """Share of its elements that count."""
        return self.nonzeros / max(self.parameters, 1)


@dataclass(frozen=True, kw_only=True)
class SparsityReport:
    """All parameters of a model, and the sums."""

    rows: tuple[ParameterCost, ...]
    """One for each parameter, in the order of the model; a tied one is there once."""

    other_macs: int
    """Multiply-accumulates with no parameter of the model; 0 without an example."""

    @property
    def parameters(self) -> int:
        """Elements of all parameters."""
        return sum(row.parameters for row in self.rows)

    @property
    def nonzeros(self) -> int:
        """Elements that count, of all parameters: the "number of parameters" that SLaK publishes."""
        return sum(row.nonzeros for row in self.rows)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the dense network: what an ordinary device computes, zeros or not."""
        return sum(row.macs for row in self.rows) + self.other_macs

    @property
    def nonzero_macs(self) -> int:
        """Multiply-accumulates with elements that count: what a device that could skip every zero would compute."""
        return sum(row.nonzero_macs for row in self.rows) + self.other_macs


@torch.no_grad()
def sparsity_report(
    model: nn.Module, example: Tensor | None = None, masks: Mapping[str, Tensor] | None = None
) -> SparsityReport:
    """Count a model's parameters and multiply-accumulates, parameter by parameter.

    As in SLaK's tables, zeros are left out of the tensors that can be sparse, and biases, norms and layer scales count
    in full. With masks these are the masked tensors, in which an active weight counts even while it is zero; without,
    every tensor of two or more dimensions.

    Args:
        model: Any module; on the meta device it needs masks.
        example: An input, (1, C, H, W) for the cost of one image; without it nothing is said of MACs.
        masks: Of a sparse training.

    Raises:
        InputError: If a mask does not fit, or there are no values to count.
    """
    model = without_wrappers(model)
    parameters = dict(model.named_parameters())
    masks = {} if masks is None else masks
    for name, mask in masks.items():
        check(
            name in parameters and parameters[name].shape == mask.shape,
            "masks of this model",
            f"one for {name} of shape {tuple(mask.shape)}",
            "use the model that they were made for",
        )
    count = None if example is None else count_macs(model, example)
    rows: list[ParameterCost] = []
    for name, parameter in parameters.items():
        nonzeros, size = _nonzeros(name, parameter, masks), parameter.numel()
        macs = 0 if count is None else count.by_parameter.get(name, 0)
        rows.append(
            ParameterCost(
                name=name,
                shape=tuple(parameter.shape),
                parameters=size,
                nonzeros=nonzeros,
                macs=macs,
                nonzero_macs=round(macs * nonzeros / max(size, 1)),
            )
        )
    return SparsityReport(rows=tuple(rows), other_macs=0 if count is None else count.other)


def _nonzeros(name: str, parameter: Tensor, masks: Mapping[str, Tensor]) -> int:
    if name in masks:
        return int(masks[name].sum())
    if masks or parameter.dim() < 2:
        return parameter.numel()
    check(
        not parameter.is_meta,
        "a model with values, or masks",
        "one on the meta device without masks",
        "pass masks=, or build the model on another device",
    )
    return int(whole(parameter).count_nonzero())
