"""The certificate of a merge: what became of the parameters, and the error that was measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class UnitError:
    """Largest absolute difference between branched and merged output of one unit, over the largest absolute output."""

    name: str
    relative_error: float


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What a merge did, with the errors measured on one example.

    A relative error is max |merged - branched| / max |branched|; infinite if either has a value that is not finite.
    `unit_errors` are measured with the same input for both forms, so they do not add up along the network.
    """

    parameters_before: int
    parameters_after: int
    relative_error: float
    unit_errors: tuple[UnitError, ...]
    dtype: str
    example_shape: tuple[int, ...]

    @property
    def worst_unit(self) -> UnitError | None:
        """The unit with the largest error; none if nothing was left to merge."""
        return max(self.unit_errors, key=lambda unit: unit.relative_error, default=None)

    def as_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings, lists and dicts for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        worst = self.worst_unit
        lines = [
            f"merged {len(self.unit_errors)} units: {self.parameters_before:,} -> {self.parameters_after:,} parameters",
            f"relative error of the output {self.relative_error:.2e} ({self.dtype}, "
            f"input {'x'.join(map(str, self.example_shape))})",
        ]
        if worst is not None:
            lines.append(f"largest relative error of a unit {worst.relative_error:.2e} ({worst.name or 'the model'})")
        return "\n".join(lines)
