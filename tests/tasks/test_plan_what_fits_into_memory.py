from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from widefield._core.errors import InputError
from widefield.recipes import recipe
from widefield.tasks.classification import ModelConfig, RunConfig, plan
from widefield.tasks.classification.plan import USABLE, plan_for_memory
from widefield.tasks.classification.trial import Trial, TrialPlan, Trials, predicted_bytes, run_trials

Peak = Callable[[int, bool], int]
GB = 10**9


def trial(batch: int, peak_bytes: int) -> Trial:
    return Trial(batch=batch, steps=1, peak_bytes=peak_bytes, step_s=1, evaluation_s=1, load_s=0)


@pytest.fixture
def peak_is(monkeypatch: pytest.MonkeyPatch) -> Callable[[Peak], list[TrialPlan]]:
    """Put a function of the batch and of checkpointing in the place of real steps."""

    def put(peak: Peak) -> list[TrialPlan]:
        asked: list[TrialPlan] = []

        def tried(config: RunConfig, wanted: TrialPlan) -> Trials:
            asked.append(wanted)
            assert wanted.limit_bytes is not None
            sizes: list[Trial] = []
            for size in wanted.sizes:
                sizes.append(trial(size, peak(size, config.model.grad_checkpointing)))
                if sizes[-1].peak_bytes > wanted.limit_bytes:
                    break
            return Trials(sizes=tuple(sizes), timed=sizes[-1] if wanted.timed_steps else None)

        monkeypatch.setattr(plan, "run_trials", tried)
        return asked

    return put


BASE = recipe("replknet_31b_in1k_120ep")


@pytest.mark.parametrize(
    ("gigabytes", "world_size", "expected"),
    [
        (4000, 1, (2048, 1, False)),
        (100, 1, (64, 32, False)),
        (40, 1, (32, 64, False)),
        (20, 1, (32, 64, True)),
        (20, 8, (32, 8, True)),
        (4000, 8, (256, 1, False)),
        (4, 1, (2, 1024, True)),
    ],
)
def test_the_batch_is_made_up_of_what_fits(
    gigabytes: float, world_size: int, expected: tuple[int, int, bool], peak_is: Callable[[Peak], list[TrialPlan]]
) -> None:
    peak_is(lambda size, checkpoints: 2 * GB + size * GB // (2 if checkpoints else 1))
    found = plan_for_memory(BASE, int(gigabytes * GB), 1000, device="cpu", world_size=world_size)
    micro, steps, checkpoints = expected
    assert (found.micro_batch, found.accumulate_steps, found.grad_checkpointing) == (micro, steps, checkpoints)
    assert found.micro_batch * found.accumulate_steps * world_size == BASE.update_batch
    assert found.peak_bytes <= USABLE * gigabytes * GB


def test_checkpointing_is_not_tried_where_enough_images_fit_without_it(peak_is) -> None:
    asked = peak_is(lambda size, checkpoints: 2 * GB + size * GB)
    assert not plan_for_memory(BASE, 40 * GB, 1000, device="cpu").grad_checkpointing
    assert [len(wanted.sizes) for wanted in asked] == [11, 1]


def test_checkpointing_that_was_asked_for_is_kept(peak_is) -> None:
    peak_is(lambda size, checkpoints: GB if checkpoints else 1000 * GB)
    config = replace(BASE, model=replace(BASE.model, grad_checkpointing=True))
    assert plan_for_memory(config, 4 * GB, 1000, device="cpu").micro_batch == 2048


def test_a_size_that_takes_more_on_its_own_gives_way_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    def tried(config: RunConfig, wanted: TrialPlan) -> Trials:
        if wanted.timed_steps:
            return Trials(sizes=(), timed=trial(wanted.sizes[0], (3 if wanted.sizes[0] > 256 else 1) * GB))
        return Trials(sizes=tuple(trial(size, GB) for size in wanted.sizes), timed=None)

    monkeypatch.setattr(plan, "run_trials", tried)
    assert plan_for_memory(BASE, 2 * GB, 1000, device="cpu").micro_batch == 256


def test_mixed_batches_are_even_and_others_need_not_be(peak_is) -> None:
    asked = peak_is(lambda size, checkpoints: GB)
    odd = replace(BASE, data=replace(BASE.data, batch_size=30))
    plan_for_memory(odd, 2 * GB, 1000, device="cpu")
    plain = replace(odd, augmentation=replace(odd.augmentation, mixup=0.0, cutmix=0.0))
    plan_for_memory(plain, 2 * GB, 1000, device="cpu")
    assert [wanted.sizes for wanted in asked[::2]] == [(2, 6, 10, 30), (1, 2, 3, 5, 6, 10, 15, 30)]


@pytest.mark.parametrize(
    ("config", "gigabytes", "world_size", "sentence"),
    [
        (
            BASE,
            2,
            1,
            "a step of 2 images of replknet_31b at 224 px to fit into 95% of 2 GB, but got 3.00 GB with gradient",
        ),
        (BASE, 0, 1, "Expected a memory limit above 0, but got 0 GB: give the gigabytes of one process"),
        (BASE, 2, 3, "Expected a batch that 3 processes can share, but got 2048 images: use --scale-to-batch"),
        (
            replace(BASE, data=replace(BASE.data, batch_size=7)),
            2,
            1,
            "Expected an even batch on each process for mixup and cutmix, but got 7 images: use --scale-to-batch",
        ),
    ],
)
def test_what_cannot_fit_is_told(config: RunConfig, gigabytes: int, world_size: int, sentence: str, peak_is) -> None:
    peak_is(lambda size, checkpoints: 2 * GB + size * GB // 2)
    with pytest.raises(InputError, match=sentence):
        plan_for_memory(config, gigabytes * GB, 1000, device="cpu", world_size=world_size)


def test_a_first_step_that_broke_off_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "run_trials", lambda config, wanted: Trials(sizes=(), timed=None))
    with pytest.raises(InputError, match=r"into 95% of 2 GB, but got more than there is with gradient checkpointing"):
        plan_for_memory(BASE, 2 * GB, 1000, device="cpu")


def test_the_next_peak_is_on_the_line_through_the_last_two() -> None:
    assert predicted_bytes([trial(2, 100)], 64) == 100
    assert predicted_bytes([trial(1, 5), trial(2, 100), trial(4, 140)], 64) == 140 + 60 * 20
    assert predicted_bytes([trial(2, 100), trial(4, 90)], 64) == 90


SMALL = replace(
    recipe("quickstart"),
    model=ModelConfig(name="unireplknet_a"),
    ema=replace(recipe("quickstart").ema, decay=None),
)


def test_real_steps_take_more_memory_the_more_images_and_stop_above_the_limit() -> None:
    config = replace(SMALL, data=replace(SMALL.data, image_size=64))
    found = run_trials(config, TrialPlan(sizes=(2, 8, 24), num_classes=10, device="cpu", world_size=2))
    first, second, third = (tried.peak_bytes for tried in found.sizes)
    parameters_bytes = 3 * 4_300_000 * 4
    assert parameters_bytes < first < second < third
    # Activations grow with the images: nearly three times the images, at least twice the growth.
    assert third - second > 1.2 * (second - first)
    limit = (first + second) // 2
    stopped = run_trials(
        config,
        TrialPlan(sizes=(2, 8, 24), num_classes=10, device="cpu", world_size=2, limit_bytes=limit, timed_steps=2),
    )
    assert [tried.batch for tried in stopped.sizes] == [2, 8]
    assert stopped.sizes[-1].peak_bytes > limit


def test_settings_that_cannot_work_are_told_from_the_other_process() -> None:
    wrong = replace(SMALL, model=ModelConfig(name="slak_a", options=("shortcut=false",)))
    with pytest.raises(InputError, match="Expected settings that slak_a takes, but got"):
        run_trials(wrong, TrialPlan(sizes=(2,), num_classes=10, device="cpu"))
