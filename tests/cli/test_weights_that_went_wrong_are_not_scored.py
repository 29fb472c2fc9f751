from __future__ import annotations

from pathlib import Path

import pytest
import torch

from widefield.data import DataConfig
from widefield.models import create_model
from widefield.tasks.classification import ClassifierCard, ModelConfig, save_classifier
from widefield.tasks.classification.card import make_classifier, start_from

NAME = "replknet_nano"
KEY = "stages.1.blocks.0.large_kernel.large.conv.weight"


def damaged(path: Path, kind: str) -> Path:
    torch.manual_seed(0)
    state = make_classifier(ModelConfig(name=NAME), 10).state_dict()
    if kind == "nan":
        state[KEY] = torch.full_like(state[KEY], float("nan"))
    elif kind == "int8":
        state = {name: tensor.to(torch.int8) for name, tensor in state.items()}
    elif kind == "shared":
        state["norm.bias"] = state["norm.weight"]
    elif kind == "large":
        # Each of them is finite, their products are not.
        state = {name: torch.full_like(v, 3e38) if name.endswith("conv.weight") else v for name, v in state.items()}
    if path.suffix == ".pth":
        torch.save(state, path)
    else:
        card = ClassifierCard(
            model=ModelConfig(name=NAME), data=DataConfig(image_size=32), classes=tuple(map(str, range(10)))
        )
        save_classifier(path, state, card)
    return path


def refused(outcome, *parts: str) -> None:
    assert outcome.code == 2, outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    for part in ("error: Expected ", *parts):
        assert part in outcome.err


@pytest.mark.parametrize(
    ("kind", "told"),
    [("nan", f"'{KEY}', which holds NaN"), ("int8", "of int8 where float32 is expected and ")],
)
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_no_command_takes_them(kind: str, told: str, ending: str, widefield, tmp_path: Path) -> None:
    path = damaged(tmp_path / f"w.{ending}", kind)
    out = tmp_path / "out.safetensors"
    parts = (told.partition(" and ")[0], str(path))
    refused(widefield("evaluate", path, "--model", NAME, "--root", "embedded:digits", "--workers", 0), *parts)
    refused(widefield("merge", path, "--model", NAME, "-o", out), *parts)
    refused(widefield("convert", path, "-o", out), *parts)
    refused(widefield("predict", tmp_path / "x.png", "--run", path, "--model", NAME), *parts)
    with pytest.raises(ValueError, match="Expected weights"):
        start_from(create_model(NAME, num_classes=10), path)
    assert not out.exists()


def test_what_shares_its_memory_is_not_converted(widefield, tmp_path: Path) -> None:
    path = damaged(tmp_path / "w.pth", "shared")
    for out in ("out.safetensors", "out.pth"):
        refused(widefield("convert", path, "-o", tmp_path / out), "Some tensors share memory", str(path))
        assert not (tmp_path / out).exists()


def test_outputs_that_are_not_finite_have_no_score(widefield, tmp_path: Path) -> None:
    path = damaged(tmp_path / "w.safetensors", "large")
    outcome = widefield("evaluate", path, "--root", "embedded:digits", "--workers", 0)
    assert outcome.code == 1
    assert "which have no score: use another checkpoint" in outcome.err
    assert "top-1" not in outcome.out


@pytest.mark.parametrize(
    "words",
    [
        ("--optimizer.lr", "inf"),
        ("--optimizer.lr", "nan"),
        ("--schedule.min-lr", "inf"),
        ("--schedule.warmup-epochs", "inf"),
        ("--ema.decay", "nan"),
        ("--distillation.temperature", "inf"),
        ("--model.drop-path-rate", "1.5"),
        ("--trainer.seed", str(2**64)),
        ("--model.kernel-sizes", "10001", "5", "5", "5"),
        ("--data.image-size", "100000"),
        ("--data.image-size", "12000"),
    ],
)
def test_values_that_cannot_work_leave_nothing_behind(words: tuple[str, ...], widefield, tmp_path: Path) -> None:
    outcome = widefield("train", "--trainer.epochs", 1, *words, "--output", tmp_path / "run")
    refused(outcome)
    assert not (tmp_path / "run").exists()
