from __future__ import annotations

import dataclasses
import logging
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from widefield._core.errors import InputError
from widefield.data import (
    AugmentationConfig,
    DataConfig,
    UndecodableImageError,
    evaluation_loader,
    open_split,
    train_loader,
)

if TYPE_CHECKING:
    from widefield.data.source import ImageSource

BAD = (3, 4, 11, 29)
STOP = DataConfig(image_size=16, batch_size=6, workers=0)
SKIP = dataclasses.replace(STOP, on_error="skip")
PLAIN = AugmentationConfig(mixup=0.5)

Write = Callable[..., Path]


def opened(write_tree: Write, bad: tuple[int, ...], image_bytes: Callable[[int], bytes]) -> ImageSource:
    """Thirty images, those numbered `bad` truncated."""
    members = {
        f"val/{'cat' if number < 15 else 'dog'}/{number:02d}.png": image_bytes(number)[: 200 if number in bad else None]
        for number in range(30)
    }
    return open_split(DataConfig(root=str(write_tree("root", members))), "validation")


@pytest.fixture
def source(write_tree: Write, image_bytes: Callable[[int], bytes]) -> ImageSource:
    return opened(write_tree, BAD, image_bytes)


def indices(batches) -> list[int]:
    return torch.cat([batch.indices for batch in batches]).tolist()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("training", [False, True])
def test_a_bad_image_stops_the_run_with_its_name(workers: int, training: bool, source: ImageSource):
    before = set(multiprocessing.active_children())
    data = dataclasses.replace(STOP, workers=workers)
    loader = train_loader(source, data, PLAIN, seed=0) if training else evaluation_loader(source, data)
    with pytest.raises(UndecodableImageError) as caught:
        list(loader.epoch(0))
    sentence = str(caught.value)
    assert sentence.startswith("Expected an image that can be decoded, but got ")
    assert sentence.endswith("replace or delete it, or leave such images out with --data.on-error skip.")
    assert any(source.name(index) in sentence for index in BAD)
    assert "Traceback" not in sentence
    assert "\n" not in sentence
    loader.close()
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_leaves_bad_images_out_and_counts_each_once(
    workers: int, source: ImageSource, caplog: pytest.LogCaptureFixture
):
    loader = evaluation_loader(source, dataclasses.replace(SKIP, workers=workers))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert indices(loader.epoch(0)) == [index for index in range(30) if index not in BAD]
    assert (loader.num_skipped, loader.skipped_indices, loader.num_samples) == (4, BAD, 30)
    for index in BAD:
        assert caplog.text.count(source.name(index)) == 1
    loader.close()


def test_ranks_count_the_images_of_their_own_share(source: ImageSource):
    loaders = [evaluation_loader(source, SKIP, rank=rank, world_size=2) for rank in (0, 1)]
    assert sum(len(indices(loader.epoch(0))) for loader in loaders) == 26
    assert [loader.num_skipped for loader in loaders] == [3, 1]


def test_only_what_was_yielded_is_counted(source: ImageSource):
    loader = evaluation_loader(source, dataclasses.replace(SKIP, workers=1))
    batches = loader.epoch(0)
    next(batches)
    assert loader.skipped_indices == (3, 4)
    batches.close()  # pyright: ignore[reportAttributeAccessIssue]
    loader.close()


def test_a_batch_of_bad_images_alone_is_left_out(write_tree: Write, image_bytes: Callable[[int], bytes]):
    loader = evaluation_loader(opened(write_tree, tuple(range(6, 12)), image_bytes), SKIP)
    assert len(list(loader.epoch(0))) == len(loader) - 1 == 4
    assert loader.num_skipped == 6


@pytest.mark.parametrize("workers", [0, 2])
def test_training_takes_the_next_good_image_of_the_order_instead(
    workers: int, source: ImageSource, write_tree: Write, image_bytes: Callable[[int], bytes]
):
    order = indices(train_loader(opened(write_tree, (), image_bytes), STOP, PLAIN, seed=4).epoch(0))
    expected = []
    for position in range(30):
        while order[position % 30] in BAD:
            position += 1
        expected.append(order[position % 30])
    damaged = opened(write_tree, BAD, image_bytes)
    loader = train_loader(damaged, dataclasses.replace(SKIP, workers=workers), PLAIN, seed=4)
    batches = list(loader.epoch(0))
    assert indices(batches) == expected
    assert (loader.num_skipped, loader.skipped_indices) == (4, BAD)
    assert [len(batch) for batch in batches] == [6] * 5
    resumed = list(loader.epoch(0, start=3))
    assert all(torch.equal(one.images, other.images) for one, other in zip(resumed, batches[3:], strict=True))
    loader.close()


def test_images_that_are_all_bad_end_the_search(write_tree: Write, image_bytes: Callable[[int], bytes]):
    loader = train_loader(opened(write_tree, tuple(range(30)), image_bytes), SKIP, PLAIN, seed=0)
    with pytest.raises(
        InputError, match=r"Expected images that can be decoded, but got none among 30, '.*\.png' for one"
    ):
        next(loader.epoch(0))
