"""What network a state dict belongs to: widths, depths and kernel sizes, read from names and shapes alone.

A network has many tensors that tell the same number; where they disagree, most of them are believed, so that the one
that is wrong can be named by whoever compares the state dict with the network.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from widefield._core.checks import check
from widefield._core.errors import InputError
from widefield.checkpoints.layouts import Family

Form = Literal["branched", "merged"]
Shapes = Mapping[str, Sequence[int]]
Read = Callable[[Sequence[int]], int | None]

STAGES = range(4)

# For a kernel that is not there: the network is made with one, and whoever compares can name it.
_UNKNOWN = 13

_BRANCH = re.compile(r"k(\d+)_r(\d+)(_\d+)?")

# Of what a layer has once its branches or its norm are folded.
_MERGED = re.compile(r"\.large_kernel\.(merged(_tall|_wide)?\.|bias$)|\.conv\.bias$|\.fc2\.bias$")


def form_of(shapes: Shapes, family: Family) -> Form:
    """Say whether a state dict of ours is branched, or merged in whole or in part."""
    # The second linear layer of SLaK has a bias from the start, that of UniRepLKNet gets one.
    always = ".fc2.bias" if family == "slak" else None
    is_merged = any(_MERGED.search(key) for key in shapes if always is None or not key.endswith(always))
    return "merged" if is_merged else "branched"


def architecture_of(shapes: Shapes, family: Family, names: Mapping[str, str], source: str) -> dict[str, Any]:
    """Return the keyword arguments with which the family's class makes the network of a state dict.

    Args:
        shapes: Our names to shapes.
        family: The family.
        names: Our names to those of the state dict, for the message.
        source: What the state dict is said to be, for the message.

    Raises:
        InputError: If a part of the network is not there at all, or two tensors disagree and no third one decides.
    """
    reader = _Reader(shapes, names, source)
    return {"replknet": _replknet, "slak": _slak, "unireplknet": _unireplknet}[family](reader)


class _Reader:
    """Reads numbers off the shapes of a state dict of ours, by the vote of all tensors that have them."""

    def __init__(self, shapes: Shapes, names: Mapping[str, str], source: str) -> None:
        self.shapes = shapes
        self.names = names
        self.source = source
        self.blocks: dict[tuple[int, int], set[str]] = {}
        for key in shapes:
            match = re.match(r"stages\.(\d+)\.blocks\.(\d+)\.(.+)", key)
            if match:
                self.blocks.setdefault((int(match[1]), int(match[2])), set()).add(match[3])

    def has(self, pattern: str) -> bool:
        """Whether there is a tensor whose name fits."""
        return any(re.fullmatch(pattern, key) for key in self.shapes)

    def agreed(self, what: str, witnesses: Mapping[str, Read], default: int | None = None) -> int:
        """Return what most tensors say whose names fit a pattern; each pattern has its way to read a shape."""
        votes = self.votes(witnesses)
        if default is not None and not votes:
            return default
        self.check_whole(bool(votes), what)
        return self.decided(what, votes)

    def votes(self, witnesses: Mapping[str, Read]) -> dict[str, int]:
        """Return what each tensor says whose name fits a pattern and whose shape can be read."""
        votes: dict[str, int] = {}
        for pattern, read in witnesses.items():
            for key, shape in self.shapes.items():
                vote = read(shape) if re.fullmatch(pattern, key) else None
                if vote is not None:
                    votes[key] = vote
        return votes

    def decided(self, what: str, votes: Mapping[str, int]) -> int:
        """Return what most say."""
        (first, count), *rest = Counter(votes.values()).most_common()
        if not rest or rest[0][1] < count:
            return first
        one, other = (next(key for key, vote in votes.items() if vote == value) for value in (first, rest[0][0]))
        raise InputError(
            f"a state dict of {self.source} that agrees on {what}",
            f"{self.names[one]!r} {tuple(self.shapes[one])} beside {self.names[other]!r} {tuple(self.shapes[other])}",
            "copy or download it again",
        )

    def depth(self, stage: int) -> int:
        """Return how many blocks a stage has."""
        # Of a block there is more than a name or two, which would be misspelt names of another one.
        there = [index for (own, index), parts in self.blocks.items() if own == stage and len(parts) > 2]
        self.check_whole(bool(there), f"the blocks of stage {stage}")
        return max(there) + 1

    def check_whole(self, condition: bool, part: str) -> None:
        """Raise unless there is a part of the network."""
        check(condition, f"a complete state dict of {self.source}", f"one without {part}", "copy or download it again")


def _axis(axis: int) -> Read:
    return lambda shape: shape[axis] if len(shape) > axis else None


def _side(shape: Sequence[int]) -> int | None:
    is_kernel = len(shape) == 4 and shape[2] == shape[3] and shape[2] % 2 == 1
    return shape[2] if is_kernel else None


def _common(reader: _Reader, first_conv: str) -> dict[str, Any]:
    stem = reader.votes({first_conv: _axis(1)})
    head = reader.votes({r"head\.fc\.(weight|bias)": _axis(0)})
    return {
        "in_chans": next(iter(stem.values()), 3),
        "num_classes": reader.decided("the number of classes", head) if head else 0,
        "feature_norms": reader.has(r"feature_norms\.\d+\..+"),
    }


def _replknet(reader: _Reader) -> dict[str, Any]:
    channels: list[int] = []
    hidden: list[int] = []
    inner: list[int] = []
    kernel_sizes: list[int] = []
    depths: list[int] = []
    for stage in STAGES:
        every, even, odd = (rf"stages\.{stage}\.blocks\.\d*{digit}\." for digit in (r"\d", "[02468]", "[13579]"))
        first, second = r"conv1\.conv\.weight", r"conv2\.conv\.weight"
        kernel = rf"{even}large_kernel\.(large\.conv|merged)\.weight"
        depthwise = {f"{even}{first}": _axis(0), f"{even}{second}": _axis(1), kernel: _axis(0)}
        widths = {f"{every}{first}": _axis(1), f"{every}{second}": _axis(0)}
        channels.append(reader.agreed(f"the width of stage {stage}", widths))
        hidden.append(reader.agreed(f"the width of the large kernels of stage {stage}", depthwise))
        inner_widths = {f"{odd}{first}": _axis(0), f"{odd}{second}": _axis(1)}
        inner.append(reader.agreed(f"the inner width of stage {stage}", inner_widths))
        kernel_sizes.append(reader.agreed(f"the kernel size of stage {stage}", {kernel: _side}, _UNKNOWN))
        depths.append(-(-reader.depth(stage) // 2))
    return {
        "channels": tuple(channels),
        "depths": tuple(depths),
        "kernel_sizes": tuple(kernel_sizes),
        "small_kernel_size": _small_kernel_size(reader),
        "hidden_ratio": _ratio(channels, hidden, reader.source),
        "ffn_ratio": _ratio(channels, inner, reader.source),
        **_common(reader, r"stem\.0\.conv\.weight"),
    }


def _slak(reader: _Reader) -> dict[str, Any]:
    kernel = r"\d+\.blocks\.\d+\.large_kernel"
    is_decomposed = reader.has(rf"stages\.{kernel}\.(merged_)?tall\..+")
    kernel_sizes: list[int] = []
    for stage in STAGES:
        own = rf"stages\.{stage}\.blocks\.\d+\.large_kernel"
        witnesses = {rf"{own}\.(large\.conv|merged)\.weight": _side}
        if is_decomposed:
            tall, wide = (rf"{own}\.(merged_{name}|{name}\.conv)\.weight" for name in ("tall", "wide"))
            witnesses = {tall: _axis(2), wide: _axis(3)}
        kernel_sizes.append(reader.agreed(f"the kernel size of stage {stage}", witnesses, _UNKNOWN))
    small = _small_kernel_size(reader)
    if is_decomposed:
        tall, wide = (rf"stages\.{kernel}\.(merged_{name}|{name}\.conv)\.weight" for name in ("tall", "wide"))
        small = reader.agreed("the width of the stripes", {tall: _axis(3), wide: _axis(2)})
    return {
        **_linear_widths(reader),
        "kernel_sizes": tuple(kernel_sizes),
        "small_kernel_size": small,
        "decomposed": is_decomposed,
        "layer_scale": _layer_scale(reader, "slak"),
        **_branch_norm(reader),
        **_common(reader, r"stem\.0\.weight"),
    }


def _unireplknet(reader: _Reader) -> dict[str, Any]:
    widths = _linear_widths(reader)
    kernels = _block_kernels(reader)
    return {
        **widths,
        "kernel_sizes": tuple(
            tuple(_block_kernel_size(reader, kernels, (stage, block)) for block in range(depth))
            for stage, depth in zip(STAGES, widths["depths"], strict=True)
        ),
        "layer_scale": _layer_scale(reader, "unireplknet"),
        **_extra_structure(reader),
        **_branch_set(reader, kernels),
        **_common(reader, r"stem\.0\.weight"),
    }


def _linear_widths(reader: _Reader) -> dict[str, Any]:
    """Widths and depths of a family whose blocks end in two linear layers."""
    channels: list[int] = []
    inner: list[int] = []
    for stage in STAGES:
        first, second = (rf"stages\.{stage}\.blocks\.\d+\.fc{layer}\.weight" for layer in (1, 2))
        channels.append(reader.agreed(f"the width of stage {stage}", {first: _axis(1), second: _axis(0)}))
        inner.append(reader.agreed(f"the inner width of stage {stage}", {first: _axis(0), second: _axis(1)}))
    return {
        "channels": tuple(channels),
        "depths": tuple(reader.depth(stage) for stage in STAGES),
        "ffn_ratio": _ratio(channels, inner, reader.source),
    }


def _layer_scale(reader: _Reader, family: Family) -> float | None:
    # Once it is folded there is no telling whether there was one.
    is_open = form_of(reader.shapes, family) == "merged"
    return 1e-6 if is_open or reader.has(r"stages\.\d+\.blocks\.\d+\.gamma") else None


def _branch_norm(reader: _Reader) -> dict[str, bool]:
    """Nothing where the branches have norms, or where they are merged and there is no telling."""
    names = r"stages\.\d+\.blocks\.\d+\.large_kernel\.(tall|wide|large|small)\."
    return {"branch_norm": False} if reader.has(names + "conv.+") and not reader.has(names + "norm.+") else {}


def _extra_structure(reader: _Reader) -> dict[str, str]:
    """Nothing where it is the published one, of which a part may be missing."""
    block = r"stages\.\d+\.blocks\.\d+"
    if reader.has(rf"{block}\.squeeze_excite\..+") or _is_in_published_names(reader):
        return {}
    parts = {"depthwise": "bottleneck", "reduce": "pointwise", "first": "depthwise"}
    found = [structure for part, structure in parts.items() if reader.has(rf"{block}\.extra\.{part}\..+")]
    return {"extra_structure": found[0] if found else "none"}


def _branch_set(reader: _Reader, kernels: Mapping[tuple[int, int], _Kernel]) -> dict[str, str]:
    """Nothing where branches are dilated or should be, or where they are merged and there is no telling."""
    if _is_in_published_names(reader):
        return {}
    branches = {name for kernel in kernels.values() for name in kernel.branches}
    has_large = reader.has(r"stages\.\d+\.blocks\.\d+\.large_kernel\.large\.norm\..+")
    if not branches:
        return {"branch_set": "none"} if has_large else {}
    if any(_is_dilated(name) for name in branches):
        return {}
    # The smallest dilated branch spans five taps, with three of them.
    return {"branch_set": "same_size" if any(name.startswith("k3_") for name in branches) else "same_equivalent_size"}


def _is_in_published_names(reader: _Reader) -> bool:
    """Whether it is the authors' UniRepLKNet, which has squeeze-and-excitation and dilated branches always."""
    return any(".pwconv1." in theirs for theirs in reader.names.values())


def _is_dilated(branch: str) -> bool:
    match = _BRANCH.fullmatch(branch)
    return match is not None and match[2] != "1"


def _small_kernel_size(reader: _Reader) -> int | None:
    votes = reader.votes({r"stages\.\d+\.blocks\.\d+\.large_kernel\.small\.conv\.weight": _side})
    return reader.decided("the size of the small kernels", votes) if votes else None


@dataclass(frozen=True)
class _Kernel:
    """The depthwise kernel of a block of UniRepLKNet."""

    key: str
    branches: frozenset[str]
    size: int | None

    def is_like(self, other: _Kernel) -> bool:
        return self.branches == other.branches and self.key.endswith(".large.conv.weight") == other.key.endswith(
            ".large.conv.weight"
        )


def _block_kernels(reader: _Reader) -> dict[tuple[int, int], _Kernel]:
    kernels: dict[tuple[int, int], _Kernel] = {}
    for (stage, block), parts in reader.blocks.items():
        branches = frozenset(part.split(".")[2] for part in parts if part.startswith("large_kernel.dilated."))
        is_large = bool(branches) or any(part.startswith("large_kernel.large.") for part in parts)
        # A block without a kernel has no norm after it either.
        if is_large or any(part.startswith(("large_kernel.", "norm.")) for part in parts):
            key = f"stages.{stage}.blocks.{block}.large_kernel.{'large.conv.' if is_large else ''}weight"
            kernels[stage, block] = _Kernel(key, branches, _side(reader.shapes.get(key, ())))
    return kernels


def _block_kernel_size(reader: _Reader, kernels: Mapping[tuple[int, int], _Kernel], place: tuple[int, int]) -> int:
    """Kernel size of one block, 0 for none.

    Blocks with the same dilated branches have the same kernel size, so that they vouch for each other.
    """
    own = kernels.get(place)
    if own is None:
        return 0
    if own.size is not None and not any(map(_is_dilated, own.branches)):
        return own.size
    alike = {where: other for where, other in kernels.items() if other.is_like(own) and other.size is not None}
    near = {where: other for where, other in alike.items() if where[0] == place[0]}
    ballot = {other.key: other.size for other in (alike if own.branches else near or alike).values() if other.size}
    if not ballot:
        # The largest dilated branch is about as large.
        spans = [(int(match[1]) - 1) * int(match[2]) + 1 for match in map(_BRANCH.fullmatch, own.branches) if match]
        return max(spans, default=_UNKNOWN if ".large.conv." in own.key else 3)
    if own.size is None:
        return Counter(ballot.values()).most_common(1)[0][0]
    return reader.decided(f"the kernel of block {place[1]} of stage {place[0]}", ballot)


def _ratio(channels: Sequence[int], widths: Sequence[int], source: str) -> float:
    """The simplest number that gives ``int(C * ratio)`` for every stage."""
    least = max(width / channel for channel, width in zip(channels, widths, strict=True))
    candidates = [round(least, digits) for digits in range(8)] + [least, math.nextafter(least, math.inf)]
    fitting = [
        ratio
        for ratio in candidates
        if all(int(channel * ratio) == width for channel, width in zip(channels, widths, strict=True))
    ]
    check(
        bool(fitting),
        f"a state dict of {source} with one ratio of inner width to width",
        f"widths {list(channels)} with inner widths {list(widths)}",
        "such a network cannot be made",
    )
    return fitting[0]
