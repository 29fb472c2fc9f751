"""What an enlargement did to every convolution of a network."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class EnlargedLayer:
    """A convolution that has a large kernel now."""

    name: str
    method: str
    old_kernel_size: tuple[int, int]
    kernel_size: tuple[int, int]
    parameters_before: int
    parameters_after: int
    merged_parameters: int
    """Once the branches are merged."""


@dataclass(frozen=True, kw_only=True)
class SkippedLayer:
    """A convolution that was left as it is."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class EnlargeReport:
    """Every convolution of the network by name: enlarged, or left as it is and why. Counts are parameters."""

    layers: tuple[EnlargedLayer, ...]
    skipped: tuple[SkippedLayer, ...]
    parameters_before: int
    parameters_after: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings, lists and dicts for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"enlarged {len(self.layers)} convolutions: "
            f"{self.parameters_before:,} -> {self.parameters_after:,} parameters"
        ]
        lines += [
            f"  {layer.name}: {_size(layer.old_kernel_size)} -> {_size(layer.kernel_size)} {layer.method}, "
            f"{layer.parameters_before:,} -> {layer.parameters_after:,} parameters, {layer.merged_parameters:,} merged"
            for layer in self.layers
        ]
        reasons = Counter(layer.reason for layer in self.skipped)
        lines += [f"left as it is, {count} times: {reason}" for reason, count in reasons.items()]
        return "\n".join(lines)


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
