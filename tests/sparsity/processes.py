"""Two ranks train a small network sparse, under DDP and FSDP2: the script one process for each.

The arguments are the folder where both meet and leave masks and weights, and the rank.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from sparsity.small_net import Batch, Run, SmallNet, adamw, batches, config, loss_of
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from widefield._core.errors import InputError, RunError
from widefield.sparsity import SparseTraining, initial_masks

STEPS = 7
RUNS = (
    ("ddp", "random"),
    ("ddp", "gradient"),
    ("ddp", "momentum"),
    ("ddp", "momentum_neuron"),
    ("fsdp", "gradient"),
    ("fsdp", "momentum"),
)


def network() -> SmallNet:
    """In float64 and without BatchNorm, so that two ranks compute what one does."""
    return SmallNet(norm=False).double()


def settings(grow: str) -> Any:
    return config(grow=grow, allocation="snip", update_every=2)


def data() -> list[Batch]:
    return batches(STEPS, size=8, dtype=torch.float64)


def part(batch: Batch, rank: int) -> Batch:
    return batch[0][4 * rank : 4 * rank + 4], batch[1][4 * rank : 4 * rank + 4]


def result(model: nn.Module, sparse: SparseTraining, average: nn.Module) -> dict[str, torch.Tensor]:
    weights = {name: getattr(p, "full_tensor", lambda p=p: p)().detach() for name, p in model.named_parameters()}
    means = {name: getattr(p, "full_tensor", lambda p=p: p)().detach() for name, p in average.named_parameters()}
    return {
        **{f"weights/{name.removeprefix('module.')}": w for name, w in weights.items()},
        **{f"means/{name}": mean for name, mean in means.items()},
        **sparse.state_dict(),
    }


def train(kind: str, grow: str, rank: int) -> tuple[nn.Module, SparseTraining, nn.Module]:
    own = [part(batch, rank) for batch in data()]
    model = network()
    # Densities by snip, whose gradients are averaged over the ranks.
    masks = initial_masks(model, settings(grow), batches=own, loss=loss_of)
    wrapped: Any = model
    if kind == "ddp":
        wrapped = DistributedDataParallel(model)
    else:
        for module in (model.fc1, model):
            fully_shard(module)
    optimizer = adamw(model)
    sparse = SparseTraining(wrapped, optimizer, settings(grow), total_steps=STEPS, masks=masks)
    average = network()
    if kind == "fsdp":
        for module in (average.fc1, average):
            fully_shard(module)
    sparse.follow(average)
    for _ in Run(wrapped, optimizer, sparse, average=average).train(own):
        assert sparse.masks.violations(model) == {}
        assert sparse.masks.violations(average) == {}
        sparse.check_ranks()
    return wrapped, sparse, average


def main() -> None:
    folder = Path(sys.argv[1])
    rank = int(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    for kind, grow in RUNS:
        model, sparse, average = train(kind, grow, rank)
        save_file(result(model, sparse, average), folder / f"{kind}_{grow}_{rank}.safetensors")
    texts: list[str] = []
    try:
        initial_masks(model, settings("random"), batches=data(), loss=loss_of)
    except InputError as error:
        texts.append(str(error))
    other = network()
    lonely = SparseTraining(other, adamw(other), config(seed=rank), total_steps=1)
    try:
        lonely.check_ranks()
    except RunError as error:
        texts.append(str(error))
    (folder / f"errors_{rank}.txt").write_text("\n".join(texts))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
