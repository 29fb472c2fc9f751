"""The extensions of a run, told together and kept together in its checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from widefield._core.checks import check

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from contextlib import ExitStack

    from torch import Tensor

    from widefield.engine.protocol import Extension, RunContext

_PREFIX = "extension."


class Extensions:
    """Calls extensions in their order.

    Args:
        extensions: Of different names.

    Raises:
        InputError: If a name is empty, has a slash in it, or comes twice.
    """

    def __init__(self, extensions: Sequence[Extension]) -> None:
        self._extensions = list(extensions)
        names = [extension.name for extension in extensions]
        odd = sorted({name for name in names if not name or "/" in name or names.count(name) > 1})
        check(
            not odd,
            "extensions of different names without slashes",
            f"{odd[0] if odd else ''!r} among {', '.join(map(repr, names))}",
            "rename one",
        )

    def started(self, context: RunContext, stack: ExitStack) -> None:
        """Tell each that the run starts, and put its end on `stack`."""
        for extension in self._extensions:
            extension.started(context)
            stack.callback(extension.closed)

    def after_step(self, step: int) -> None:
        """Tell each of an optimizer update."""
        for extension in self._extensions:
            extension.after_step(step)

    def metrics(self, taken: Collection[str]) -> dict[str, float]:
        """Return the metrics of all for the row of an epoch; called on all ranks.

        Args:
            taken: Names that the row already has.

        Raises:
            InputError: If a name is taken.
        """
        metrics: dict[str, float] = {}
        for extension in self._extensions:
            new = {name: float(value) for name, value in extension.metrics().items()}
            double = sorted(name for name in new if name in taken or name in metrics)
            check(
                not double,
                f"metrics of the extension {extension.name!r} with names of their own",
                ", ".join(double),
                "rename them there",
            )
            metrics |= new
        return metrics

    def take(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors, under prefixed names, and the JSON state of all; called on all ranks."""
        tensors: dict[str, Tensor] = {}
        states: dict[str, Any] = {}
        for extension in self._extensions:
            own, state = extension.state_dict()
            tensors |= {f"{_PREFIX}{extension.name}/{name}": tensor for name, tensor in own.items()}
            states[extension.name] = {"is_required": extension.is_required, "state": state}
        return tensors, states

    def restore(self, parts: Mapping[str, Mapping[str, Tensor]], states: Mapping[str, Any]) -> None:
        """Hand each what `take` got from it.

        Args:
            parts: Tensors of the checkpoint by what stands before the slash of their names.
            states: The JSON state that came with them.

        Raises:
            InputError: If a required extension has no state in the checkpoint, or the checkpoint has the state of a
                required one that does not take part now.
        """
        present = {extension.name for extension in self._extensions}
        lost = sorted(name for name, kept in states.items() if kept["is_required"] and name not in present)
        check(
            not lost,
            f"a run with the extension {lost[0] if lost else ''!r}, as before",
            "one without it",
            "resume with the same extensions",
        )
        for extension in self._extensions:
            known = extension.name in states
            check(
                known or not extension.is_required,
                f"a checkpoint with the state of the extension {extension.name!r}",
                "one without it",
                "resume without the extension, or start a new run with it",
            )
            if known:
                extension.load_state_dict(parts.get(f"{_PREFIX}{extension.name}", {}), states[extension.name]["state"])
