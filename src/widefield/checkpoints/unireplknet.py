"""Key names of the published UniRepLKNet state dicts (branched and merged) and ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from widefield._core.checks import check
from widefield.checkpoints.keymap import Rule, rename

Value = TypeVar("Value")

_THEIRS, _OURS = "stages.<s>.<b>", "stages.<s>.blocks.<b>"

RULES = (
    Rule("downsample_layers.0.<rest>", "stem.<rest>"),
    Rule("downsample_layers.<s+1>.<rest>", "stages.<s+1>.downsample.<rest>"),
    Rule(f"{_THEIRS}.gamma", f"{_OURS}.gamma"),
    # A block with a small kernel; a large one has branches, which merge into "lk_origin".
    Rule(f"{_THEIRS}.dwconv.weight", f"{_OURS}.large_kernel.weight"),
    Rule(f"{_THEIRS}.dwconv.bias", f"{_OURS}.large_kernel.bias"),
    Rule(f"{_THEIRS}.dwconv.lk_origin.<rest>", f"{_OURS}.large_kernel.large.conv.<rest>"),
    Rule(f"{_THEIRS}.dwconv.origin_bn.<rest>", f"{_OURS}.large_kernel.large.norm.<rest>"),
    Rule(f"{_THEIRS}.dwconv.dil_conv_k<k>_<r>.<rest>", f"{_OURS}.large_kernel.dilated.k<k>_r<r>.conv.<rest>"),
    Rule(f"{_THEIRS}.dwconv.dil_bn_k<k>_<r>.<rest>", f"{_OURS}.large_kernel.dilated.k<k>_r<r>.norm.<rest>"),
    Rule(f"{_THEIRS}.norm.<rest>", f"{_OURS}.norm.<rest>"),
    Rule(f"{_THEIRS}.se.<rest>", f"{_OURS}.squeeze_excite.<rest>"),
    Rule(f"{_THEIRS}.pwconv1.1.<rest>", f"{_OURS}.fc1.<rest>"),
    Rule(f"{_THEIRS}.act.1.<rest>", f"{_OURS}.response_norm.<rest>"),
    Rule(f"{_THEIRS}.pwconv2.0.<rest>", f"{_OURS}.fc2.<rest>"),
    Rule(f"{_THEIRS}.pwconv2.2.<rest>", f"{_OURS}.final_norm.<rest>"),
    Rule("norm<i>.<rest>", "feature_norms.<i>.<rest>"),
    Rule("norm.<rest>", "norm.<rest>"),
    Rule("head.<rest>", "head.fc.<rest>"),
)


def is_published(state: Mapping[str, object]) -> bool:
    """Whether the keys are those of a published UniRepLKNet."""
    return any(".pwconv1.1." in key for key in state)


def to_widefield(state: Mapping[str, Value]) -> dict[str, Value]:
    """Rename a published state dict to our names; one of ours is returned as it is.

    Raises:
        InputError: If a published state dict has a key that UniRepLKNet has not.
    """
    if not is_published(state):
        return dict(state)
    return rename(state, RULES, to_ours=True, source="the published UniRepLKNet")


def to_published(state: Mapping[str, Value]) -> dict[str, Value]:
    """Rename a state dict of ours, branched or merged, to published names.

    Raises:
        InputError: If it has a key that the published networks have no name for, or lacks what they always have.
    """
    has_squeeze = any(".squeeze_excite." in key for key in state) or not any(".response_norm." in key for key in state)
    has_large = any(".large_kernel.large.norm." in key for key in state)
    has_dilated = any(re.search(r"\.dilated\.k\d+_r(?!1[._])", key) for key in state)
    check(
        has_squeeze and (has_dilated or not has_large),
        "a UniRepLKNet with squeeze-and-excitation and dilated branches, which the published code always makes",
        f"one without {'dilated branches' if has_squeeze else 'squeeze-and-excitation'}",
        "keep it under our names, which load_published() reads",
    )
    return rename(state, RULES, to_ours=False, source="our UniRepLKNet")
