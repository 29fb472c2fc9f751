"""A student and the 1x1 convolutions that bring its feature maps to the teacher's widths, trained as one module."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from widefield._core.checks import check
from widefield.tasks.distillation.features import Answer, answer, feature_shapes, stages_at

_PREFIX = "student."
_ADAPTERS = "adapters"


class AdaptedStudent(nn.Module):
    """A classifier with adapters; in training mode it returns logits and adapted features, else logits alone.

    Optimizer, weight averaging and checkpoints hold the adapters with the student, and only `forward` is called, so
    that a run with several processes synchronises both. The adapters are of no use after the run: `student_weights`
    leaves them out.

    Args:
        student: A classifier with timm's interface.
        teacher: The network whose features are matched.
        reductions: Strides of the feature maps.
        image_size: Height and width of the images.

    Raises:
        InputError: If one of the two has no such feature map, or the sizes of the maps differ.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, reductions: Sequence[int], image_size: int) -> None:
        super().__init__()
        self.student = student
        self.stages = stages_at(student, reductions)
        own = feature_shapes(student, self.stages, image_size)
        wanted = feature_shapes(teacher, stages_at(teacher, reductions), image_size)
        for reduction, mine, theirs in zip(reductions, own, wanted, strict=True):
            check(
                mine[1:] == theirs[1:],
                f"feature maps of {mine[1]}x{mine[2]} at stride {reduction} from the teacher, as the student has them",
                f"{theirs[1]}x{theirs[2]}",
                "choose other distillation.reductions, or an image size that is a multiple of 32",
            )
        like = next(student.parameters())
        self.adapters = nn.ModuleDict(
            {
                str(reduction): nn.Conv2d(mine[0], theirs[0], 1, device=like.device, dtype=like.dtype)
                for reduction, mine, theirs in zip(reductions, own, wanted, strict=True)
            }
        )

    def forward(self, images: Tensor) -> Answer | Tensor:
        """(N, 3, H, W) -> logits (N, classes), in training mode with the adapted features (N, C, H', W')."""
        if not self.training:
            return cast("Tensor", self.student(images))
        logits, features = answer(self.student, images, self.stages)
        adapted = (adapter(x) for adapter, x in zip(self.adapters.values(), features, strict=True))
        return Answer(logits, tuple(adapted))

    def no_weight_decay(self) -> set[str]:
        """Return the names of the student's parameters without weight decay."""
        names = getattr(self.student, "no_weight_decay", set)()
        return {f"{_PREFIX}{name}" for name in names}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the student's layers by the names that they have here; the adapters belong to the topmost."""
        matcher: Mapping[str, Any] = cast("Any", self.student).group_matcher(coarse=coarse)
        return {
            group: pattern
            if pattern is None
            else _prefixed(pattern)
            if isinstance(pattern, str)
            else [(_prefixed(part), order) for part, order in pattern]
            for group, pattern in matcher.items()
        }

    def layer_decay_ids(self) -> dict[str, int]:
        """Return the student's places of its layers, by the names that they have here; the adapters' is the topmost."""
        from timm.models import group_parameters

        layers = cast("dict[str, int]", group_parameters(self, self.group_matcher(), reverse=True))
        if not hasattr(self.student, "layer_decay_ids"):
            return layers
        own: Mapping[str, int] = cast("Any", self.student).layer_decay_ids()
        return {name: own.get(name.removeprefix(_PREFIX), max(own.values())) for name in layers}


def student_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the student among those of what was trained.

    Args:
        model: What was trained: a student, or one with adapters.
        weights: State dict of it.
    """
    if not isinstance(model, AdaptedStudent):
        return dict(weights)
    return {name.removeprefix(_PREFIX): value for name, value in weights.items() if name.startswith(_PREFIX)}


def student_patterns(model: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """Return patterns of the student's module names as they are among those of what was trained.

    Args:
        model: What is trained: a student, or one with adapters.
        patterns: Such as "stages.2.blocks.*"; those that name the student or its adapters are kept.
    """
    if not isinstance(model, AdaptedStudent):
        return tuple(patterns)
    own = (_PREFIX.rstrip("."), _ADAPTERS)
    return tuple(pattern if pattern.split(".")[0] in own else f"{_PREFIX}{pattern}" for pattern in patterns)


def _prefixed(pattern: str) -> str:
    # timm matches from the start of a name, so that each "^" outside of brackets says nothing more.
    free = re.sub(r"(?<![\\\[])\^", "", pattern)
    return rf"{re.escape(_PREFIX)}(?:{free})"
