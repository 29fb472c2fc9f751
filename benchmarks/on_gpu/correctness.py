"""Every kind of Triton configuration against the definition in float64, on small and awkward shapes.

Uninitialised memory is filled with NaN, every launch is run twice and must give the same bits, and one tensor has more
than 2^31 elements. Several processes share the work, so that compiling takes less time and a kernel that breaks its
process takes nothing else along.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import launching
import torch
from layers import DTYPES
from part import Part, breaks_the_gpu
from torch.utils import deterministic

from widefield.bench.gate import limit, oracle
from widefield.bench.operands import Operands, make_operands
from widefield.ops.backends import PASSES, Pass
from widefield.ops.depthwise_conv.aten import AtenBackend
from widefield.ops.depthwise_conv.clip import clip
from widefield.ops.depthwise_conv.problem import Problem

# (N, C, H, W, K_h, K_w): odd channels, one image, one channel, widths that 8 does not divide, kernels beyond the map.
SHAPES = (
    (2, 3, 17, 23, 13, 13),
    (1, 1, 9, 31, 5, 51),
    (2, 3, 30, 12, 51, 5),
    (3, 5, 14, 14, 27, 27),
    (65, 3, 7, 7, 13, 13),
    (1, 3, 56, 56, 31, 31),
    (5, 2, 33, 20, 7, 7),
    (2, 3, 64, 64, 3, 3),
    (2, 16, 28, 28, 29, 29),
    (3, 3, 20, 20, 101, 101),
    (2, 2, 130, 71, 15, 15),
    (1, 2, 96, 96, 101, 101),
)
TINY = ((2, 3, 7, 9, 5, 5), (1, 2, 10, 6, 9, 3))
PROCESSES, TINY_PROCESSES = 12, 2
MOST_CONFIGS = 8
HUGE, TINY_HUGE = (64, 10720, 56, 56, 7, 7), (2, 3, 8, 8, 3, 3)


def main() -> None:
    part = Part("correctness")
    if part.shards > 1:
        check_share(part)
    else:
        check_all(part)


def check_all(part: Part) -> None:
    with TemporaryDirectory() as folder:
        processes = TINY_PROCESSES if part.is_tiny else PROCESSES
        paths = [Path(folder) / f"{index}.json" for index in range(processes)]
        running = []
        for index, path in enumerate(paths):
            options = ["--output", str(path), "--shard", f"{index}/{processes}", "--deadline", str(part.deadline - 20)]
            options += ["--tiny"] if part.is_tiny else []
            running.append(subprocess.Popen([sys.executable, __file__, *options]))
        codes = [process.wait() for process in running]
        records = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
    part.rows = [row for record in records for row in record["rows"]]
    part.facts["exit_codes"] = codes
    part.write(is_complete=False)
    check_huge(part)
    tell(part, all(record["is_complete"] for record in records) and len(records) == processes)


def check_share(part: Part) -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = True
    compiled = launching.Compiled()
    for index, (problem, pass_, is_strided) in enumerate(cases(part)):
        if index % part.shards != part.shard or part.seconds_left < 0:
            continue
        reasons = launching.refusals(problem, pass_)
        if reasons:
            if not part.is_done(problem=str(problem), map=pass_):
                part.add(problem=str(problem), map=pass_, is_right=True, refusals=reasons)
            continue
        operands = strided(make_operands(problem)) if is_strided else make_operands(problem)
        expected = oracle(problem, pass_, operands)
        torch_error = expected.error(operands.run(AtenBackend(), pass_, problem))
        most = 2 if part.is_tiny else MOST_CONFIGS
        for config in launching.spread(launching.candidates(problem, pass_), most):
            key = {"problem": str(problem), "map": pass_, "is_strided": is_strided, "config": launching.words(config)}
            if part.is_done(**key) or part.seconds_left < 0:
                continue
            row: dict[str, object] = {"limit": limit(problem.dtype, torch_error), "torch_error": torch_error}
            try:
                first, second = (launching.run(problem, pass_, config, operands) for _ in range(2))
                row["error"] = expected.error(first)
                row["is_repeatable"] = bool((first == second).all())
                row["is_right"] = row["error"] <= row["limit"] and row["is_repeatable"]
                row |= compiled.fresh() or {}
            except Exception as error:
                part.add(**key, is_right=False, failure=f"{type(error).__name__}: {str(error)[:300]}")
                if breaks_the_gpu(error):
                    part.restart()
                continue
            part.add(**key, **row)
    part.write(is_complete=part.seconds_left > 0)


def cases(part: Part) -> Iterator[tuple[Problem, Pass, bool]]:
    for shape in TINY if part.is_tiny else SHAPES:
        for dtype in DTYPES.values():
            batch, channels, height, width, kernel_h, kernel_w = shape
            problem = Problem(
                batch=batch,
                channels=channels,
                height=height,
                width=width,
                kernel_size=(kernel_h, kernel_w),
                padding=(kernel_h // 2, kernel_w // 2),
                dtype=dtype,
                device_type=part.device,
            )
            problem, _ = clip(problem)
            for pass_ in PASSES:
                yield problem, pass_, False
                if shape == SHAPES[0]:
                    yield problem, pass_, True
                if channels % 8 == 0:
                    yield replace(problem, layout="channels_last"), pass_, False


def strided(operands: Operands) -> Operands:
    """Return the same values at every second address."""
    x, grad = (torch.stack((t, t), dim=-1)[..., 0] for t in (operands.x, operands.grad))
    return replace(operands, x=x, grad=grad)


def check_huge(part: Part) -> None:
    batch, channels, height, width, kernel_h, kernel_w = TINY_HUGE if part.is_tiny else HUGE
    problem = Problem(
        batch=batch,
        channels=channels,
        height=height,
        width=width,
        kernel_size=(kernel_h, kernel_w),
        padding=(kernel_h // 2, kernel_w // 2),
        dtype=torch.bfloat16,
        device_type=part.device,
    )
    one_channel = replace(problem, channels=1)
    x = torch.randn(batch, 1, height, width, device=part.device).to(problem.dtype).expand(-1, channels, -1, -1)
    weight = torch.randn(1, 1, kernel_h, kernel_w, device=part.device).to(problem.dtype) / 7
    small = Operands(x=x[:, :1].contiguous(), weight=weight, grad=x[:, :1].contiguous())
    huge = Operands(x=x.contiguous(), weight=weight.expand(channels, -1, -1, -1).contiguous(), grad=x.contiguous())
    for pass_ in PASSES:
        expected = oracle(one_channel, pass_, small)
        try:
            last = launching.run(problem, pass_, launching.candidates(problem, pass_)[0], huge)
            last = last[-1:] if pass_ == "grad_weight" else last[:, -1:]
            error = expected.error(last)
            is_right = error <= limit(problem.dtype, None)
            part.add(problem=str(problem), map=pass_, elements=huge.x.numel(), error=error, is_right=is_right)
        except Exception as error:
            part.add(
                problem=str(problem), map=pass_, is_right=False, failure=f"{type(error).__name__}: {str(error)[:300]}"
            )
            if breaks_the_gpu(error):
                return


def tell(part: Part, is_complete: bool) -> None:
    wrong = [row for row in part.rows if not row["is_right"]]
    part.facts |= {"red": len(wrong), "green": len(part.rows) - len(wrong)}
    part.write(is_complete=is_complete)
    print(f"correctness: {part.facts['green']} green, {part.facts['red']} red")
    for row in wrong[:20]:
        print("  red:", json.dumps(row))
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
