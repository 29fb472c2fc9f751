from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from widefield._core.errors import InputError
from widefield.data.split import stratified_split


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(
    counts=st.lists(st.integers(2, 40), min_size=1, max_size=6),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**40),
)
def test_every_image_is_in_one_part_and_every_class_in_both(counts: list[int], fraction: float, seed: int):
    targets = np.random.RandomState(0).permutation(np.repeat(np.arange(len(counts)), counts))
    names = [str(index) for index in range(len(counts))]
    kept, drawn = stratified_split(targets, names, fraction, seed)
    assert sorted([*kept, *drawn]) == list(range(len(targets)))
    for index, count in enumerate(counts):
        share = int((targets[drawn] == index).sum())
        assert 1 <= share <= count - 1
        assert abs(share - count * fraction) <= 1


def test_the_split_depends_on_its_seed_alone():
    targets = [0, 1] * 50
    first = stratified_split(targets, ["a", "b"], 0.2, 3)[1]
    np.random.seed(5)
    assert stratified_split(targets, ["a", "b"], 0.2, 3)[1].tolist() == first.tolist()
    assert stratified_split(targets, ["a", "b"], 0.2, 4)[1].tolist() != first.tolist()


def test_a_further_class_leaves_the_split_of_the_others():
    short = stratified_split([0] * 20, ["a"], 0.2, 0)[1]
    longer = stratified_split([0] * 20 + [1] * 20, ["a", "b"], 0.2, 0)[1]
    assert longer[longer < 20].tolist() == short.tolist()


def test_a_class_with_one_image_is_named():
    with pytest.raises(InputError) as caught:
        stratified_split([0, 0, 1], ["cat", "dog"], 0.2, 0)
    assert str(caught.value) == (
        "Expected at least 2 images of every class to split off a validation part, but got 1 of class 'dog': "
        "add images of it, remove the class, or provide a validation split."
    )
