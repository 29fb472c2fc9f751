"""Every promising tile configuration of every Triton kernel on the layers, and the table of the fastest ones.

Other processes compile ahead into Triton's cache, so that this one finds its kernels there. A configuration enters the
table only if its result is right, it spills no register, and it is the fastest over all layers of its bucket.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import launching
import torch
from layers import DTYPES, problems
from part import Part, breaks_the_gpu

from widefield.bench.floors import least_bytes, useful_flops
from widefield.bench.gate import limit, oracle
from widefield.bench.operands import Operands, make_operands
from widefield.bench.race import Contestant, race
from widefield.bench.summary import geometric_mean
from widefield.bench.timers import timer_for
from widefield.ops.backends import PASSES, Pass
from widefield.ops.depthwise_conv.aten import AtenBackend
from widefield.ops.depthwise_conv.clip import clip
from widefield.ops.depthwise_conv.problem import Problem
from widefield.ops.depthwise_conv.triton.table import key, write_table
from widefield.ops.depthwise_conv.triton.tiles import TileConfig

PROCESSES, TINY_PROCESSES = 12, 2
MOST_CONFIGS = 10
BUDGET_S = 0.6


def main() -> None:
    part = Part("kernels")
    if part.shards > 1:
        compile_share(part)
        return
    with TemporaryDirectory() as folder:
        # Half of the time at most, since what is compiled must be timed as well.
        deadline = part.deadline - part.seconds_left / 2
        processes = TINY_PROCESSES if part.is_tiny else PROCESSES
        running: list[subprocess.Popen[bytes]] = []
        for index in range(processes):
            options = ["--output", str(Path(folder) / f"{index}.json"), "--shard", f"{index}/{processes}"]
            options += ["--tiny"] if part.is_tiny else []
            running.append(subprocess.Popen([sys.executable, __file__, *options, "--deadline", str(deadline)]))
        part.facts["compile_exit_codes"] = [process.wait() for process in running]
    compiled = launching.Compiled()
    for name, dtype, problem, pass_ in jobs(part):
        if part.seconds_left > 5 and not part.is_done(layer=name, dtype=dtype, map=pass_, is_last=True):
            time_configs(part, compiled, name, dtype, problem, pass_)
    finish(part)


def jobs(part: Part) -> list[tuple[str, str, Problem, Pass]]:
    """Return every (layer, dtype, clipped problem, map), the most wanted first."""
    dtypes = {"float32": torch.float32} if part.is_tiny else DTYPES
    found = [
        (name, dtype, clip(problem)[0], pass_)
        for dtype, torch_dtype in dtypes.items()
        for name, problem in problems(torch_dtype, part.device, part.is_tiny)
        for pass_ in PASSES
    ]
    return [job for job in found if not launching.refusals(job[2], job[3])]


def chosen(part: Part, problem: Problem, pass_: Pass) -> list[TileConfig]:
    return launching.spread(launching.candidates(problem, pass_), 2 if part.is_tiny else MOST_CONFIGS)


def compile_share(part: Part) -> None:
    """Launch this process's share once, for the sake of Triton's cache."""
    for index, (_, _, problem, pass_) in enumerate(jobs(part)):
        if index % part.shards != part.shard or part.seconds_left < 0 or part.is_done(job=index):
            continue
        operands = make_operands(problem)
        for config in chosen(part, problem, pass_):
            if part.seconds_left < 0:
                break
            try:
                launching.run(problem, pass_, config, operands)
                if part.device == "cuda":
                    torch.cuda.synchronize()
            except Exception as error:
                if breaks_the_gpu(error):
                    part.add(job=index)
                    part.restart()
        part.add(job=index)


def time_configs(
    part: Part, compiled: launching.Compiled, name: str, dtype: str, problem: Problem, pass_: Pass
) -> None:
    head = {"layer": name, "dtype": dtype, "map": pass_}
    operands = make_operands(problem)
    timer = timer_for(problem.device_type, operands.size_bytes)
    sets = [operands, *(make_operands(problem, seed) for seed in range(1, timer.input_sets))]
    expected = oracle(problem, pass_, operands)
    largest = limit(problem.dtype, expected.error(operands.run(AtenBackend(), pass_, problem)))
    right: dict[str, tuple[TileConfig, dict[str, Any]]] = {}
    for index, config in enumerate(chosen(part, problem, pass_)):
        words = launching.words(config)
        if part.is_done(**head, config=words):
            continue
        try:
            error = expected.error(launching.run(problem, pass_, config, operands))
        except Exception as raised:
            part.add(**head, config=words, failure=f"{type(raised).__name__}: {str(raised)[:200]}")
            if breaks_the_gpu(raised):
                part.restart()
            continue
        resources = compiled.fresh() or {}
        if error > largest:
            part.add(**head, config=words, error=error, limit=largest, is_wrong=True, **resources)
        else:
            right[str(index)] = config, {"config": words, "error": error, **resources}
    contestants = [contestant(label, config, problem, pass_, sets) for label, (config, _) in right.items()]
    timings = race(contestants, timer, budget_s=0.05 if part.is_tiny else BUDGET_S)
    facts = {"key": key(problem, pass_), "flops": useful_flops(problem), "bytes": least_bytes(problem)}
    for label, (_, row) in right.items():
        timing = timings[label]
        part.rows.append({**head, **row, **facts, "median_ms": timing.median_ms, "rounds": timing.rounds})
    part.add(**head, is_last=True)


def contestant(label: str, config: TileConfig, problem: Problem, pass_: Pass, sets: list[Operands]) -> Contestant:
    # A kernel of its own, since what is derived from one is kept for a few configurations only.
    own = [replace(operands, weight=operands.weight.clone()) for operands in sets]
    return Contestant(name=label, call=lambda index: launching.run(problem, pass_, config, own[index]))


def finish(part: Part) -> None:
    timed = [row for row in part.rows if row.get("median_ms") and not row.get("spills")]
    part.rows = [row for row in part.rows if not row.get("is_last")]
    part.facts |= {"wrong": sum(bool(row.get("is_wrong")) for row in part.rows)}
    part.facts |= {"spilling": sum(bool(row.get("spills")) for row in part.rows)}
    part.write(is_complete=part.seconds_left > 5)
    if timed and not part.is_tiny:
        major, minor = torch.cuda.get_device_capability(0)
        write_table(part.output.with_name(f"sm_{major}{minor}.json"), fastest(timed))
    elif timed:
        write_table(part.output.with_name("sm_tiny.json"), fastest(timed))
    print(f"kernels: {len(timed)} configurations timed, {part.facts['wrong']} wrong, {part.facts['spilling']} spilling")


def fastest(rows: list[dict[str, Any]]) -> dict[str, TileConfig]:
    """Return for each bucket the configuration with the best geometric mean, over its layers, of time over the best."""
    buckets: dict[str, dict[tuple[str, str], dict[TileConfig, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        layer = (row["layer"], row["map"])
        buckets[row["key"]][layer][TileConfig(**row["config"])] = row["median_ms"]
    found: dict[str, TileConfig] = {}
    for bucket, layers in buckets.items():
        best = {layer: min(times.values()) for layer, times in layers.items()}
        everywhere = set.intersection(*(set(times) for times in layers.values()))
        known = everywhere or set(next(iter(layers.values())))
        found[bucket] = min(
            known,
            key=lambda config: geometric_mean(
                times.get(config, math.inf) / best[layer] if config in times else 10.0
                for layer, times in layers.items()
            ),
        )
    return found


if __name__ == "__main__":
    main()
