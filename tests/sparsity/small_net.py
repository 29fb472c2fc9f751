"""A small network with every kind of tensor, batches for it, and a loop that trains it sparse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from widefield.sparsity import SparseTraining, SparsityConfig


class SmallNet(nn.Module):
    """Convolutions of two kinds, a norm, a residual stripe, linear layers."""

    def __init__(self, width: int = 8, seed: int = 0, norm: bool = True) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.stripe = nn.Conv2d(width, width, (9, 3), padding=(4, 1), groups=width, bias=False)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = (x + self.stripe(x)).mean((2, 3))
        return self.fc2(F.gelu(self.fc1(x)))


SPARSE = ("stem.weight", "stripe.weight", "fc1.weight", "fc2.weight")

Batch = tuple[Tensor, Tensor]


def batches(count: int, size: int = 4, dtype: torch.dtype = torch.float32, seed: int = 5) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, 3, 8, 8, generator=generator, dtype=torch.float64).to(dtype),
            torch.randint(5, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]).double(), batch[1])


def config(**changes: Any) -> SparsityConfig:
    return SparsityConfig(**{"sparsity": 0.6, "update_every": 3, "prune_fraction": 0.4, **changes})


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.05)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=5e-2, momentum=0.9, nesterov=True)


@dataclass
class Run:
    """Sparse training by a plain loop that knows nothing of masks."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    sparse: SparseTraining | None
    accumulate: int = 1
    autocast: torch.dtype | None = None
    scaler: Any = None
    average: nn.Module | None = None
    after_step: Callable[[], None] = field(default=lambda: None)

    @classmethod
    def begin(
        cls,
        settings: SparsityConfig,
        steps: int,
        make: Callable[[nn.Module], torch.optim.Optimizer] = adamw,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> Run:
        model = SmallNet().to(dtype)
        optimizer = make(model)
        return cls(model, optimizer, SparseTraining(model, optimizer, settings, total_steps=steps), **options)

    def train(self, data: list[Batch]) -> Iterator[int]:
        """Train, and stop after every update, with its number."""
        self.model.train()
        for step in range(len(data) // self.accumulate):
            self.optimizer.zero_grad()
            for batch in data[step * self.accumulate : (step + 1) * self.accumulate]:
                with torch.autocast("cpu", self.autocast) if self.autocast else nullcontext():
                    loss = loss_of(self.model, batch) / self.accumulate
                (loss if self.scaler is None else self.scaler.scale(loss)).backward()
            if self.scaler is None:
                self.optimizer.step()
            else:
                self.scaler.step(self.optimizer)
                self.scaler.update()
            self.after_step()
            if self.average is not None:
                with torch.no_grad():
                    for mean, value in zip(self.average.parameters(), self.model.parameters(), strict=True):
                        mean.lerp_(value, 0.2)
            yield step + 1
