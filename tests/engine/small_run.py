"""A small image problem, and a script that runs it: what the tests of the engine share."""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from widefield.engine import (
    ActivationMonitor,
    ActivationMonitorConfig,
    EmaConfig,
    OptimizerConfig,
    RunContext,
    RunFolder,
    RunInterruptedError,
    ScheduleConfig,
    Trainer,
    TrainerConfig,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


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

    @staticmethod
    def branch(channels: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels, channels, 5, padding=2, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.GELU(),
        )

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(images)))
        branch = self.norm2(self.depthwise(x))
        if self.training and self.drop:
            keep = (torch.rand(len(x), 1, 1, 1) >= self.drop).to(x) / (1 - self.drop)
            branch = branch * keep
        return self.head((x + branch).mean((2, 3)))


class BlockNet(nn.Module):
    """A network whose blocks are named as in timm, with BatchNorm and a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        stage = nn.Module()
        stage.blocks = nn.Sequential(*(DropPathNet.branch(6) for _ in range(3)))
        self.stages = nn.ModuleList([stage])
        self.norm, self.norm2 = nn.BatchNorm2d(6), nn.LayerNorm(6)
        self.norm2.bias.requires_grad_(False)
        self.head = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.stages[0].blocks(self.stem(images)))
        return self.head(self.norm2(x.mean((2, 3))))


class HalfMasked:
    """Extension that keeps half of the stem at zero, and draws anew which half every three steps."""

    name = "half"
    is_required = True

    def __init__(self) -> None:
        self.told: list[str] = []

    def started(self, context: RunContext) -> None:
        self.told.append("started")
        self.weight = dict(context.model.named_parameters())["stem.weight"]
        self.average = None if context.ema is None else dict(context.ema.named_parameters())["stem.weight"]
        self.mask = torch.ones(self.weight.shape, dtype=torch.bool)
        self.changes = 0

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        self.told.append(f"step {step}")
        if step % 3 == 1:
            self.changes += 1
            order = torch.randperm(self.mask.numel(), generator=torch.Generator().manual_seed(self.changes))
            self.mask = (order % 2 == 0).view_as(self.mask)
        for tensor in (self.weight, self.average):
            if tensor is not None:
                tensor.mul_(self.mask)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"mask": self.mask}, {"changes": self.changes}

    def load_state_dict(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self.told.append("loaded")
        self.mask, self.changes = tensors["mask"].clone(), state["changes"]

    def metrics(self) -> dict[str, float]:
        return {"masked": float((self.weight == 0).double().mean())}

    def closed(self) -> None:
        self.told.append("closed")


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
        extensions=changes.pop("extensions", ()),
        trainer=TrainerConfig(**{"epochs": 3, "device": "cpu", "tensorboard": False, "log_every_steps": 2, **changes}),
    )


def weights_bytes(trainer: Trainer) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in trainer.model.state_dict().items()}


def die(*_: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def main(order: dict[str, Any]) -> None:
    """Train, and be killed or told to stop where the order says, the way a power cut or a scheduler would."""
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    data = Images(rank=rank, ranks=ranks, **order.get("data", {}))
    task = Classify(data)
    task.at_loss = dict.fromkeys(order.get("kill_at_loss", []), die)
    if rank == order.get("signal_rank", rank):
        task.at_loss |= {number: tell(name) for number, name in order.get("signal_at_loss", [])}
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
    changes = dict(order.get("changes", {}))
    if order.get("masked"):
        changes["extensions"] = [HalfMasked()]
    if "watched" in order:
        changes["extensions"] = [ActivationMonitor(ActivationMonitorConfig(modules=order["watched"], every_steps=1))]
    if order.get("blocks"):
        torch.manual_seed(0)
        changes["model"] = BlockNet()
    trainer = make_trainer(folder, data=data, task=task, **changes)
    result = trainer.fit(resume=order["resume"])
    if rank == 0:
        from widefield.engine import write_weights

        write_weights(Path(order["folder"]) / "model.safetensors", trainer.model.state_dict())
        write_weights(Path(order["folder"]) / "best.safetensors", result.best_weights)
        folder.write_json("summary.json", {"best_epoch": result.best_epoch, "kind": type(trainer.model.norm).__name__})


def tell(name: str) -> Any:
    def send(loss: Tensor) -> Tensor:
        os.kill(os.getpid(), getattr(signal, name))
        return loss

    return send


STOPPED = 3
"""Status of a process whose run was stopped by a signal."""


def start(order: dict[str, Any], environment: Mapping[str, str]) -> int:
    """Run `main` in a forked child, which spares the imports, and return its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.environ.update(environment)
        main(order)
        status = 0
    except RunInterruptedError:
        status = STOPPED
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def start_ranks(order: dict[str, Any]) -> list[int]:
    """Start as many children as the order says and connect them over the loopback."""
    ranks = order.get("ranks", 1)
    if ranks == 1:
        return [start(order, {})]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    return [start(order, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(ranks)]


def fork(order: dict[str, Any]) -> int:
    """Run the order in children, killed after `kill_after_s` if it says so, and return the status farthest from 0."""
    waiting, statuses = start_ranks(order), []
    deadline = time.monotonic() + order.get("kill_after_s", 100)
    while waiting:
        for child in list(waiting):
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                waiting.remove(child)
                statuses.append(os.waitstatus_to_exitcode(status))
        # A rank that was killed leaves others waiting, or failing, at the next reduction.
        if waiting and (time.monotonic() > deadline or -signal.SIGKILL in statuses):
            os.kill(waiting[0], signal.SIGKILL)
        time.sleep(0.002)
    return next((status for status in statuses if status == -signal.SIGKILL), max(statuses, key=abs))


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
