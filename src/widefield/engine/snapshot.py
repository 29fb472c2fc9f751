"""A run at one step, as the tensors and the JSON state of a checkpoint, and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from widefield._core.checks import check
from widefield.engine.model_state import load_state, unique_state
from widefield.engine.optimizer_state import flatten_optimizer_state, restore_optimizer_state
from widefield.engine.random_state import restore_rng_state, rng_state
from widefield.engine.sharding import is_sharded, whole

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from accelerate import Accelerator
    from torch import Tensor, nn

    from widefield.engine.ema import ModelEma
    from widefield.engine.extensions import Extensions
    from widefield.engine.loss_record import LossRecord
    from widefield.engine.skipped_steps import SkippedSteps


@dataclass(kw_only=True)
class Progress:
    """How far a run has come."""

    epoch: int = 0
    """Epochs done."""

    batch: int = 0
    """Batches of the current epoch done, on each rank."""

    step: int = 0
    """Optimizer updates done."""

    lr: float = 0.0
    """Learning rate of the last of them."""

    history: list[dict[str, float]] = field(default_factory=list)
    """Rows of `metrics.csv`."""

    best_epoch: int | None = None
    """Epoch of the best weights, from 1."""

    best_step: int | None = None
    """Step of the best weights."""

    best_crc32: int | None = None
    """Checksum of their file, known to the main process."""

    seconds: float = 0.0
    """Time spent before the current process, or in all when the run is done."""

    epoch_seconds: float = 0.0
    """Time spent on the current epoch before the current process."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The parts of a run that a checkpoint holds."""

    model: nn.Module
    """The model without wrappers."""

    optimizer: torch.optim.Optimizer
    """Its optimizer, without accelerate's wrapper."""

    ema: ModelEma | None
    """The average of its weights, if there is one."""

    losses: LossRecord
    """The training loss, read up to the current step."""

    skipped: SkippedSteps | None
    """Counts of the steps that were skipped, if there may be any."""

    extensions: Extensions
    """What else takes part in the run."""

    accelerator: Accelerator
    """Gives the scale of fp16 losses, and gathers the random state of the ranks."""

    origin: Mapping[str, Any] = field(default_factory=dict)
    """What the run was made of, as JSON; kept for who resumes it, and not looked at here."""

    def take(self, progress: Progress) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and JSON state; called on all ranks.

        Args:
            progress: Where the run stands.
        """
        optimizer_tensors, optimizer_state = flatten_optimizer_state(self.optimizer, self.model)
        tensors = {f"model/{name}": tensor for name, tensor in unique_state(self.model).items()}
        if self.ema is not None:
            tensors |= {f"ema/{name}": tensor for name, tensor in unique_state(self.ema.module).items()}
        tensors |= {f"optimizer/{name}": tensor for name, tensor in optimizer_tensors.items()}
        extension_tensors, extension_states = self.extensions.take()
        tensors |= extension_tensors
        # A sharded run leaves the files that an unsharded one would leave; off the device, it may not fit there whole.
        tensors = {name: whole(tensor).cpu() if is_sharded(tensor) else tensor for name, tensor in tensors.items()}
        for name, tensor in rng_state().items():
            local = tensor.to(self.accelerator.device).unsqueeze(0)
            gathered: Any = self.accelerator.gather(local)
            tensors |= {f"rank{rank}/{name}": part for rank, part in enumerate(gathered)}
        scaler = self.accelerator.scaler
        state = {
            "format": 1,
            "ranks": self.accelerator.num_processes,
            **vars(progress),
            "losses": self.losses.state(),
            "optimizer": optimizer_state,
            "scaler": None if scaler is None else scaler.state_dict(),
            "skipped": {} if self.skipped is None else self.skipped.state(),
            "extensions": extension_states,
            "origin": dict(self.origin),
        }
        return tensors, state

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> tuple[Progress, dict[str, Tensor]]:
        """Set the parts to a checkpoint; the random state is returned, to be set when training goes on.

        Args:
            tensors: Tensors of the checkpoint.
            state: Its JSON state.

        Returns:
            Where the run stands, and the random state of this rank.

        Raises:
            InputError: If the checkpoint is of another model, optimizer, number of processes, average or extensions.
        """
        check(state.get("format") == 1, "a checkpoint of format 1", f"{state.get('format')}", "update widefield")
        ranks = self.accelerator.num_processes
        check(
            state["ranks"] == ranks,
            f"a run on {state['ranks']} process(es), as before",
            f"{ranks}",
            "resume with the same number of processes",
        )
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            parts.setdefault(part, {})[rest] = tensor
        load_state(self.model, parts["model"])
        check(
            ("ema" in parts) == (self.ema is not None),
            "the same ema.decay as before",
            f"one that is {'off' if self.ema is None else 'on'}",
            "resume with the same settings",
        )
        if self.ema is not None:
            load_state(self.ema.module, parts["ema"])
        restore_optimizer_state(self.optimizer, self.model, parts.get("optimizer", {}), state["optimizer"])
        self.losses.restore(state["losses"])
        if self.skipped is not None:
            self.skipped.restore(state.get("skipped", {}))
        self.extensions.restore(parts, state.get("extensions", {}))
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        progress = Progress(**{name: state[name] for name in vars(Progress()) if name in state})
        rng = parts[f"rank{self.accelerator.process_index}"]
        # It is set again when training goes on; what cannot be set is told now.
        restore_rng_state(rng)
        return progress, rng
