"""The way back from a merged network: what it does not hold of its branched form, kept beside it.

Branches cannot be told apart in their sum, so they are recorded at the merge or lost.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from widefield._core.checks import check

_HEADER = "widefield-unmerge"


@dataclass(frozen=True, kw_only=True)
class UnmergeInfo:
    """What turns the state dict of one merged network, as it was merged, into that of its branched form."""

    tensors: Mapping[str, Tensor]
    """Those of the branched form that the merged one does not hold under the same name, bit for bit."""
    names: tuple[str, ...]
    """All tensors of the branched form, in order."""
    merged_digest: str
    """`digest` of the merged state dict."""

    def header(self) -> dict[str, str]:
        """Return all but the tensors as strings for the header of their file."""
        return {_HEADER: json.dumps({"names": self.names, "merged_digest": self.merged_digest})}

    @classmethod
    def from_file(cls, tensors: Mapping[str, Tensor], header: Mapping[str, str], source: str) -> UnmergeInfo:
        """Return what was written as `tensors` with `header`.

        Args:
            tensors: The tensors of the file.
            header: The strings of its header.
            source: What the file is called, for the message.

        Raises:
            InputError: If the file is of another kind.
        """
        check(
            _HEADER in header,
            "a file that keeps what a merge leaves out",
            f"{source}, which is of another kind",
            "name the merged checkpoint whose info file lies beside it",
        )
        stated = cast("dict[str, Any]", json.loads(header[_HEADER]))
        return cls(
            tensors=dict(tensors), names=tuple(map(str, stated["names"])), merged_digest=str(stated["merged_digest"])
        )


def unmerge_info(branched: Mapping[str, Tensor], merged: Mapping[str, Tensor]) -> UnmergeInfo:
    """Return what is needed to go back from a merged network to its branched form.

    Args:
        branched: State dict before the merge; copies, if the merge may change tensors in place.
        merged: State dict after it.
    """
    kept = {name: tensor for name, tensor in branched.items() if name not in merged or not _equal(tensor, merged[name])}
    return UnmergeInfo(tensors=kept, names=tuple(branched), merged_digest=digest(merged))


def unmerge(merged: Mapping[str, Tensor], info: UnmergeInfo) -> dict[str, Tensor]:
    """Return the state dict of the branched form, bit for bit.

    Args:
        merged: State dict of the merged network.
        info: What `unmerge_info` returned when it was merged.

    Raises:
        InputError: If the merged weights are not those of that merge: what they have learned since has no place in
            the branches.
    """
    check(
        digest(merged) == info.merged_digest,
        "the merged weights as they came from the merge",
        "others (trained further, converted, or of another merge)",
        "continue with the merged form, since its branches cannot be told apart any more",
    )
    return {name: info.tensors[name] if name in info.tensors else merged[name] for name in info.names}


def digest(state: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 over names, dtypes, shapes and bits of a state dict, whatever its order and devices."""
    sum_ = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        sum_.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sum_.update(_bits(tensor).numpy().data)
    return sum_.hexdigest()


def _equal(first: Tensor, second: Tensor) -> bool:
    is_alike = first.dtype == second.dtype and first.shape == second.shape
    return is_alike and torch.equal(_bits(first), _bits(second))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
