"""What the kernels take of a GPU, compiled ahead of time without one.

``python -m widefield.ops.depthwise_conv.triton.aot -o FILE`` makes the record. The one on file,
``benchmarks/results/triton_resources.json``, is what tests compare with: a kernel that begins to spill registers, or no
longer runs on tensor cores, is seen before it is timed.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from widefield._core.files import write_text_atomically
from widefield.ops.depthwise_conv.triton import cases, hankel, roll
from widefield.ops.depthwise_conv.triton.resources import resources, versions
from widefield.ops.depthwise_conv.triton.tiles import CompileCase

ARCHITECTURES = (80, 90, 100)
_logger = logging.getLogger(__name__)


def compile_cases(arch: int) -> list[CompileCase]:
    """Return the compiles of all maps at the layers of `cases.LAYERS` with the default tiles of an architecture."""
    capability = (arch // 10, arch % 10)
    found = cases.compile_cases(capability)
    for name, *_ in cases.LAYERS:
        for dtype in (torch.bfloat16, torch.float32):
            problem = cases.layer(name, dtype=dtype)
            found.append(hankel.compile_case(problem, hankel.default(problem)))
        problem = cases.layer(name)
        if not roll.refusals(problem, "forward", capability):
            found.append(roll.compile_case(problem, roll.default(problem)))
    return found


def record(archs: Sequence[int], only: Sequence[str] = ()) -> dict[str, object]:
    """Compile everything.

    Args:
        archs: Architectures, as 90 for compute capability 9.0.
        only: If given, the cases whose names hold one of these texts.

    Returns:
        The versions of ``triton`` and ``ptxas``, and ``kernels``: for each case and architecture its ``name``, ``arch``
        and the fields of `Resources`.
    """
    kernels: list[dict[str, object]] = []
    for arch in archs:
        for case in compile_cases(arch):
            if only and not any(text in case.name for text in only):
                continue
            _logger.info("sm_%d %s", arch, case.name)
            kernels.append({"name": case.name, "arch": arch, **asdict(resources(case, arch))})
    kernels.sort(key=lambda kernel: (str(kernel["name"]), int(str(kernel["arch"]))))
    return {**versions(), "kernels": kernels}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the record to a file, or to the standard output."""
    parser = argparse.ArgumentParser(prog="widefield.ops.depthwise_conv.triton.aot", description=main.__doc__)
    parser.add_argument("--arch", type=int, nargs="+", default=list(ARCHITECTURES), help="80, 90, 100, ...")
    parser.add_argument("--only", nargs="+", default=[], help="texts, one of which a case's name must hold")
    parser.add_argument("-o", "--output", type=Path, help="a JSON file")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    text = json.dumps(record(given.arch, given.only), indent=1) + "\n"
    if given.output is None:
        sys.stdout.write(text)
    else:
        write_text_atomically(given.output, text)


if __name__ == "__main__":
    main()
