from __future__ import annotations

import numpy as np

from widefield.data import DataConfig, open_split, open_splits


def pixels(source) -> list[bytes]:
    return [np.asarray(source.load(index)[0]).tobytes() for index in range(len(source))]


def test_the_digits_come_in_three_fixed_disjoint_parts():
    splits = open_splits(DataConfig())
    assert splits.test is not None
    sizes = [len(splits.train), len(splits.validation), len(splits.test)]
    assert sum(sizes) == 1797
    assert np.allclose(np.array(sizes) / 1797, [0.7, 0.1, 0.2], atol=0.005)
    names = [part.name(index) for part in (splits.train, splits.validation, splits.test) for index in range(len(part))]
    assert len(set(names)) == 1797
    other = open_splits(DataConfig(split_seed=9, validation_fraction=0.5))
    assert pixels(other.train) == pixels(splits.train)
    assert pixels(open_split(DataConfig(), "test")) == pixels(splits.test)


def test_no_test_digit_is_a_copy_and_the_description_says_so():
    splits = open_splits(DataConfig())
    assert splits.test is not None
    assert not set(pixels(splits.test)) & {*pixels(splits.train), *pixels(splits.validation)}
    assert splits.description.endswith("no test image with an exact copy among the others")


def test_a_digit_is_an_rgb_image_over_the_full_range():
    source = open_split(DataConfig(), "train")
    images = [source.load(index) for index in range(50)]
    assert {image.mode for image, _ in images} == {"RGB"}
    assert images[0][0].size == (8, 8)
    values = np.stack([np.asarray(image) for image, _ in images])
    assert (values.min(), values.max()) == (0, 255)
    assert source.classes == tuple("0123456789")
    assert {label for _, label in images} <= set(range(10))
