from __future__ import annotations

from pathlib import Path

import pytest

from widefield.recipes import RECIPES, recipe


def words_of(text: str) -> str:
    return " ".join(text.split())


def contents(path: Path) -> list[str]:
    return sorted(str(entry.relative_to(path)) for entry in path.rglob("*"))


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    path = tmp_path / "work"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


def test_a_dry_run_tells_all_and_writes_nothing(widefield, empty: Path) -> None:
    small = ("--model.name", "unireplknet_a", "--data.image-size", 32, "--ema.decay", None)
    outcome = widefield("train", "--dry-run", "--scale-to-batch", 16, "--trainer.accumulate-steps", 2, *small)
    assert outcome.code == 0, outcome.err
    told = words_of(outcome.out)
    for part in (
        "scaled from 32 to 16 images an update",
        "optimizer.lr 0.002 -> 0.001",
        "data.batch_size 32 -> 8",
        "trainer.accumulate_steps 1 -> 2",
        "2 times as many updates in each",
        "recipe: quickstart",
        "name: unireplknet_a",
        "batch_size: 8",
        "; merged 4,1",
        "1,259 train, 179 validation, 359 test",
        "948: 12 epochs of 79, warm-up 79; 16 images in each",
        "GB for steps of 8 images on cpu",
        "10 steps of",
        "real images:",
        "dry run: nothing was written",
    ):
        assert part in told, part
    assert contents(empty) == []


def test_a_dry_run_without_data_or_weights_says_so(widefield, empty: Path) -> None:
    words = ("--data.image-size", 32, "--scale-to-batch", 4, "--model.name", "unireplknet_a", "--ema.decay", None)
    words += ("--distillation.teacher", "nowhere")
    outcome = widefield("train", "unireplknet_s_in22k_to_in1k_384", "--dry-run", *words)
    assert outcome.code == 0, outcome.err
    told = words_of(outcome.out)
    for part in (
        "data missing. Expected an existing folder or archive",
        "1,000 assumed in place of the data's",
        "updates unknown without the data",
        "weights missing. Expected a run folder or a checkpoint file, but got nothing at runs/unireplknet_s_in22k_90ep",
        "teacher not counted. The data are missing, whose classes it has to share.",
        "random images, since the data are missing",
    ):
        assert part in told, part
    assert contents(empty) == []


def test_a_run_that_cannot_fit_is_refused_before_anything_is_written(widefield, empty: Path) -> None:
    outcome = widefield("train", "--memory-limit", 0.01, "--model.grad-checkpointing", True)
    assert outcome.code == 2
    assert "a step of 1 image of replknet_nano at 48 px to fit into 95% of 0.01 GB, but got" in words_of(outcome.err)
    assert "with gradient checkpointing: raise --memory-limit" in words_of(outcome.err)
    assert contents(empty) == []


def test_a_plan_makes_up_the_same_batch(widefield, empty: Path, photos: Path) -> None:
    outcome = widefield(
        *("train", "--memory-limit", 50, "--scale-to-batch", 3, "--data.workers", 0, "--trainer.epochs", 1),
        *("--data.root", photos, "--data.image-size", 32, "--trainer.tensorboard", False),
        *("--schedule.warmup-epochs", 0, "--ema.decay", None, "--output", "run"),
    )
    assert outcome.code == 0, outcome.err
    told = words_of(outcome.out)
    assert "3 images a step x 1 accumulated step = 3 an update, without gradient checkpointing" in told
    # One image on a map of one pixel has no BatchNorm statistics, and is passed over.
    assert "tried, images: GB 3: " in told
    assert "batch_size: 3" in (empty / "run" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("--scale-to-batch", 64, "--data.batch-size", 48),
            "Expected --data.batch-size times --trainer.accumulate-steps to be --scale-to-batch 64, but got 48 times 1",
        ),
        (
            ("--scale-to-batch", 65, "--trainer.accumulate-steps", 2),
            "Expected a batch that 2 accumulated batches make up, but got 65 images",
        ),
        (("--sparsity", "0.4"), "Expected --sparsity None, which turns it off, but got --sparsity 0.4"),
        (("--sparsity"), "Expected --sparsity None, which turns it off, but got --sparsity: use --sparsity.sparsity"),
        (("--sparsity.sparsity", 40), "Expected sparsity from 0 to 1, but got 40: give it as a share"),
    ],
)
def test_options_that_contradict_each_other_are_refused(words, sentence: str, widefield, empty: Path) -> None:
    words = (words,) if isinstance(words, str) else words
    outcome = widefield("train", *words)
    assert outcome.code == 2
    assert sentence in words_of(outcome.err)
    assert contents(empty) == []


def test_a_run_that_is_taken_up_keeps_its_plan(widefield, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(recipe("quickstart").to_yaml())
    outcome = widefield("train", "--resume", tmp_path, "--memory-limit", 4)
    assert outcome.code == 2
    assert "Expected --resume without --memory-limit and --dry-run, but got both" in words_of(outcome.err)


def test_recipes_are_listed_by_family(widefield) -> None:
    told = widefield("train", "--recipes").out
    for family in ("RepLKNet", "MobileNetV2 with large kernels", "SLaK", "PeLK", "UniRepLKNet"):
        assert f"\n{family} " in told
    for name in RECIPES:
        assert f"  {name} " in told


def test_sparsity_is_an_option_where_it_is_on_or_named(widefield) -> None:
    assert "--sparsity.update-every" in widefield("train", "slak_t_in1k_300ep", "--help").out
    assert "--sparsity.update-every" not in widefield("train", "slak_t_in1k_300ep", "--sparsity", "None", "--help").out
    assert "--sparsity.update-every" in widefield("train", "--sparsity.sparsity", 0.3, "--help").out
