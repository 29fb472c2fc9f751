"""What a student learns from its teacher, as a frozen value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from widefield._core.checks import check

Method = Literal["kd", "nkd", "feature"]
FeatureLoss = Literal["smooth_l1", "mse", "standardised_mse"]


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """Distillation, such as from a large-kernel teacher to a small-kernel student (Huang et al., ICML 2023).

    The loss is ``target_weight`` times that of the student alone, plus the loss of each method times its weight.

    The options of the authors' code in these terms: ``KD`` is "kd" with ``kd_weight`` alpha, ``target_weight``
    1 - alpha and ``temperature`` T. ``NKD`` is "nkd" alone: ``target_weight`` 0, all of its weights and its temperature
    1, whatever ``--T`` and ``--alpha`` say, for these reach "kd" only. ``FD`` adds "feature" with ``feature_weight``
    lr_fd, to a ``target_weight`` of 1 where it stands alone.
    """

    teacher: str | None = None
    """A run folder, a classifier file or a published checkpoint with the teacher's weights; None is off."""

    teacher_model: str | None = None
    """Name of the teacher's model, for a file that neither says it nor is recognised."""

    methods: tuple[Method, ...] = ("nkd",)
    """What is matched, one or more of: the softened outputs ("kd"), target and normalised other classes ("nkd"), and
    feature maps ("feature"). Their losses are added up."""

    target_weight: float = 1.0
    """Weight of the loss that the student would have alone; 0 leaves it out."""

    kd_weight: float = 1.0
    """Weight of the loss of "kd", where it is among the methods."""

    nkd_weight: float = 1.0
    """Weight of the loss of "nkd", where it is among the methods."""

    feature_weight: float = 1.0
    """Weight of the loss of "feature", where it is among the methods."""

    temperature: float = 1.0
    """What "kd" divides logits by before the softmax."""

    nkd_temperature: float = 1.0
    """What "nkd" divides the logits of the non-target classes by."""

    non_target_weight: float = 1.5
    """Gamma of "nkd": weight of the non-target classes beside the target class; 1 in the authors' code."""

    feature_loss: FeatureLoss = "smooth_l1"
    """How "feature" compares maps: as published, the teacher's raw features by a smooth L1 loss, quadratic below
    ``feature_beta``, or by the mean squared error ("mse"); or that of standardised ones ("standardised_mse"), which
    does not depend on the scale of the teacher's features."""

    feature_beta: float = 2.0
    """Where "smooth_l1" goes over from a parabola to a line, in units of the teacher's features."""

    reductions: tuple[int, ...] = (32,)
    """Strides of the feature maps that "feature" matches, as in timm's `feature_info`: 4, 8, 16, 32."""

    def __post_init__(self) -> None:
        check(
            len(self.methods) > 0 and len(set(self.methods)) == len(self.methods),
            "one or more different distillation.methods",
            f"{self.methods}",
            "name some of kd, nkd and feature, each once",
        )
        for name in ("temperature", "nkd_temperature", "feature_beta"):
            value = getattr(self, name)
            check(0 < value < math.inf, f"a positive distillation.{name}", f"{value:g}", "use 1 or a bit more")
        for name in ("target_weight", "kd_weight", "nkd_weight", "feature_weight", "non_target_weight"):
            value = getattr(self, name)
            check(0 <= value < math.inf, f"distillation.{name} to be at least 0 and finite", f"{value:g}", "change it")
        check(
            self.target_weight + sum(self.weights.values()) > 0,
            "distillation that trains on something",
            f"target_weight 0 and no weight for {' and '.join(self.methods)}",
            "raise one of them",
        )
        check(
            len(self.reductions) > 0 and len(set(self.reductions)) == len(self.reductions),
            "one or more different strides as distillation.reductions",
            f"{self.reductions}",
            "name some of 4, 8, 16 and 32, each once",
        )

    @property
    def weights(self) -> dict[Method, float]:
        """Weight of the loss of each method."""
        known: dict[Method, float] = {
            "kd": self.kd_weight,
            "nkd": self.nkd_weight,
            "feature": self.feature_weight,
        }
        return {method: known[method] for method in self.methods}

    @property
    def matches_features(self) -> bool:
        """Whether feature maps are among what is matched, so that the student gets adapters."""
        return "feature" in self.methods
