from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

WORKER = textwrap.dedent(
    """
    import sys
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor
    from widefield.ops import SharingGrid, decomposed_conv2d, depthwise_conv2d, peripheral_conv2d

    rank, world, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    grid = SharingGrid((3, 1, 1, 1, 3))
    same = Replicate()
    WAYS = {
        "batch": (Shard(0), same, same, Shard(0), Partial()),
        "channels": (Shard(1), Shard(0), Shard(0), Shard(1), Shard(0)),
        "whole": (same, same, same, same, same),
        "rows": (Shard(2), same, same, None, None),
    }
    OPERATORS = {
        "dense": (lambda x, w, b: depthwise_conv2d(x, w, b), (4, 1, 5, 3)),
        "large": (lambda x, w, b: depthwise_conv2d(x, w, b), (4, 1, 21, 21)),
        "strided": (lambda x, w, b: depthwise_conv2d(x, w, b, stride=2, padding=1), (4, 1, 5, 3)),
        "bare": (lambda x, w, b: depthwise_conv2d(x, w), (4, 1, 5, 3)),
        "cells": (lambda x, w, b: peripheral_conv2d(x, w, b, rows=grid), (4, 1, 5, 5)),
        "stripes": (lambda x, w, b: decomposed_conv2d(x, w, w.transpose(2, 3), bias=b), (4, 1, 5, 3)),
    }
    for name, (function, size) in OPERATORS.items():
        torch.manual_seed(0)
        values = [torch.randn(n).double().requires_grad_() for n in ((3, 4, 11, 10), size, (4,))]
        expected = function(*values)
        gradients = torch.autograd.grad(expected.sin().sum(), values, allow_unused=True)
        for way, places in WAYS.items():
            spread = [
                distribute_tensor(v.detach(), mesh, [p]).requires_grad_() for v, p in zip(values, places[:3])
            ]
            for _ in range(2):
                y = function(*spread)
                assert places[3] is None or y.placements == (places[3],), (name, way, y.placements)
                torch.testing.assert_close(y.full_tensor(), expected)
                wanted = [v for v, g in zip(spread, gradients) if g is not None]
                torch.autograd.backward(y, y.cos().detach(), inputs=wanted)
                for v, g in zip(spread, gradients):
                    if g is not None:
                        torch.testing.assert_close(v.grad.full_tensor(), g)
                        v.grad = None
        x, w, b = (distribute_tensor(v.detach(), mesh, [p]) for v, p in zip(values, WAYS["batch"][:3]))
        torch.testing.assert_close(function(x, w, b).full_tensor(), expected)
    dist.destroy_process_group()
    """
)


@pytest.mark.parametrize("world", [1, 2])
def test_values_and_gradients_are_those_of_one_process(world: int, tmp_path: Path) -> None:
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(world), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        ends = [worker.communicate(timeout=200) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0] * world, "\n".join(error[-3000:] for _, error in ends)


def test_nothing_of_it_is_imported_before_it_is_used() -> None:
    code = """
    import sys, torch
    before = set(sys.modules)
    import widefield.ops, widefield.nn
    widefield.ops.depthwise_conv2d(torch.ones(1, 2, 9, 9, requires_grad=True), torch.ones(2, 1, 3, 3)).sum().backward()
    assert not [name for name in set(sys.modules) - before if name.startswith("torch.distributed.tensor")]
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
