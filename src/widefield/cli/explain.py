"""``widefield explain N C H W K``: which backend runs each map, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import tyro

from widefield.cli.arguments import parse
from widefield.cli.terminal import Terminal
from widefield.ops import explain


@dataclass(frozen=True, kw_only=True)
class ExplainArguments:
    """Say which backend runs each map of a "same" depthwise convolution, and why the others do not."""

    batch: Annotated[int, tyro.conf.Positional]
    """N, number of images."""
    channels: Annotated[int, tyro.conf.Positional]
    """C."""
    height: Annotated[int, tyro.conf.Positional]
    """H."""
    width: Annotated[int, tyro.conf.Positional]
    """W."""
    kernel_size: Annotated[tuple[int, ...], tyro.conf.Positional]
    """K, or K_h K_w; odd."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Type of input and weight."""
    device: str = "cpu"
    """Device type."""
    layout: Literal["contiguous", "channels_last"] = "contiguous"
    """Memory format of the input."""


def run(words: Sequence[str]) -> None:
    """Run the command."""
    a = parse(ExplainArguments, words, command="explain")
    kernel = (a.kernel_size[0], a.kernel_size[-1])
    shape = (a.batch, a.channels, a.height, a.width)
    dtype = getattr(torch, a.dtype)
    explanation = explain(*shape, kernel, dtype=dtype, device=a.device, layout=a.layout)
    Terminal().print(str(explanation), soft_wrap=True)
