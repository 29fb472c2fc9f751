"""Key names of the published SLaK state dicts, decomposed and not, and ours.

The published code cannot merge a decomposed network, so that there are no names for what is merged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from widefield._core.checks import check
from widefield.checkpoints.keymap import Rule, rename

Value = TypeVar("Value")

_THEIRS, _OURS = "stages.<s>.<b>", "stages.<s>.blocks.<b>"

# The first of two names is the one that is written; LoRA1 and LoRA2 were Decom1 and Decom2 in a version of the code.
_BRANCHES = (
    ("LoRA1", "tall"),
    ("Decom1", "tall"),
    ("LoRA2", "wide"),
    ("Decom2", "wide"),
    ("lkb_origin", "large"),
    ("small_conv", "small"),
)

RULES = (
    Rule("downsample_layers.0.<i>.<rest>", "stem.<i>.<rest>"),
    Rule("downsample_layers.<i>.<j>.<rest>", "stages.<i>.downsample.<j>.<rest>"),
    *(
        rule
        for theirs, ours in _BRANCHES
        for rule in (
            Rule(f"{_THEIRS}.large_kernel.{theirs}.conv.weight", f"{_OURS}.large_kernel.{ours}.conv.weight"),
            Rule(f"{_THEIRS}.large_kernel.{theirs}.bn.<rest>", f"{_OURS}.large_kernel.{ours}.norm.<rest>"),
        )
    ),
    Rule(f"{_THEIRS}.norm.<rest>", f"{_OURS}.norm.<rest>"),
    Rule(f"{_THEIRS}.pwconv<n>.<rest>", f"{_OURS}.fc<n>.<rest>"),
    Rule(f"{_THEIRS}.gamma", f"{_OURS}.gamma"),
    Rule("norm<i>.<rest>", "feature_norms.<i>.<rest>"),
    Rule("norm.<rest>", "norm.<rest>"),
    Rule("head.<rest>", "head.fc.<rest>"),
)


def is_published(state: Mapping[str, object]) -> bool:
    """Whether the keys are those of a published SLaK."""
    is_convnext = any(key.startswith("downsample_layers.") for key in state)
    return is_convnext and any(".large_kernel." in key for key in state)


def to_widefield(state: Mapping[str, Value]) -> dict[str, Value]:
    """Rename a published state dict to our names; one of ours is returned as it is.

    Raises:
        InputError: If a published state dict has a key that SLaK has not.
    """
    return rename(state, RULES, to_ours=True, source="the published SLaK") if is_published(state) else dict(state)


def to_published(state: Mapping[str, Value]) -> dict[str, Value]:
    """Rename a branched state dict of ours to published names.

    Raises:
        InputError: If it is merged, or has a key that the published networks have no name for.
    """
    merged = next((key for key in state if ".large_kernel.merged" in key or key.endswith(".conv.bias")), None)
    check(
        merged is None,
        "a branched SLaK, since the published code has no merged form",
        f"a merged one (with {merged!r})",
        "take the state dict before merging",
    )
    return rename(state, RULES, to_ours=False, source="our SLaK")
