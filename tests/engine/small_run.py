"""A small image problem, and a script that runs it: what the tests of the engine share."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from widefield.engine import (
    EmaConfig,
    OptimizerConfig,
    RunFolder,
    ScheduleConfig,
    Trainer,
    TrainerConfig,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Batch:
    images: Tensor
    labels: Tensor


class Images:
    """Random images, reshuffled by epoch; a rank takes its share of every global batch."""

    def __init__(self, batches: int = 5, size: int = 8, rank: int = 0, ranks: int = 1) -> None:
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randn(batches * size, 3, 8, 8, generator=generator)
        self.labels = (self.images[:, 0].mean((1, 2)) > 0).long() + 2 * (self.images[:, 1, 0, 0] > 0).long()
        self.batches, self.size, self.rank, self.ranks = batches, size, rank, ranks

    def __len__(self) -> int:
        return self.batches

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(epoch))
        for index in range(start, self.batches):
            chosen = order[index * self.size : (index + 1) * self.size][self.rank :: self.ranks]
            yield Batch(self.images[chosen], self.labels[chosen])


class Classify:
    """Cross entropy; can be told to do something at the n-th loss or evaluation."""

    monitor = "accuracy"

    def __init__(self, data: Images) -> None:
        self.data = data
        self.losses = self.evaluations = 0
        self.at_loss: dict[int, Any] = {}
        self.at_evaluation: dict[int, Any] = {}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        self.losses += 1
        loss = F.cross_entropy(model(batch.images), batch.labels)
        action = self.at_loss.get(self.losses)
        return loss if action is None else action(loss)

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        self.evaluations += 1
        if self.evaluations in self.at_evaluation:
            self.at_evaluation[self.evaluations]()
        logits = model(self.data.images.to(device)).float()
        labels = self.data.labels.to(device)
        loss = F.cross_entropy(logits, labels).item()
        return {"accuracy": (logits.argmax(1) == labels).double().mean().item(), "loss": loss}


class DropPathNet(nn.Module):
    """A ConvNet with BatchNorm, and with draws from the global random state at every training step."""

    def __init__(self, drop: float = 0.3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)
        self.drop = drop

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(images)))
        branch = self.norm2(self.depthwise(x))
        if self.training and self.drop:
            keep = (torch.rand(len(x), 1, 1, 1) >= self.drop).to(x) / (1 - self.drop)
            branch = branch * keep
        return self.head((x + branch).mean((2, 3)))


def make_trainer(folder: RunFolder, **changes: Any) -> Trainer:
    """Return a trainer of the small problem; `changes` may set its parts or fields of the configs."""
    data = changes.pop("data", None) or Images()
    model = changes.pop("model", None)
    if model is None:
        torch.manual_seed(0)
        model = DropPathNet(drop=changes.pop("drop", 0.3))
    return Trainer(
        model,
        changes.pop("task", None) or Classify(data),
        changes.pop("loader", data),
        folder,
        optimizer=OptimizerConfig(**{"lr": 1e-2, **changes.pop("optimizer", {})}),
        schedule=ScheduleConfig(**{"warmup_epochs": 1, **changes.pop("schedule", {})}),
        ema=EmaConfig(**changes.pop("ema", {})),
        reporter=changes.pop("reporter", None),
        accelerator=changes.pop("accelerator", None),
        trainer=TrainerConfig(**{"epochs": 3, "device": "cpu", "tensorboard": False, "log_every_steps": 2, **changes}),
    )


def weights_bytes(trainer: Trainer) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in trainer.model.state_dict().items()}


def die(*_: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def main(order: dict[str, Any]) -> None:
    """Train, and be killed where the order says, the way a power cut or a scheduler would."""
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    data = Images(rank=rank, ranks=ranks, **order.get("data", {}))
    task = Classify(data)
    task.at_loss = dict.fromkeys(order.get("kill_at_loss", []), die)
    task.at_evaluation = dict.fromkeys(order.get("kill_at_evaluation", []), die)
    if "kill_at_sync" in order:
        from widefield._core import files
        from widefield.engine import checkpointing

        seen, real = [0], files.sync_to_disk

        def sync(path: Path) -> None:
            seen[0] += 1
            if seen[0] == order["kill_at_sync"]:
                die()
            real(path)

        checkpointing.sync_to_disk = files.sync_to_disk = sync
    folder = RunFolder.create(order["folder"], order["resume"], 0, "small: run\n")
    trainer = make_trainer(folder, data=data, task=task, **order.get("changes", {}))
    result = trainer.fit(resume=order["resume"])
    if rank == 0:
        from widefield.engine import write_weights

        write_weights(Path(order["folder"]) / "model.safetensors", trainer.model.state_dict())
        write_weights(Path(order["folder"]) / "best.safetensors", result.best_weights)
        folder.write_json("summary.json", {"best_epoch": result.best_epoch, "kind": type(trainer.model.norm).__name__})


def fork(order: dict[str, Any]) -> int:
    """Run `main` in a forked child, which spares the imports, and return its status."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        main(order)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    import accelerate  # noqa: F401
    import timm  # noqa: F401

    torch.set_num_threads(1)
    orders = json.loads(sys.argv[1])
    if "RANK" in os.environ:
        for order in orders:
            if "module" in order:
                importlib.import_module(order["module"]).main()
            else:
                main(order)
        dist.destroy_process_group()
    else:
        sys.stdout.write(json.dumps([fork(order) for order in orders]))
