"""How many weights each tensor keeps, for a density of the whole."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from widefield._core.checks import check
from widefield.sparsity.criteria import lowest
from widefield.sparsity.selection import Select, matrices, select_parameters
from widefield.sparsity.sharding import is_sharded

Shapes = Mapping[str, Sequence[int]]
Loss = Callable[[nn.Module, Any], Tensor]
"""The loss of a model on a batch."""


def uniform(shapes: Shapes, density: float) -> dict[str, int]:
    """Give every tensor the same density.

    Args:
        shapes: Shape of each tensor.
        density: Share of all elements to keep.

    Returns:
        The number to keep of each, within one of density times size; they add up to round(density * total).
    """
    sizes = _sizes(shapes, density)
    return _whole({name: density * size for name, size in sizes.items()}, sizes, density)


def erdos_renyi_kernel(shapes: Shapes, density: float) -> dict[str, int]:
    """Give each tensor a density proportional to (sum of its sides) / (product of its sides), at most 1.

    Where the proportion would pass 1, the tensor stays dense and the others share what is left.

    Args:
        shapes: Shape of each tensor, with all sides of a convolution's kernel.
        density: Share of all elements to keep.

    Returns:
        The number to keep of each; they add up to round(density * total).

    Source: Evci et al., "Rigging the Lottery" (ICML 2020), section 3; for SLaK's option "ERK".
    """
    sizes = _sizes(shapes, density)
    sides = {name: sum(shape) for name, shape in shapes.items()}
    open_names = [name for name in sizes if sizes[name]]
    kept = dict.fromkeys(sizes, 0.0)
    rest = density * sum(sizes.values())
    while open_names:
        factor = rest / sum(sides[name] for name in open_names)
        full = [name for name in open_names if factor * sides[name] > sizes[name]]
        if not full:
            kept |= {name: factor * sides[name] for name in open_names}
            break
        kept |= {name: float(sizes[name]) for name in full}
        rest -= sum(sizes[name] for name in full)
        open_names = [name for name in open_names if name not in full]
    return _whole(kept, sizes, density)


def snip(
    model: nn.Module, batches: Iterable[Any], loss: Loss, density: float, select: Select = matrices
) -> dict[str, int]:
    """Keep the weights of largest |w dL/dw| over all tensors, and return how many that are in each.

    The gradient of a batch is averaged over the processes, each of which sees its own part of it, as in SLaK's code,
    where it is the copy of a DDP model that is asked; the scores of several batches are added up. The model is copied:
    neither its BatchNorm statistics nor its gradients change, nor the state of the random numbers.

    Weights without a gradient, such as those of residual branches that a scale of zero shuts at the start, cannot be
    ranked: where those with one are fewer than are to be kept, all of them are, and the others share what is left
    evenly.

    Args:
        model: Any module, not sharded, in training mode if it is to be seen as trained.
        batches: At least one batch.
        loss: `loss(model, batch)` is a scalar.
        density: Share of all selected elements to keep.
        select: Which parameters take part.

    Returns:
        The number to keep of each; they add up to round(density * total).

    Raises:
        InputError: If there is no batch, the model is sharded, or no weight gets a finite gradient.

    Source: Lee et al., "SNIP" (ICLR 2019), equation 4; SLaK takes the densities alone from it and draws the masks.
    """
    found = select_parameters(model, select)
    check(
        not any(is_sharded(parameter) for parameter in found.values()),
        "a whole model for snip",
        "one whose parameters are sharded over processes",
        "allocate before sharding and pass masks=",
    )
    sizes = _sizes({name: tuple(parameter.shape) for name, parameter in found.items()}, density)
    scores = _saliency(model, list(found), batches, loss)
    flat = torch.cat([score.flatten() for score in scores.values()])
    check(
        bool(flat.isfinite().all()) and bool(flat.any()),
        "finite gradients for snip",
        "a loss whose gradients are all zero or not finite",
        "check the loss, or use another allocation",
    )
    wanted, scored = round(density * flat.numel()), {name: int((score > 0).sum()) for name, score in scores.items()}
    rest, unscored = wanted - sum(scored.values()), flat.numel() - sum(scored.values())
    if rest > 0:
        spread = {name: scored[name] + (size - scored[name]) * rest / unscored for name, size in sizes.items()}
        return _whole(spread, sizes, density)
    parts = lowest(-flat, wanted).split(list(sizes.values()))
    return {name: int(part.sum()) for name, part in zip(sizes, parts, strict=True)}


def _saliency(model: nn.Module, names: list[str], batches: Iterable[Any], loss: Loss) -> dict[str, Tensor]:
    trial = copy.deepcopy(model)
    parameters = dict(trial.named_parameters())
    scores = {name: torch.zeros_like(parameters[name], dtype=_wide(parameters[name])) for name in names}
    devices = sorted({parameter.device.index for parameter in parameters.values() if parameter.is_cuda})
    ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    count = 0
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        for batch in batches:
            count += 1
            trial.zero_grad()
            loss(trial, batch).backward()
            for name, score in scores.items():
                gradient = parameters[name].grad
                # A process whose batch does not reach a layer takes part in the mean all the same.
                gradient = torch.zeros_like(score) if gradient is None else gradient.to(score.dtype)
                if ranks > 1:
                    dist.all_reduce(gradient)
                score.add_((parameters[name].detach() * gradient / ranks).abs_())
    check(count > 0, "batches for snip", "none", "pass batches= and loss=, or use another allocation")
    return scores


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def from_file(path: Path, shapes: Shapes) -> dict[str, int]:
    """Read densities from a JSON file that maps the name of each parameter to a number from 0 to 1.

    Args:
        path: The file.
        shapes: Shape of each tensor.

    Returns:
        round(density * size) of each.

    Raises:
        InputError: If the file cannot be read, or a name is unknown or missing, or a number is not a density.
    """
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        content, reason = None, str(error)
    else:
        reason = f"a {type(content).__name__}"
    check(isinstance(content, dict), f"a JSON object of densities in {path}", reason, 'write {"name": density, ...}')
    odd = sorted(content.keys() ^ shapes.keys())
    check(
        not odd,
        f"a density in {path} for each sparse parameter and for no other",
        f"{len(odd)} names on one side only, such as {', '.join(odd[:3])}",
        "add or remove them, or change which parameters are sparse",
    )
    wrong = [name for name, value in content.items() if not _is_density(value)]
    check(
        not wrong,
        f"densities from 0 to 1 in {path}",
        f"{content[wrong[0]] if wrong else ''!r} for {wrong[0] if wrong else ''}",
        "mend it",
    )
    return {name: round(content[name] * math.prod(shape)) for name, shape in shapes.items()}


def _is_density(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _sizes(shapes: Shapes, density: float) -> dict[str, int]:
    check(0 <= density <= 1, "a density from 0 to 1", f"{density:g}", "give the share of weights that are kept")
    return {name: math.prod(shape) for name, shape in shapes.items()}


def _whole(wanted: Mapping[str, float], sizes: Mapping[str, int], density: float) -> dict[str, int]:
    """Round to integers with the right sum: each down, then one more for the largest remainders."""
    counts = {name: min(math.floor(value), sizes[name]) for name, value in wanted.items()}
    missing = round(density * sum(sizes.values())) - sum(counts.values())
    by_remainder = sorted(
        (name for name in counts if counts[name] < sizes[name]), key=lambda name: counts[name] - wanted[name]
    )
    for name in by_remainder[:missing]:
        counts[name] += 1
    return counts
