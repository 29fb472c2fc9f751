from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from timm.layers import BatchNormAct2d
from torch import nn

from widefield.engine import SyncBatchNorm2d, convert_sync_batch_norm
from widefield.engine.sync_batch_norm import SyncBatchNormAct2d

if TYPE_CHECKING:
    from engine.conftest import TwoProcesses

if TYPE_CHECKING:
    import pytest


def test_ranks_with_unequal_batches_normalise_as_one(two_processes: TwoProcesses) -> None:
    assert two_processes.errors.count("agrees") == 2, two_processes.errors


def test_conversion_keeps_keys_tensors_and_class_family_and_can_be_undone() -> None:
    shared = nn.BatchNorm2d(4)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), shared, BatchNormAct2d(4), nn.Sequential(nn.BatchNorm1d(4)), shared)
    before = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    plain = [type(module) for module in model.modules()]
    conversion = convert_sync_batch_norm(model)
    assert type(model[1]) is SyncBatchNorm2d
    assert isinstance(model[1], nn.BatchNorm2d)
    assert type(model[2]) is SyncBatchNormAct2d
    assert model[4] is model[1]
    assert {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()} == before
    model.double()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    model[1](model[0](x))
    conversion.restore()
    assert [type(module) for module in model.modules()] == plain
    assert model[1] is shared
    assert shared.running_mean is not None
    assert shared.running_mean.dtype == torch.float64
    assert shared.num_batches_tracked == 1
    assert not convert_sync_batch_norm(nn.Sequential(nn.ReLU())).replaced


def test_in_one_process_it_is_plain_batch_norm() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), BatchNormAct2d(3))
    twin = nn.Sequential(nn.BatchNorm2d(3), BatchNormAct2d(3))
    convert_sync_batch_norm(twin)
    x = torch.randn(4, 3, 5, 5)
    assert torch.equal(model(x), twin(x))
    assert torch.equal(model.eval()(x), twin.eval()(x))


def test_a_batch_norm_of_unknown_kind_is_named(caplog: pytest.LogCaptureFixture) -> None:
    class OddNorm(nn.BatchNorm2d):
        pass

    model = nn.Sequential(OddNorm(3))
    with caplog.at_level(logging.WARNING):
        convert_sync_batch_norm(model)
    assert type(model[0]) is OddNorm
    assert "0 is not synchronised between processes: OddNorm" in caplog.text
