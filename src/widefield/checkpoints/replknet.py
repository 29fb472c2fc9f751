"""Key names of the published RepLKNet state dicts (branched and merged) and ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from widefield.checkpoints.keymap import Rule, rename

Value = TypeVar("Value")

_BLOCK = "stages.<s>.blocks.<b>"

RULES = (
    Rule("stem.<i>.conv.<rest>", "stem.<i>.conv.<rest>"),
    Rule("stem.<i>.bn.<rest>", "stem.<i>.norm.<rest>"),
    Rule("stages.<s>.blocks.<b even>.prelkb_bn.<rest>", "stages.<s>.blocks.<b even>.norm.<rest>"),
    Rule("stages.<s>.blocks.<b odd>.preffn_bn.<rest>", "stages.<s>.blocks.<b odd>.norm.<rest>"),
    Rule(f"{_BLOCK}.pw<n>.conv.<rest>", f"{_BLOCK}.conv<n>.conv.<rest>"),
    Rule(f"{_BLOCK}.pw<n>.bn.<rest>", f"{_BLOCK}.conv<n>.norm.<rest>"),
    Rule(f"{_BLOCK}.large_kernel.lkb_origin.conv.<rest>", f"{_BLOCK}.large_kernel.large.conv.<rest>"),
    Rule(f"{_BLOCK}.large_kernel.lkb_origin.bn.<rest>", f"{_BLOCK}.large_kernel.large.norm.<rest>"),
    Rule(f"{_BLOCK}.large_kernel.small_conv.conv.<rest>", f"{_BLOCK}.large_kernel.small.conv.<rest>"),
    Rule(f"{_BLOCK}.large_kernel.small_conv.bn.<rest>", f"{_BLOCK}.large_kernel.small.norm.<rest>"),
    Rule(f"{_BLOCK}.large_kernel.lkb_reparam.<rest>", f"{_BLOCK}.large_kernel.merged.<rest>"),
    Rule("transitions.<i>.<j>.conv.<rest>", "stages.<i+1>.downsample.<j>.conv.<rest>"),
    Rule("transitions.<i>.<j>.bn.<rest>", "stages.<i+1>.downsample.<j>.norm.<rest>"),
    # With "norm_intermediate_features", as in the published XL configurations for segmentation and detection.
    Rule("stages.<s>.norm.<rest>", "feature_norms.<s>.<rest>"),
    Rule("norm.<rest>", "norm.<rest>"),
    Rule("head.<rest>", "head.fc.<rest>"),
)


def is_published(state: Mapping[str, object]) -> bool:
    """Whether the keys are those of a published RepLKNet."""
    return any(".prelkb_bn." in key for key in state)


def to_widefield(state: Mapping[str, Value]) -> dict[str, Value]:
    """Rename a published state dict to our names; one of ours is returned as it is.

    Raises:
        InputError: If a published state dict has a key that RepLKNet has not.
    """
    return rename(state, RULES, to_ours=True, source="the published RepLKNet") if is_published(state) else dict(state)


def to_published(state: Mapping[str, Value]) -> dict[str, Value]:
    """Rename a state dict of ours, branched or merged with ``where=`` the large kernels alone, to published names.

    Raises:
        InputError: If it has a key that the published networks have no name for.
    """
    return rename(state, RULES, to_ours=False, source="our RepLKNet")
