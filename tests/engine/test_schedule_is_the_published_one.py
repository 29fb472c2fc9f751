"""The learning rate of each update against the closed form of the published code, written with NumPy's own pieces."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from widefield.engine import OptimizerConfig, ScheduleConfig, make_optimizer, make_scheduler


def rates(config: ScheduleConfig, epochs: int, updates_per_epoch: int, optimizer: Any = None) -> list[float]:
    """Return the rate of every update of a run and of the one that would follow."""
    if optimizer is None:
        optimizer = make_optimizer(nn.Linear(2, 2), OptimizerConfig(lr=0.5))
    scheduler = make_scheduler(optimizer, config, epochs, updates_per_epoch)
    found = [optimizer.param_groups[0]["lr"]]
    for update in range(1, epochs * updates_per_epoch + 1):
        scheduler.step_update(update)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def published(peak: float, end: float, warmup: int, updates: int) -> np.ndarray:
    after = np.arange(updates - warmup)
    cosine = end + 0.5 * (peak - end) * (1 + np.cos(np.pi * after / max(len(after), 1)))
    return np.concatenate([np.linspace(0, peak, warmup), cosine])


@pytest.mark.parametrize(
    ("warmup_epochs", "epochs", "updates_per_epoch"),
    [(0, 3, 7), (1, 3, 7), (2, 5, 13), (1, 2, 1), (0, 1, 1), (1, 1, 9), (0.5, 2, 10), (20, 300, 11), (0.1, 4, 10)],
)
def test_every_update_has_the_published_rate(warmup_epochs: float, epochs: int, updates_per_epoch: int) -> None:
    config = ScheduleConfig(warmup_epochs=warmup_epochs, min_lr=1e-3)
    *found, after = rates(config, epochs, updates_per_epoch)
    warmup, updates = round(warmup_epochs * updates_per_epoch), epochs * updates_per_epoch
    np.testing.assert_allclose(found, published(0.5, 1e-3, warmup, updates), rtol=1e-12, atol=0)
    assert after == pytest.approx(1e-3 if warmup < updates else 0.5)


def test_the_rise_has_both_its_ends_and_the_cosine_starts_at_the_peak() -> None:
    found = rates(ScheduleConfig(warmup_epochs=1, min_lr=0.0), 3, 5)
    assert found[:6] == pytest.approx([0.0, 0.125, 0.25, 0.375, 0.5, 0.5])
    assert found[10] == pytest.approx(0.25)
    assert 0 < found[14] < found[13]
    assert found[15] == 0.0


def test_the_rise_may_start_elsewhere_and_the_peak_may_last() -> None:
    config = ScheduleConfig(name="constant", warmup_epochs=1, warmup_lr=0.1)
    assert rates(config, 2, 3) == pytest.approx([0.1, 0.3, 0.5, 0.5, 0.5, 0.5, 0.5])
    assert ScheduleConfig().warmup_lr == 0.0


def test_scaled_layers_have_their_multiple_of_every_rate_the_end_included() -> None:
    top, low = nn.Linear(2, 2), nn.Linear(2, 2)
    groups = [{"params": list(top.parameters()), "lr_scale": 1.0}, {"params": list(low.parameters()), "lr_scale": 0.3}]
    optimizer = torch.optim.AdamW(groups, lr=0.5)
    scheduler = make_scheduler(optimizer, ScheduleConfig(warmup_epochs=1, warmup_lr=0.1, min_lr=0.2), 3, 4)
    for update in range(13):
        scheduler.step_update(update)
        ours, theirs = optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"]
        assert theirs == pytest.approx(0.3 * ours, rel=1e-12), update
    assert optimizer.param_groups[1]["lr"] == pytest.approx(0.3 * 0.2)


def test_a_run_that_is_taken_up_goes_on_where_it_was() -> None:
    config = ScheduleConfig(warmup_epochs=1)
    whole = rates(config, 3, 6)
    for step in (2, 6, 11, 18):
        optimizer = make_optimizer(nn.Linear(2, 2), OptimizerConfig(lr=0.5))
        make_scheduler(optimizer, config, 3, 6).step_update(step)
        assert optimizer.param_groups[0]["lr"] == whole[step]


@pytest.mark.parametrize(
    ("warmup_epochs", "sentence"),
    [
        (2, "the warmup of 8 updates leaves none of the 8 of the run: the learning rate only rises; lower schedule."),
        (
            3,
            "the warmup of 12 updates leaves none of the 8 of the run: the learning rate only rises, and its peak is "
            "never reached; lower schedule.warmup_epochs",
        ),
    ],
)
def test_a_run_that_only_rises_is_told(warmup_epochs: int, sentence: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="widefield"):
        found = rates(ScheduleConfig(warmup_epochs=warmup_epochs), 2, 4)
    assert sentence in caplog.text
    assert found == sorted(found)
    assert found[7] == pytest.approx(0.5 * 7 / (warmup_epochs * 4 - 1))
