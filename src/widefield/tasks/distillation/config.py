"""What a student learns from its teacher, as a frozen value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from widefield._core.checks import check


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """Distillation, such as from a large-kernel teacher to a small-kernel student (Huang et al., ICML 2023)."""

    teacher: str | None = None
    """A run folder, a classifier file or a published checkpoint with the teacher's weights; None is off."""

    teacher_model: str | None = None
    """Name of the teacher's model, for a file that neither says it nor is recognised."""

    method: Literal["kd", "nkd", "feature"] = "nkd"
    """What is matched: the softened outputs ("kd"), target and normalised other classes ("nkd"), or feature maps."""

    target_weight: float = 1.0
    """Weight of the loss that the student would have alone."""

    weight: float = 1.0
    """Weight of the distillation loss."""

    temperature: float = 1.0
    """What logits are divided by before the softmax, for "kd" and the non-target classes of "nkd"."""

    non_target_weight: float = 1.5
    """Gamma of "nkd": weight of the non-target classes beside the target class."""

    reductions: tuple[int, ...] = (32,)
    """Strides of the feature maps that "feature" matches, as in timm's `feature_info`: 4, 8, 16, 32."""

    def __post_init__(self) -> None:
        check(
            self.temperature > 0, "a positive distillation.temperature", f"{self.temperature:g}", "use 1 or a bit more"
        )
        for name in ("target_weight", "weight", "non_target_weight"):
            value = getattr(self, name)
            check(value >= 0, f"distillation.{name} to be at least 0", f"{value:g}", "raise it")
        check(
            len(self.reductions) > 0 and len(set(self.reductions)) == len(self.reductions),
            "one or more different strides as distillation.reductions",
            f"{self.reductions}",
            "name some of 4, 8, 16 and 32, each once",
        )
