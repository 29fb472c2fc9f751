"""Two ranks with batches of different size against one process that sees both: called on each rank."""

from __future__ import annotations

import copy
import sys

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn

from widefield.engine import convert_sync_batch_norm


def compare(layer: nn.Module, x: torch.Tensor, grad: torch.Tensor, sizes: list[int]) -> None:
    rank = dist.get_rank()
    plain, holder = copy.deepcopy(layer), nn.Sequential(copy.deepcopy(layer))
    conversion = convert_sync_batch_norm(holder)
    assert type(holder[0]) is not type(plain)
    whole = x.clone().requires_grad_()
    plain(whole).backward(grad)
    assert whole.grad is not None
    local = x.split(sizes)[rank].clone().requires_grad_()
    y = holder(local)
    y.backward(grad.split(sizes)[rank])
    with torch.no_grad():
        torch.testing.assert_close(y, copy.deepcopy(layer).train()(x).split(sizes)[rank])
    torch.testing.assert_close(local.grad, whole.grad.split(sizes)[rank])
    for mine, reference in zip(holder.parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None
        dist.all_reduce(mine.grad)
        torch.testing.assert_close(mine.grad, reference.grad)
    conversion.restore()
    assert type(holder[0]) is type(plain)
    for (name, mine), reference in zip(holder[0].state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, reference, msg=lambda text, name=name: f"{name}: {text}")


def main() -> None:
    torch.manual_seed(0)
    for dtype, offset in ((torch.float64, 0.0), (torch.float32, 0.0), (torch.float64, 1e4)):
        for layer, shape in (
            (nn.BatchNorm2d(3), (7, 3, 4, 5)),
            (nn.BatchNorm2d(3, affine=False), (7, 3, 4, 5)),
            (nn.BatchNorm2d(3, momentum=None), (7, 3, 4, 5)),
            (nn.BatchNorm2d(3, track_running_stats=False), (7, 3, 4, 5)),
            (nn.BatchNorm1d(3), (7, 3)),
            (nn.BatchNorm1d(3), (7, 3, 6)),
            (nn.BatchNorm3d(3), (7, 3, 2, 2, 2)),
            (BatchNormAct2d(3), (7, 3, 4, 5)),
        ):
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, 0.5, 1.5)
            x = torch.randn(shape, dtype=dtype) * 3 + offset
            compare(layer.to(dtype), x, torch.randn(shape, dtype=dtype), [5, 2])
    # Where the mean dwarfs the spread, E[x^2] - E[x]^2 in float32 would lose the variance altogether.
    layer = nn.Sequential(nn.BatchNorm2d(1, momentum=1.0))
    conversion = convert_sync_batch_norm(layer)
    x = 4096 + torch.randn(8, 1, 8, 8)
    layer(x.split(4)[dist.get_rank()])
    conversion.restore()
    torch.testing.assert_close(layer[0].running_var, x.double().var().float().view(1), rtol=1e-4, atol=0)
    sys.stderr.write(f"rank {dist.get_rank()} agrees\n")
