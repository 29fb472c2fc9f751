from __future__ import annotations

import copy
import json
import logging
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from engine.small_run import BlockNet, Classify, DropPathNet, HalfMasked, Images, make_trainer
from torch import Tensor, nn

from widefield._core.errors import InputError, RunError
from widefield.engine import (
    ActivationMonitor,
    ActivationMonitorConfig,
    RunFolder,
    TrainerConfig,
    compute_in_float32,
    select_modules,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", False, 0)


def monitor(*modules: str, every_steps: int = 1, threshold: float = 1e4) -> ActivationMonitor:
    return ActivationMonitor(ActivationMonitorConfig(modules=modules, every_steps=every_steps, threshold=threshold))


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.endswith("activation_monitor")]


class Recorded(DropPathNet):
    """Notes what the monitor should find."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[float] = []

    def forward(self, images: Tensor) -> Tensor:
        y = super().forward(images)
        if self.training:
            self.sizes.append(float(self.stem(images).detach().abs().max()))
        return y


@pytest.mark.parametrize("every_steps", [1, 2])
def test_each_epoch_has_the_largest_magnitude_of_the_watched_passes(folder: RunFolder, every_steps: int) -> None:
    model = Recorded()
    result = make_trainer(folder, model=model, epochs=2, extensions=[monitor("stem", every_steps=every_steps)]).fit()
    # The second call of the stem comes of the test; both see the same weights and images.
    watched = [size for number, size in enumerate(model.sizes, 1) if number % every_steps == 0]
    first = 5 // every_steps
    expected = [max(watched[:first]), max(watched[first:])]
    assert [row["activation_max.stem"] for row in result.history] == pytest.approx(expected)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_first_crossing_warns_once_and_names_the_module(
    folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer(folder, epochs=2, extensions=[monitor("norm", "head", threshold=0.5)]).fit()
    texts = [record.getMessage() for record in caplog.records if "the output of" in record.getMessage()]
    assert len(texts) == 2
    assert any(text.startswith("the output of norm (BatchNorm2d) reaches ") for text in texts)
    assert all("above 0.5: lower optimizer.lr, set trainer.clip_norm, or name it in" in text for text in texts)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_named_and_infinite_in_the_table(
    folder: RunFolder, caplog: pytest.LogCaptureFixture, value: float
) -> None:
    class Overflowing(DropPathNet):
        calls = 0

        def forward(self, images: Tensor) -> Tensor:
            self.calls += self.training
            return super().forward(images * value if self.calls == 2 else images)

    watch = monitor("stem", "norm2", threshold=1e6)
    result = make_trainer(folder, model=Overflowing(), epochs=2, skip_nonfinite=2, extensions=[watch]).fit()
    # The norm behind it has that from the stem, and is not named besides.
    (text,) = warnings_of(caplog)
    assert text.startswith("the output of stem (Conv2d) is not finite")
    assert [math.isinf(row["activation_max.stem"]) for row in result.history] == [True, False]
    assert [row["skipped"] for row in result.history] == [1, 0]


def test_a_resumed_epoch_reports_what_an_unbroken_one_would(tmp_path: Path) -> None:
    histories = []
    for name in ("whole", "broken"):
        folder, task = RunFolder.create(tmp_path / name, False, 0), Classify(Images())
        changes: Any = {"checkpoint_every_steps": 1, "epochs": 2}
        if name == "broken":
            task.at_loss[4] = lambda loss: (_ for _ in ()).throw(KeyboardInterrupt)
            with pytest.raises(KeyboardInterrupt):
                make_trainer(folder, task=task, extensions=[monitor("stem", every_steps=2)], **changes).fit()
        trainer = make_trainer(folder, extensions=[monitor("stem", every_steps=2)], **changes)
        histories.append(trainer.fit(resume=name == "broken").history)
    assert [row["activation_max.stem"] for row in histories[0]] == [row["activation_max.stem"] for row in histories[1]]


def test_a_compiled_run_is_refused(folder: RunFolder) -> None:
    with pytest.raises(InputError, match=r"Expected a run without trainer\.compile for the activation monitor"):
        make_trainer(folder, compile=True, extensions=[monitor("stem")]).fit()


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: ActivationMonitorConfig(modules=()), "Expected modules to monitor, but got none"),
        (lambda: ActivationMonitorConfig(every_steps=0), "Expected every_steps to be at least 1, but got 0"),
        (lambda: ActivationMonitorConfig(threshold=0), "Expected a positive threshold, but got 0: raise it"),
    ],
)
def test_settings_that_watch_nothing_are_refused(build: Any, text: str) -> None:
    with pytest.raises(InputError, match=text):
        build()


def test_patterns_match_parts_of_names_in_the_order_of_the_model() -> None:
    model = BlockNet()
    assert list(select_modules(model, ["stages.*.blocks.*", "stem"])) == [
        "stem",
        *(f"stages.0.blocks.{number}" for number in range(3)),
    ]
    assert list(select_modules(model, [])) == []
    with pytest.raises(InputError, match=r"matches modules of the model, but got 'stge\.0': use one such as stages\.0"):
        select_modules(model, ["stge.0"])


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.seen = nn.Conv2d(3, 3, 1), []

    def forward(self, images: Tensor, *, shift: Tensor | None = None) -> Tensor:
        if shift is not None and not shift.any():
            raise ValueError("no shift")
        y = self.conv(images)
        self.seen.append((images.dtype, y.dtype))
        return y if shift is None else y + shift


def test_named_modules_compute_in_float32_within_autocast() -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), Block(), nn.Conv2d(3, 3, 1))
    images, narrow, wide = torch.randn(2, 3, 4, 4), torch.bfloat16, torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        net(images)
        handles = compute_in_float32([net[1]])
        net(images).sum().backward()
        twin = copy.deepcopy(net)
        twin(images)
        with pytest.raises(ValueError, match="no shift"):
            net[1](images, shift=torch.zeros(3, 1, 1, dtype=narrow))
        assert net[1](images, shift=torch.ones(3, 1, 1, dtype=narrow)).dtype == wide
        assert net[0](images).dtype == narrow
        for handle in handles:
            handle.remove()
        net(images)
    assert net[1].seen == [(narrow, narrow), (wide, wide), (wide, wide), (narrow, narrow)]
    assert twin[1].seen[-1] == (wide, wide)


def test_the_trainer_keeps_them_and_takes_the_hooks_off(folder: RunFolder) -> None:
    class Net(DropPathNet):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, images: Tensor) -> Tensor:
            return super().forward(self.block(images.bfloat16()))

    model = Net()
    make_trainer(folder, model=model, precision="bf16", epochs=1, ema={"decay": 0.5}, float32_modules=("block",)).fit()
    assert set(model.block.seen) == {(torch.float32, torch.float32)}
    assert not model.block._forward_hooks
    assert not model.block._forward_pre_hooks
    with pytest.raises(InputError, match="Expected a pattern that matches modules of the model, but got 'blok'"):
        make_trainer(RunFolder(folder.path / "other"), float32_modules=("blok",)).fit()


def test_two_ranks_report_the_larger_value(tmp_path: Path, run_small: Any) -> None:
    shared = {"resume": False, "ranks": 2, "watched": ["stem"], "changes": {"epochs": 1, "drop": 0.0}}
    done = run_small(
        [{**shared, "folder": str(tmp_path / "two")}, {**shared, "folder": str(tmp_path / "one"), "ranks": 1}]
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [0, 0], done.stderr
    found = [(tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("two", "one")]
    values = [dict(zip(*(line.split(",") for line in lines), strict=True)) for lines in found]
    # Without drop path, whose draws belong to a rank, both see the same weights and between them the same images.
    assert float(values[0]["activation_max.stem"]) == pytest.approx(float(values[1]["activation_max.stem"]), rel=1e-4)


class ExplodingBlockNet(BlockNet):
    """Its second block explodes at the fourth training pass, when the weights are still finite."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.passes, self.factor = 0, factor
        self.get_submodule("stages.0.blocks.1").register_forward_hook(self.explode)

    def explode(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        self.passes += self.training
        return output * self.factor if self.training and self.passes == 4 else output


def test_a_monitored_run_records_every_block_and_stops_with_the_name_of_the_one_that_explodes(
    folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    changes: Any = {"epochs": 1, "monitor_activations": True, "log_every_steps": 5}
    history = make_trainer(folder, model=BlockNet(), **changes).fit().history
    names = [f"activation_max.stages.0.blocks.{number}" for number in range(3)]
    assert all(0 < history[0][name] < 1e4 for name in names)
    assert [name for name in history[0] if name.startswith("activation_max.")] == names
    assert not warnings_of(caplog)

    stopped = r"^The loss is nan at step 4 .* The first output that was not finite is that of stages\.0\.blocks\.1 "
    stopped += r"\(Sequential\): name it in trainer\.float32_modules if the run is under autocast, or put a norm before"
    with pytest.raises(RunError, match=stopped):
        make_trainer(
            RunFolder.create(folder.path / "other", False, 0), model=ExplodingBlockNet(math.inf), **changes
        ).fit()
    (text,) = warnings_of(caplog)
    assert text.startswith("the output of stages.0.blocks.1 (Sequential) is not finite: lower optimizer.lr")


def test_a_monitored_run_warns_of_a_block_above_the_limit_and_goes_on(
    folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    changes: Any = {"epochs": 1, "monitor_activations": True, "activation_limit": 1e5}
    make_trainer(folder, model=ExplodingBlockNet(1e8), **changes).fit()
    (text,) = warnings_of(caplog)
    assert text.startswith("the output of stages.0.blocks.1 (Sequential) reaches ")
    assert "above 100000: lower optimizer.lr, set trainer.clip_norm" in text


def test_skipped_steps_that_end_a_monitored_run_name_the_module_too(folder: RunFolder) -> None:
    stopped = "not finite in 1 step, the last of them step 4 .* is that of stages.0.blocks.1 "
    with pytest.raises(RunError, match=stopped):
        make_trainer(
            folder,
            model=ExplodingBlockNet(math.nan),
            epochs=1,
            monitor_activations=True,
            skip_nonfinite=1,
            extensions=[HalfMasked()],
        ).fit()


def test_a_monitored_run_blames_no_module_for_a_loss_that_fails_by_itself(folder: RunFolder) -> None:
    task = Classify(Images())
    task.at_loss[3] = lambda loss: loss * float("nan")
    with pytest.raises(RunError, match=r"^The loss is nan at step 3 .* there is no checkpoint before it\.$"):
        make_trainer(folder, task=task, model=BlockNet(), monitor_activations=True, log_every_steps=5).fit()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"monitor_activations": True, "compile": True},
            "Expected trainer.monitor_activations without trainer.compile, but got both: turn one of them off",
        ),
        (
            {"monitored_modules": ()},
            "Expected trainer.monitored_modules, but got none: name some, such as stages",
        ),
        ({"activation_limit": -1.0}, "Expected a positive trainer.activation_limit, but got -1: raise it"),
    ],
)
def test_a_run_that_cannot_be_monitored_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        TrainerConfig(**changes)


def test_logging_is_quiet_below_the_threshold(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        make_trainer(folder, epochs=1, extensions=[monitor("stem")]).fit()
    assert "the output of" not in caplog.text
