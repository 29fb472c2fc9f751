"""The range of activations during training, module by module, to find where a network overflows."""

from __future__ import annotations

import logging
import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from widefield._core.checks import check
from widefield._core.errors import RunError
from widefield.engine.module_selection import select_modules

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch.utils.hooks import RemovableHandle

    from widefield.engine.config import TrainerConfig
    from widefield.engine.protocol import RunContext

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ActivationMonitorConfig:
    """Which activations are watched, how often, and from what size on they are a reason to warn."""

    modules: tuple[str, ...] = ("stages.*",)
    """Names of the modules whose outputs are watched; a star stands for anything within one part between dots."""

    every_steps: int = 50
    """Forward passes in training mode from one that is watched to the next; batches that are accumulated count each."""

    threshold: float = 1e4
    """Largest magnitude without a warning; fp16 ends at 65504."""

    def __post_init__(self) -> None:
        check(bool(self.modules), "modules to monitor", "none", "name some, such as stages.*")
        check(self.every_steps >= 1, "every_steps to be at least 1", f"{self.every_steps}", "raise it")
        check(self.threshold > 0, "a positive threshold", f"{self.threshold:g}", "raise it")


class ActivationMonitor:
    """Extension of a run that records the largest magnitude of each watched module's output.

    Networks with large kernels can blow up deep inside while their inputs look harmless, as UniRepLKNet does on images
    far from the shape it was trained on; the loss then shows only that it is too late. `metrics.csv` gets a column
    `activation_max.MODULE` for each epoch, infinite where a value was not finite, and the first time that a module
    crosses the threshold a warning names it. Where several outputs of a pass are not finite, it is the first, from
    which the others have it. What helps, in this order: `trainer.clip_norm`, a longer warmup,
    `trainer.float32_modules` for the module that is named if the run is under autocast, and a norm before it.

    `trainer.monitor_activations` puts one that sees every pass into a run. A forward pass that is not watched costs one
    call of a hook on the model; one that is watched costs a pass over each output and one read from the device.

    Args:
        config: What is watched.
    """

    name = "activation_monitor"
    is_required = False

    def __init__(self, config: ActivationMonitorConfig) -> None:
        self.config = config
        self._context: RunContext | None = None
        self._forwards = 0
        self._maxima: dict[str, float] = {}
        self._warned: set[str] = set()
        self._culprit: str | None = None
        self._seen: dict[str, Tensor] = {}
        self._watched: dict[str, nn.Module] = {}
        self._handles: list[RemovableHandle] = []
        self._passing: list[RemovableHandle] = []

    def started(self, context: RunContext) -> None:
        """Put hooks on the model.

        Raises:
            InputError: If a name matches no module, or the model is compiled.
        """
        check(
            not context.is_compiled,
            "a run without trainer.compile for the activation monitor",
            "one with it",
            "turn one of them off",
        )
        self._context = context
        self._watched = select_modules(context.model, self.config.modules)
        self._forwards, self._maxima = 0, dict.fromkeys(self._watched, 0.0)
        self._warned.clear()
        self._culprit = None
        self._handles = [
            context.model.register_forward_pre_hook(self._enter),
            context.model.register_forward_hook(self._leave, always_call=True),
        ]

    def after_step(self, step: int) -> None:
        """Do nothing: hooks see everything."""

    def state_dict(self) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        """Return the count of forward passes and the maxima of the epoch so far."""
        return {}, {"forwards": self._forwards, "maxima": self._reduced(), "warned": sorted(self._warned)}

    def load_state_dict(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Go on from there; modules that are watched anew start at zero."""
        self._forwards, self._warned = int(state["forwards"]), set(state["warned"])
        self._maxima = {name: float(state["maxima"].get(name, 0.0)) for name in self._watched}

    def metrics(self) -> Mapping[str, float]:
        """Return the maxima of the epoch over all ranks, and begin the next."""
        reduced = self._reduced()
        self._maxima = dict.fromkeys(self._watched, 0.0)
        return {f"activation_max.{name}": value for name, value in reduced.items()}

    def closed(self) -> None:
        """Take the hooks off."""
        for handle in (*self._handles, *self._passing):
            handle.remove()
        self._handles, self._passing = [], []
        self._watched, self._context = {}, None

    @contextmanager
    def naming_culprits(self) -> Iterator[None]:
        """Within a step, add the first module of this rank whose output was not finite to the error that ends the run.

        Raises:
            RunError: The one that was raised within, with the name.
        """
        self._culprit = None
        try:
            yield
        except RunError as error:
            if self._culprit is None:
                raise
            raise RunError(
                f"{error} The first output that was not finite is that of {self._culprit}: name it in "
                "trainer.float32_modules if the run is under autocast, or put a norm before it."
            ) from error

    def _reduced(self) -> dict[str, float]:
        if self._context is None or self._context.world_size == 1:
            return dict(self._maxima)
        device = next(self._context.model.parameters()).device
        values = torch.tensor(list(self._maxima.values()), dtype=torch.float64, device=device)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return dict(zip(self._maxima, values.tolist(), strict=True))

    def _enter(self, model: nn.Module, args: Any) -> None:
        if not model.training:
            return
        self._forwards += 1
        if self._forwards % self.config.every_steps == 0:
            self._passing = [
                module.register_forward_hook(lambda module, args, output, name=name: self._note(name, output))
                for name, module in self._watched.items()
            ]

    def _leave(self, model: nn.Module, args: Any, output: Any) -> None:
        for handle in self._passing:
            handle.remove()
        if self._passing:
            self._passing = []
            self._read()

    @torch.no_grad()
    def _note(self, name: str, output: Any) -> None:
        for part in tree_leaves(output):
            if isinstance(part, Tensor) and part.is_floating_point() and part.numel():
                least, most = torch.aminmax(part.detach())
                # Both carry a NaN on, where a comparison with the maximum so far would lose it.
                size = torch.maximum(most.float(), -least.float())
                self._seen[name] = torch.maximum(self._seen[name], size) if name in self._seen else size

    def _read(self) -> None:
        if not self._seen:
            return
        sizes = torch.stack(list(self._seen.values())).tolist()
        is_spoilt = False
        for name, size in zip(self._seen, sizes, strict=True):
            finite = math.isfinite(size)
            self._maxima[name] = max(self._maxima[name], size if finite else math.inf)
            if not finite and self._culprit is None:
                self._culprit = f"{name} ({type(self._watched[name]).__name__})"
            is_odd = size > self.config.threshold if finite else not is_spoilt
            is_spoilt = is_spoilt or not finite
            if is_odd and name not in self._warned:
                self._warned.add(name)
                logger.warning(
                    "the output of %s (%s) %s: lower optimizer.lr, set trainer.clip_norm, or name it in "
                    "trainer.float32_modules if the run is under autocast",
                    name,
                    type(self._watched[name]).__name__,
                    f"reaches {size:.3g}, above {self.config.threshold:g}" if finite else "is not finite",
                )
        self._seen.clear()


def activation_monitor(config: TrainerConfig) -> ActivationMonitor | None:
    """Return the monitor of every pass that a run asks for, if it does."""
    if not config.monitor_activations:
        return None
    return ActivationMonitor(
        ActivationMonitorConfig(modules=config.monitored_modules, every_steps=1, threshold=config.activation_limit)
    )
