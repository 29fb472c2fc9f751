from __future__ import annotations

import dataclasses
import multiprocessing
import os
import random
import signal
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from widefield._core.errors import InputError, RunError
from widefield.data import AugmentationConfig, Batch, DataConfig, evaluation_loader, open_split, train_loader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from widefield.data.source import ImageSource

EVERYTHING = AugmentationConfig(mixup=0.8, cutmix=1.0, affine_degrees=10.0, vertical_flip=0.5, random_erasing=0.5)
UNMIXED = dataclasses.replace(EVERYTHING, mixup=0.0, cutmix=0.0)
DATA = DataConfig(image_size=16, batch_size=8, workers=0)


@pytest.fixture
def source(write_zip: Callable[..., Path]) -> ImageSource:
    """Sixty images in three classes, in an archive."""
    members = {
        f"{name}/{number:02d}.png": 100 * place + number for place, name in enumerate("abc") for number in range(20)
    }
    root = write_zip("root/train.zip", members).parent
    write_zip("root/val.zip", {f"{name}/0.png": 1 for name in "abc"})
    return open_split(DataConfig(root=str(root)), "train")


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(getattr(one, name), getattr(other, name))
        for one, other in zip(first, second, strict=True)
        for name in ("images", "targets", "indices")
    )


def workers(count: int) -> DataConfig:
    return dataclasses.replace(DATA, workers=count)


@pytest.fixture
def whole(source: ImageSource) -> list[Batch]:
    return list(train_loader(source, DATA, EVERYTHING, seed=1).epoch(3))


def test_an_epoch_is_made_of_full_batches_of_different_images(source: ImageSource, whole: list[Batch]):
    assert [batch.images.shape for batch in whole] == [(8, 3, 16, 16)] * 7
    assert {batch.images.dtype for batch in whole} == {batch.targets.dtype for batch in whole} == {torch.float32}
    assert all(torch.allclose(batch.targets.sum(1), torch.ones(8)) for batch in whole)
    indices = torch.cat([batch.indices for batch in whole]).tolist()
    assert len(set(indices)) == 56
    loader = train_loader(source, DATA, UNMIXED, seed=1)
    assert (len(loader), loader.num_samples, loader.num_skipped) == (7, 56, 0)
    batch = next(loader.epoch(0))
    assert batch.targets.tolist() == [source.load(int(index))[1] for index in batch.indices]
    assert batch.targets.dtype == batch.indices.dtype == torch.int64
    assert len(batch) == 8


def test_an_epoch_resumed_in_the_middle_goes_on_bit_for_bit(source: ImageSource, whole: list[Batch]):
    for count in (0, 2):
        loader = train_loader(source, workers(count), EVERYTHING, seed=1)
        assert same(list(loader.epoch(3, start=5)), whole[5:])
        assert list(loader.epoch(3, start=7)) == []
        loader.close()


@pytest.mark.parametrize("count", [1, 2])
def test_the_number_of_workers_changes_nothing(count: int, source: ImageSource, whole: list[Batch]):
    loader = train_loader(source, workers(count), EVERYTHING, seed=1)
    other = list(loader.epoch(2))
    assert same(list(loader.epoch(3)), whole)
    assert same(list(train_loader(source, DATA, EVERYTHING, seed=1).epoch(2)), other)
    loader.close()


def test_workers_that_are_spawned_change_nothing(source: ImageSource, whole: list[Batch]):
    method = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        loader = train_loader(source, workers(1), EVERYTHING, seed=1)
        assert same(list(loader.epoch(3)), whole)
        loader.close()
    finally:
        multiprocessing.set_start_method(method, force=True)


def test_draws_made_before_or_between_change_nothing(source: ImageSource, whole: list[Batch]):
    batches = []
    for batch in train_loader(source, DATA, EVERYTHING, seed=1).epoch(3):
        batches.append(batch)
        random.random()
        np.random.rand(3)
        torch.rand(5)
    assert same(batches, whole)


def test_epochs_and_seeds_differ(source: ImageSource, whole: list[Batch]):
    loader = train_loader(source, DATA, EVERYTHING, seed=1)
    assert loader.epoch(4).__next__().indices.tolist() != whole[0].indices.tolist()
    assert next(train_loader(source, DATA, EVERYTHING, seed=2).epoch(3)).indices.tolist() != whole[0].indices.tolist()
    first = {
        int(index): image
        for batch in train_loader(source, DATA, UNMIXED, seed=1).epoch(0)
        for index, image in pairs(batch)
    }
    second = {
        int(index): image
        for batch in train_loader(source, DATA, UNMIXED, seed=1).epoch(1)
        for index, image in pairs(batch)
    }
    assert not any(torch.equal(first[index], second[index]) for index in first.keys() & second.keys())


def pairs(batch: Batch) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return zip(batch.indices, batch.images, strict=True)


@pytest.mark.parametrize("count", [0, 2])
def test_the_generators_of_the_caller_are_left_alone(count: int, source: ImageSource):
    loader = train_loader(source, workers(count), EVERYTHING, seed=1)
    states = (random.getstate(), str(np.random.get_state()), torch.get_rng_state())
    for _ in loader.epoch(0):
        assert random.getstate() == states[0]
        assert str(np.random.get_state()) == states[1]
        assert torch.equal(torch.get_rng_state(), states[2])
    loader.close()


def test_two_ranks_hold_the_two_halves_of_each_global_batch(source: ImageSource):
    whole = list(train_loader(source, DATA, UNMIXED, seed=1).epoch(2))
    halves = [list(train_loader(source, DATA, UNMIXED, seed=1, rank=rank, world_size=2).epoch(2)) for rank in (0, 1)]
    joined = [
        Batch(*(torch.cat([getattr(left, name), getattr(right, name)]) for name in ("images", "targets", "indices")))
        for left, right in zip(*halves, strict=True)
    ]
    assert same(joined, whole)


def test_ranks_mix_their_batches_differently(source: ImageSource):
    weights = [
        next(train_loader(source, DATA, EVERYTHING, seed=1, rank=rank, world_size=2).epoch(0)).targets.sort(1)[0]
        for rank in (0, 1)
    ]
    assert not torch.equal(weights[0], weights[1])


def test_two_iterations_at_once_do_not_disturb_each_other(source: ImageSource, whole: list[Batch]):
    loader = train_loader(source, workers(1), EVERYTHING, seed=1)
    list(loader.epoch(0))
    both = list(zip(loader.epoch(3), loader.epoch(3, start=1), strict=False))
    assert same([first for first, _ in both], whole[:6])
    assert same([second for _, second in both], whole[1:])
    loader.close()


def test_an_iteration_given_up_leaves_nothing_behind(source: ImageSource, whole: list[Batch]):
    loader = train_loader(source, workers(2), EVERYTHING, seed=1)
    given_up = loader.epoch(1)
    next(given_up)
    given_up.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert same(list(loader.epoch(3)), whole)
    loader.close()
    assert same(list(loader.epoch(3, start=6)), whole[6:])
    loader.close()


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_evaluation_sees_every_image_once_and_in_order(world_size: int, source: ImageSource):
    shares = [evaluation_loader(source, DATA, rank=rank, world_size=world_size) for rank in range(world_size)]
    seen = [torch.cat([batch.indices for batch in loader.epoch(0)]).tolist() for loader in shares]
    assert [index for share in seen for index in share] == list(range(60))
    sizes = [loader.num_samples for loader in shares]
    assert sizes == [len(share) for share in seen]
    assert max(sizes) - min(sizes) <= 1
    assert all(len(list(loader.epoch(1))) == len(loader) for loader in shares)


def test_evaluation_is_the_same_in_every_process_and_from_every_start(source: ImageSource):
    batches = list(evaluation_loader(source, DATA).epoch(0))
    loader = evaluation_loader(source, workers(2))
    assert same(list(loader.epoch(0)), batches)
    assert same(list(loader.epoch(9, start=6)), batches[6:])
    assert len(batches[-1]) == 4
    assert torch.cat([batch.targets for batch in batches]).tolist() == [source.load(index)[1] for index in range(60)]
    loader.close()


def test_too_few_images_for_a_batch_are_refused(source: ImageSource):
    with pytest.raises(InputError) as caught:
        train_loader(source, dataclasses.replace(DATA, batch_size=64), UNMIXED, seed=0)
    assert str(caught.value) == (
        "Expected at least one full batch of 64 training images, but got 60 images: "
        "lower --data.batch-size to 60 or less."
    )


def test_processes_that_cannot_share_a_batch_are_refused(source: ImageSource):
    for make in (evaluation_loader, partial(train_loader, augmentation=UNMIXED, seed=0)):
        with pytest.raises(InputError) as caught:
            make(source, DATA, rank=0, world_size=3)
        assert str(caught.value) == (
            "Expected a batch size that the number of processes divides, but got 8 for 3 processes: "
            "set --data.batch-size to 6."
        )
    with pytest.raises(InputError, match="Expected a rank from 0 to 1, but got 2: give the rank"):
        evaluation_loader(source, DATA, rank=2, world_size=2)


def test_a_start_outside_the_epoch_is_refused(source: ImageSource):
    with pytest.raises(
        InputError, match="Expected a first batch from 0 to 7, but got 8: resume with the data and batch"
    ):
        train_loader(source, DATA, UNMIXED, seed=0).epoch(0, start=8)


class Fatal:
    """A source that kills the process which reads its image number 30."""

    classes = ("a", "b")

    def __init__(self, inner: ImageSource, once: Path) -> None:
        self._inner = inner
        self._once = once

    def __len__(self) -> int:
        return len(self._inner)

    def load(self, index: int):
        if index == 30 and not self._once.exists():
            self._once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self._inner.load(index)

    def name(self, index: int) -> str:
        return self._inner.name(index)


# torch leaves its socket to the killed process to the garbage collector, whenever that comes by.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
def test_a_worker_that_is_killed_is_reported_and_replaced(source: ImageSource, tmp_path: Path):
    before = set(multiprocessing.active_children())
    loader = evaluation_loader(Fatal(source, tmp_path / "killed"), workers(2))
    with pytest.raises(RunError) as caught:
        list(loader.epoch(0))
    assert str(caught.value) == (
        "A loader process was killed, most often for want of memory or of shared memory: "
        "lower --data.workers or --data.batch-size, or raise the memory limits."
    )
    assert same(list(loader.epoch(0)), list(evaluation_loader(source, DATA).epoch(0)))
    loader.close()
    assert set(multiprocessing.active_children()) <= before
