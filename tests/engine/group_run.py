"""Runs with loader processes of their own, each in a process group that can be told to stop as a whole."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from engine.small_run import Classify, Images, make_trainer
from PIL import Image
from torch.nn import functional as F

from widefield.data import AugmentationConfig, DataConfig, open_splits, train_loader
from widefield.engine import RunFolder, RunInterruptedError, write_weights

if TYPE_CHECKING:
    from torch import Tensor, nn

    from widefield.engine import Trainer

SUMMARY = "model.safetensors"


def draw(root: Path) -> None:
    """Write four classes of ten images."""
    generator = np.random.default_rng(0)
    for label in range(4):
        (root / str(label)).mkdir(parents=True)
        for index in range(10):
            pixels = generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / str(label) / f"{index}.png")


class Slow(Classify):
    """The loss of real batches, in steps that last a while."""

    def __init__(self, step_s: float) -> None:
        super().__init__(Images())
        self.step_s = step_s

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        time.sleep(self.step_s)
        self.losses += 1
        loss = F.cross_entropy(model(batch.images), batch.targets)
        action = self.at_loss.get(self.losses)
        return loss if action is None else action(loss)


def trainer(folder: RunFolder, root: Path, step_s: float = 0.0, workers: int = 2, **changes: Any) -> Trainer:
    """Return a trainer of the drawn images with loader processes."""
    data = DataConfig(root=str(root), image_size=8, batch_size=4, workers=workers)
    ranks = {"rank": int(os.environ.get("RANK", "0")), "world_size": int(os.environ.get("WORLD_SIZE", "1"))}
    loader = train_loader(open_splits(data).train, data, AugmentationConfig(), seed=0, **ranks)
    task = Slow(step_s)
    return make_trainer(folder, data=task.data, task=task, loader=loader, ema={"decay": 0.9}, **changes)


def main(folder: Path, root: Path, resume: bool, step_s: float) -> None:
    """Train, and write what came of it."""
    run = trainer(RunFolder.create(folder, resume, 0), root, step_s)
    result = run.fit(resume=resume)
    if int(os.environ.get("RANK", "0")) == 0:
        write_weights(folder / SUMMARY, run.model.state_dict())
        write_weights(folder / "average.safetensors", result.best_weights)


def start(*arguments: Any) -> int:
    """Run `main` in a forked child at the head of a group of its own, and return its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        main(*arguments)
        code = 0
    except RunInterruptedError:
        code = 0
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def steps_done(folder: Path) -> int:
    """Return how many steps `steps.csv` has rows of."""
    try:
        return 2 * ((folder / "steps.csv").read_text().count("\n") - 1)
    except OSError:
        return 0


def children(process: int) -> list[int]:
    """Return the ids of the processes that `process` has started."""
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def is_there(process: int) -> bool:
    """Return whether a process runs; a dead one that nobody has asked after does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def tell(place: Path, root: Path, name: str, moments: random.Random) -> dict[str, Any]:
    """Tell a group to stop at a moment drawn, and take the run up again."""
    folder = place / name
    child = start(folder, root, False, 0.05)
    wanted = moments.randrange(2, 14)
    while steps_done(folder) < wanted:
        time.sleep(0.002)
    time.sleep(moments.uniform(0, 0.1))
    # As a service manager or a terminal does it: all processes of the group at once.
    os.killpg(child, getattr(signal, name))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    kept = sorted(path.name for path in (folder / "checkpoints").glob("step_*"))
    resumed = os.waitstatus_to_exitcode(os.waitpid(start(folder, root, True, 0.0), 0)[1])
    return {"code": code, "wanted": wanted, "kept": kept, "resumed": resumed}


def orphans(place: Path, root: Path) -> dict[str, Any]:
    """Kill the head of a group, and see what becomes of its loader processes."""
    child = start(place / "killed", root, False, 0.05)
    while steps_done(place / "killed") < 2:
        time.sleep(0.002)
    workers = children(child)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    deadline = time.monotonic() + 30
    while any(map(is_there, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [worker for worker in workers if is_there(worker)]
    for worker in left:
        os.kill(worker, signal.SIGKILL)
    return {"workers": len(workers), "left": len(left)}


if __name__ == "__main__":
    import accelerate  # noqa: F401
    import timm  # noqa: F401

    torch.set_num_threads(1)
    place, names, seed = Path(sys.argv[1]), sys.argv[2].split(","), int(sys.argv[3])
    images = place / "images"
    if "RANK" in os.environ:
        torch.distributed.init_process_group("gloo")
        try:
            main(place / "run", images, "resume" in names, 0.05)
        except RunInterruptedError:
            sys.stderr.write("stopped\n")
        sys.exit()
    draw(images)
    whole = os.waitstatus_to_exitcode(os.waitpid(start(place / "whole", images, False, 0.0), 0)[1])
    moments = random.Random(seed)
    found: dict[str, Any] = {"whole": whole, "orphans": orphans(place, images)}
    found |= {name: tell(place, images, name, moments) for name in names}
    sys.stdout.write(json.dumps(found))
