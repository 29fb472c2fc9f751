"""Sparse training: masks that are applied after every step of the optimizer, and change now and then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from widefield._core.checks import check
from widefield._core.errors import RunError
from widefield.sparsity.allocation import Loss, erdos_renyi_kernel, from_file, snip, uniform
from widefield.sparsity.averages import FollowedAverage
from widefield.sparsity.blanking import blank, open_bits
from widefield.sparsity.config import SparsityConfig
from widefield.sparsity.criteria import draw
from widefield.sparsity.masks import Masks
from widefield.sparsity.moments import FIRST_MOMENTS, blanked_at_changes, blanked_at_steps, momentum_of
from widefield.sparsity.schedule import UpdateSchedule
from widefield.sparsity.selection import Select, select_parameters, selected_by
from widefield.sparsity.sharding import local, share_of, whole, without_wrappers
from widefield.sparsity.topology import exchange

_INNER = ("optimizer", "_base_optimizer")


def initial_masks(
    model: nn.Module,
    config: SparsityConfig,
    *,
    batches: Iterable[Any] | None = None,
    loss: Loss | None = None,
    select: Select | None = None,
) -> Masks:
    """Allocate densities and draw the first masks; only "nonzero" reads them off the weights.

    Args:
        model: Any module.
        config: Sparsity, allocation, selection and seed.
        batches: For "snip"; the first `config.snip_batches` of them are used.
        loss: For "snip": `loss(model, batch)` is a scalar.
        select: Which parameters become sparse, by name and tensor, instead of `config.which` and `config.pattern`.

    Raises:
        InputError: If the allocation lacks what it needs, or nothing is selected.
    """
    module, density = without_wrappers(model), 1 - config.sparsity
    select = selected_by(config) if select is None else select
    parameters = select_parameters(module, select)
    if config.allocation == "nonzero":
        found = Masks.of_nonzeros(parameters)
        for name, count in found.counts.items():
            if _filled(count, found[name].numel(), config.dense_from) > count:
                found.replace(name, torch.ones_like(found[name]))
        return found
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    if config.allocation == "file":
        assert config.density_file is not None
        counts = from_file(config.density_file, shapes)
    elif config.allocation == "snip":
        check(
            batches is not None and loss is not None,
            "batches and a loss for the allocation 'snip'",
            "none",
            "pass batches= and loss=, or use another allocation",
        )
        assert batches is not None
        assert loss is not None
        counts = snip(module, islice(batches, config.snip_batches), loss, density, select)
    else:
        counts = (uniform if config.allocation == "uniform" else erdos_renyi_kernel)(shapes, density)
    sizes = {name: parameter.numel() for name, parameter in parameters.items()}
    filled = {name: _filled(count, sizes[name], config.dense_from) for name, count in counts.items()}
    check(
        filled == counts or filled != sizes,
        f"a tensor of a density below {config.dense_from:g}, from which tensors are dense",
        f"none by the allocation {config.allocation!r}",
        "raise sparsity or dense_from",
    )
    return Masks.drawn(parameters, filled, config.seed)


def _filled(count: int, size: int, dense_from: float) -> int:
    return size if count >= dense_from * size else count


class SparseTraining:
    """Keeps a network sparse while any loop trains it.

    A hook on the optimizer sets the inactive weights to zero after every step that it really does, so that neither
    autocast, loss scaling, accumulation nor DDP can go round it. At the steps of the schedule the masks change by
    exact counts; a grown weight starts at zero, with the moments that the optimizer has kept for it (`moments`), and
    the averages that `follow` was told of take its first value at once. What was dropped and grown again at the same
    step goes on as it was.

    All ranks find the same masks without talking: weights and gradients are equal under DDP, ties go to the lower
    index, and random draws depend on seed, number of the change and parameter alone. With FSDP2 the weights of a
    tensor are gathered at the changes of its mask, and each rank holds whole masks.

    Growth by gradient ranks the gradients that the optimizer has just used: the accumulated, clipped ones.

    Args:
        model: Any module; DDP and `torch.compile` may be around it. Inactive weights are set to zero at once.
        optimizer: Over its parameters; accelerate's wrapper or timm's Lookahead may be around it.
        config: Densities, criteria and schedule.
        total_steps: Optimizer updates in the whole run.
        masks: First masks; made by `initial_masks` if none are given.
        batches: For the allocation "snip".
        loss: For the allocation "snip".
        select: Which parameters become sparse, instead of what the config says.

    Raises:
        InputError: If masks, optimizer and model do not belong together, or the optimizer runs no hooks.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: SparsityConfig,
        *,
        total_steps: int,
        masks: Masks | None = None,
        batches: Iterable[Any] | None = None,
        loss: Loss | None = None,
        select: Select | None = None,
    ) -> None:
        self.config = config
        self.schedule = UpdateSchedule(config=config, total_steps=total_steps)
        self._model = without_wrappers(model)
        self._optimizer = _inner(optimizer)
        if masks is None:
            masks = initial_masks(self._model, config, batches=batches, loss=loss, select=select)
        parameters = dict(self._model.named_parameters())
        masks.check_fit(parameters)
        self._masks = Masks({name: mask.to(parameters[name].device) for name, mask in masks.items()})
        self._parameters = {name: parameters[name] for name in masks}
        held = {id(parameter) for group in self._optimizer.param_groups for parameter in group["params"]}
        loose = [name for name, parameter in self._parameters.items() if id(parameter) not in held]
        check(
            not loose,
            "an optimizer over every sparse parameter",
            f"one without {', '.join(loose[:3])}",
            "build it from this model, after sharding, before sparse training",
        )
        masks.apply(self._model)
        self._averages: list[FollowedAverage] = []
        self._open: dict[str, Tensor] = {}
        self._close()
        self._step = 0
        self._handle = self._optimizer.register_step_post_hook(self._after_step)

    @property
    def masks(self) -> Masks:
        """The masks now; not to be changed."""
        return self._masks

    @property
    def step(self) -> int:
        """Steps that the optimizer has really done; fp16 loss scaling skips some."""
        return self._step

    def follow(self, average: nn.Module | Mapping[str, Tensor]) -> None:
        """Keep an average of the weights masked too, from now on.

        It is masked at once and whenever masks change; in between, an average of masked tensors is masked. After each
        step of the optimizer it is set to the weight wherever that is active and the average is still zero, so that
        what has grown is taken at once.

        Args:
            average: A copy of the model, or its state dict, whose tensors are updated in place, after each step.

        Raises:
            InputError: If it lacks a sparse parameter, or one has another shape.
        """
        tensors = dict(average.named_parameters()) if isinstance(average, nn.Module) else average
        self._masks.apply_to_tensors(tensors)
        self._averages.append(FollowedAverage({name: tensors[name] for name in self._masks}))

    def close(self) -> None:
        """Take the hook off the optimizer; weights stay as they are."""
        self._handle.remove()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the step and one bit for each sparse weight, as tensors on the CPU that safetensors can store."""
        packed = {f"masks.{name}": bits for name, bits in self._masks.state_dict().items()}
        return {"step": torch.tensor(self._step), **packed}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` gave; weights, moments and averages are restored by whoever saved them.

        Args:
            state: For the same model.

        Raises:
            InputError: If it is for another model.
        """
        check("step" in state, "the state of a sparse training", "one without its step", "use what state_dict() gave")
        self._masks.load_state_dict(
            {name.removeprefix("masks."): bits for name, bits in state.items() if name != "step"}
        )
        self._step = int(state["step"])
        self._close()
        self._masks.apply_to_tensors(self._parameters)
        for average in self._averages:
            self._masks.apply_to_tensors(average.tensors)
            average.reopen()

    def check_ranks(self) -> None:
        """Compare the masks of all processes by a checksum; called on all of them, for instance at checkpoints.

        Raises:
            RunError: If they differ.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return
        device = next(iter(self._parameters.values())).device
        sums = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=device)
        sums[dist.get_rank()] = self._masks.checksum
        dist.all_reduce(sums)
        if len(set(sums.tolist())) > 1:
            raise RunError(
                f"The masks differ between the {len(sums)} processes: train them with equal weights and gradients "
                "(DDP), and resume from the last checkpoint."
            )

    def _close(self) -> None:
        for name, parameter in self._parameters.items():
            self._open[name] = open_bits(share_of(self._masks[name], parameter), parameter)

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, args: object, keywords: object) -> None:
        self._step += 1
        if self.config.grow in ("momentum", "momentum_neuron"):
            self._check_momentum()
        for name, parameter in self._parameters.items():
            blank(local(parameter), self._open[name])
            for value in blanked_at_steps(self._state(parameter), parameter, self.config):
                blank(local(value), self._open[name])
            for average in self._averages:
                average.take(name, parameter, self._masks[name])
        if self.schedule.is_update(self._step):
            self._change_masks(self.schedule.fraction(self._step))

    def _change_masks(self, fraction: float) -> None:
        update = self.schedule.updates_before(self._step)
        for index, (name, parameter) in enumerate(self._parameters.items()):
            evidence = self._evidence(parameter)
            changed = exchange(
                whole(parameter),
                self._masks[name],
                fraction,
                prune=self.config.prune,
                grow=self.config.grow,
                generator=draw(self.config.seed, update, index),
                evidence=None if evidence is None else whole(evidence),
            )
            self._masks.replace(name, changed.mask)
            self._open[name] = open_bits(share_of(changed.mask, parameter), parameter)
            blank(local(parameter), self._open[name])
            for value in blanked_at_steps(self._state(parameter), parameter, self.config):
                blank(local(value), self._open[name])
            unchanged = open_bits(~share_of(changed.reset, parameter), parameter)
            for value in blanked_at_changes(self._state(parameter), parameter, self.config):
                blank(local(value), unchanged)
            for average in self._averages:
                average.drop(name, changed.mask)

    def _evidence(self, parameter: Tensor) -> Tensor | None:
        if self.config.grow == "gradient":
            return parameter.grad
        return None if self.config.grow == "random" else momentum_of(self._state(parameter))

    def _state(self, parameter: Tensor) -> Mapping[str, Any]:
        return self._optimizer.state.get(parameter, {})

    def _check_momentum(self) -> None:
        states = [self._optimizer.state[p] for p in self._parameters.values() if p in self._optimizer.state]
        check(
            not states or any(momentum_of(state) is not None for state in states),
            f"an optimizer with a first moment ({' or '.join(FIRST_MOMENTS)}) for growth by momentum",
            type(self._optimizer).__name__,
            "use AdamW or SGD with momentum, or another grow",
        )


def _inner(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the optimizer that changes the weights, and whose step runs hooks."""
    while True:
        inner = next((part for name in _INNER if (part := vars(optimizer).get(name)) is not None), None)
        if not isinstance(inner, torch.optim.Optimizer):
            break
        optimizer = inner
    check(
        getattr(type(optimizer).step, "hooked", False) is True,
        "an optimizer whose step runs the hooks of torch.optim.Optimizer",
        f"{type(optimizer).__name__}, which does not",
        "call super().__init__() in its constructor, or use another one",
    )
    return optimizer
