"""Kills at random moments and damage of every kind to run folders: what becomes of a run.

    python benchmarks/robustness.py --kills 60 --mutations 200 --seed 0 -o benchmarks/results/robustness.json

A small run of ``widefield train`` (sparse, with an average of the weights, on drawn images) is made once without harm.

* **Kills.** The same run is killed (SIGKILL) at moments drawn from the seed, with one process and its loader processes
  or with two processes that share the batches, and resumed until it is done. Lost is a run that cannot be resumed, or
  that ends with other weights, checkpoints or curves than the run without harm: not one bit may differ.
* **Mutations.** A copy of the run, finished or stopped within an epoch, is damaged in one way drawn from the seed (see
  `mutations.py`), and resumed. The outcome is ``refused`` (one sentence, exit code 1 or 2), ``same`` (all results as
  without harm, told or not), ``raw`` (an error that is not ours, a crash, a traceback), ``hung`` or ``different``
  (other results, exit code 0). Only the first two are right.

``--first N`` begins at mutation N, so that one that went wrong is repeated with ``--first N --mutations 1``.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from mutations import mutate
from PIL import Image
from safetensors.torch import load_file

RIGHT = ("refused", "same")
LIMIT_S = 240.0
OPTIONS = (
    "--model.name=replknet_nano",
    "--data.image-size=32",
    "--data.batch-size=8",
    "--data.on-error=skip",
    "--trainer.epochs=3",
    "--trainer.checkpoint-every-steps=1",
    "--trainer.log-every-steps=1",
    "--trainer.device=cpu",
    "--trainer.tensorboard=False",
    "--ema.decay=0.9",
    "--sparsity.sparsity=0.5",
    "--sparsity.update-every=2",
)
RESULTS = ("model.safetensors", "merged.safetensors")


@dataclass(frozen=True)
class Ended:
    """How one life of a run ended."""

    code: int
    """Exit code, or minus the number of the signal; of several processes the one farthest from 0."""
    told: str
    """What it wrote to its terminal."""


def draw_images(root: Path, seed: int) -> None:
    """Write two classes of images, and one file that cannot be decoded."""
    generator = np.random.default_rng(seed)
    for label, name in enumerate(("[male]", "$0_$10")):
        (root / name).mkdir(parents=True)
        for index in range(20):
            pixels = generator.integers(0, 160, (32, 32, 3), dtype=np.uint8)
            pixels[..., label] += 90
            Image.fromarray(pixels).save(root / name / f"{index:02d}.png")
    (root / "[male]" / "20.png").write_bytes(b"no image")


def live(words: Sequence[str], ranks: int = 1, kill_after_s: float | None = None) -> Ended:
    """Run a command line in forked children, which spares the imports, killed after a while if that is given."""
    with tempfile.TemporaryFile("w+") as terminal:
        children = _start(words, ranks, terminal.fileno())
        deadline = time.monotonic() + (LIMIT_S if kill_after_s is None else kill_after_s)
        codes: list[int] = []
        waiting = list(children)
        while waiting:
            for child in list(waiting):
                found, status = os.waitpid(child, os.WNOHANG)
                if found:
                    waiting.remove(child)
                    codes.append(os.waitstatus_to_exitcode(status))
            # A rank that has died leaves the other one waiting.
            if waiting and (time.monotonic() > deadline or any(codes)):
                time.sleep(0.5 if any(codes) else 0)
                for child in waiting:
                    os.kill(child, signal.SIGKILL)
            time.sleep(0.005)
        terminal.seek(0)
        told = terminal.read()
    return Ended(next((code for code in codes if code not in (0, -signal.SIGKILL)), min(codes)), told)


def _start(words: Sequence[str], ranks: int, terminal: int) -> list[int]:
    environment: dict[str, str] = {}
    if ranks > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        environment = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    children = []
    for rank in range(ranks):
        child = os.fork()
        if not child:
            code = 1
            try:
                os.dup2(terminal, 1)
                os.dup2(terminal, 2)
                sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
                os.environ.update(environment)
                if ranks > 1:
                    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank)})
                from widefield.cli.main import main

                code = main(words)
            except SystemExit as stop:
                code = int(stop.code or 0)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return children


def differences(whole: Path, run: Path, *, told: str = "") -> list[str]:
    """Return what differs between the results of two runs; rows that a warning has told of may be missing."""
    found = []
    for name in (*RESULTS, *_checkpoints(whole)):
        try:
            one, other = load_file(whole / name), load_file(run / name)
        except Exception as error:
            found.append(f"{name}: {error}")
            continue
        if one.keys() != other.keys() or not all(torch.equal(one[key], other[key]) for key in one):
            found.append(name)
    for name in ("metrics.csv", "steps.csv", "summary.json"):
        if name != "steps.csv" or "steps.csv is damaged or gone" not in told:
            try:
                same = _plain(whole / name) == _plain(run / name)
            except Exception:
                same = False
            found += [] if same else [name]
    return found


def _checkpoints(run: Path) -> list[str]:
    newest = max((run / "checkpoints").glob("step_*"))
    return [f"checkpoints/{newest.name}/tensors.safetensors"]


def _plain(path: Path) -> Any:
    if path.suffix == ".json":
        return {name: value for name, value in json.loads(path.read_text()).items() if name != "seconds"}
    lines = path.read_text().splitlines()
    return [line.rsplit(",", 1)[0] for line in lines] if path.name == "metrics.csv" else lines


def kill_runs(place: Path, data: Path, kills: int, ranks: int, seed: int) -> dict[str, Any]:
    """Kill runs as often as ordered, and return what was found."""
    words = ["train", "image_folder", *OPTIONS, f"--data.root={data}", f"--data.workers={2 if ranks == 1 else 0}"]
    whole = place / f"whole{ranks}"
    begun = time.monotonic()
    first = live([*words, "--output", str(whole)], ranks)
    seconds = time.monotonic() - begun
    if first.code:
        raise SystemExit(f"the run without harm failed:\n{first.told}")
    moments = random.Random(f"kills {ranks} {seed}")
    done = runs = within_saves = 0
    lost: list[str] = []
    while done < kills:
        runs += 1
        run = place / f"killed{ranks}_{runs}"
        told = ""
        while True:
            after = moments.uniform(0.05, 1.0) * seconds if done < kills else None
            resumed = (run / "config.yaml").exists()
            ended = live(["train", "--resume", str(run)] if resumed else [*words, "--output", str(run)], ranks, after)
            told += ended.told
            if ended.code != -signal.SIGKILL:
                break
            done += 1
            within_saves += any(run.rglob("*.partial"))
        if ended.code:
            lost.append(f"run {runs}: exit code {ended.code}: {ended.told[-400:]}")
        else:
            lost += [f"run {runs}: {name}" for name in differences(whole, run)]
            lost += [f"run {runs}: {path.name} left behind" for path in run.rglob("*.partial")]
        shutil.rmtree(run, ignore_errors=True)
    return {
        "ranks": ranks,
        "kills": done,
        "within_saves": within_saves,
        "runs": runs,
        "seconds_of_a_run": round(seconds, 1),
        "lost": lost,
    }


def classify(ended: Ended, whole: Path, run: Path) -> tuple[str, str]:
    """Return the outcome of a resumed mutation and what tells of it."""
    last = " ".join(ended.told.split())[-500:]
    if ended.code == -signal.SIGKILL:
        return "hung", last
    is_raw = "Traceback" in ended.told or "run again with --debug" in ended.told or ended.code not in (0, 1, 2)
    if is_raw:
        return "raw", last
    if ended.code:
        return ("refused" if "error: " in ended.told else "raw"), last
    odd = differences(whole, run, told=ended.told)
    return ("different", f"{', '.join(odd)}; {last[:200]}") if odd else ("same", "")


def mutate_runs(place: Path, data: Path, mutations: range, seed: int) -> list[dict[str, Any]]:
    """Damage copies of a run as often as ordered, and return what was done to each and what came of it."""
    words = ["train", "image_folder", *OPTIONS, "--data.workers=0"]
    base = place / "base"
    shutil.copytree(data, base / "data")
    os.chdir(base)
    bases = {name: base / name for name in ("finished", "stopped")}
    told = [live([*words, "--data.root=data", "--output", "finished"])]
    # Stopped by itself: two epochs of a run of three, whose third is then ahead of it.
    told.append(_stop_within(words, 5))
    if [ended.code for ended in told] != [0, 0]:
        raise SystemExit("the run without harm failed:\n" + "\n".join(ended.told for ended in told))
    outcomes = []
    for index in mutations:
        draws = random.Random(f"mutations {seed} {index}")
        kind = draws.choice(list(bases))
        here = place / f"mutation{index}"
        shutil.copytree(bases[kind], here / "run", symlinks=True)
        shutil.copytree(data, here / "data")
        os.chdir(here)
        what = mutate(here / "run", here / "data", draws)
        ended = live(["train", "--resume", "run"])
        outcome, why = classify(ended, bases["finished"], here / "run")
        outcomes.append({"index": index, "run": kind, "mutation": what, "outcome": outcome, "told": why})
        sys.stderr.write(
            f"{index:4d} {kind:8} {outcome:9} {what}" + ("" if outcome in RIGHT else f"\n     {why}") + "\n"
        )
        os.chdir(place)
        shutil.rmtree(here, ignore_errors=True)
    return outcomes


def _stop_within(words: Sequence[str], steps: int) -> Ended:
    """Run until as many steps are in a checkpoint, then tell the run to stop."""
    child = os.fork()
    if not child:
        import widefield.engine.training_run as training_run

        real = training_run.save_checkpoint

        def save(folder: Path, step: int, *arguments: Any, **options: Any) -> Path:
            path = real(folder, step, *arguments, **options)
            if step == steps:
                os.kill(os.getpid(), signal.SIGTERM)
            return path

        training_run.save_checkpoint = save
        os._exit(live_here([*words, "--data.root=data", "--output", "stopped"]))
    _, status = os.waitpid(child, 0)
    return Ended(os.waitstatus_to_exitcode(status), "see above")


def live_here(words: Sequence[str]) -> int:
    """Run a command line in this process."""
    from widefield.cli.main import main

    code = main(words)
    sys.stdout.flush()
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="half of them with one process, half with two")
    parser.add_argument("--mutations", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, help="JSON record; only the terminal if not given")
    a = parser.parse_args(arguments)
    torch.set_num_threads(1)
    # Here rather than in every child.
    import accelerate  # noqa: F401
    import timm  # noqa: F401

    import widefield.cli.train
    import widefield.tasks.classification  # noqa: F401

    output = None if a.output is None else a.output.absolute()
    with tempfile.TemporaryDirectory() as folder:
        place, data = Path(folder).resolve(), Path(folder).resolve() / "data"
        draw_images(data, a.seed)
        shares = {1: a.kills - a.kills // 2, 2: a.kills // 2}
        killed = [kill_runs(place, data, count, ranks, a.seed) for ranks, count in shares.items() if count]
        outcomes = mutate_runs(place, data, range(a.first, a.first + a.mutations), a.seed) if a.mutations else []
        os.chdir("/")
    record = {
        "seed": a.seed,
        "torch": torch.__version__,
        "kills": killed,
        "mutations": {
            "counts": dict(collections.Counter(each["outcome"] for each in outcomes)),
            "wrong": [each for each in outcomes if each["outcome"] not in RIGHT],
            "by_mutation": _by_mutation(outcomes),
        },
    }
    text = json.dumps(record, indent=1) + "\n"
    if output is not None:
        output.write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return int(any(each["lost"] for each in killed) or bool(record["mutations"]["wrong"]))


def _by_mutation(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    found: dict[str, collections.Counter[str]] = {}
    for each in outcomes:
        found.setdefault(each["mutation"].split(":")[0], collections.Counter())[each["outcome"]] += 1
    return {name: dict(found[name]) for name in sorted(found)}


if __name__ == "__main__":
    sys.exit(main())
