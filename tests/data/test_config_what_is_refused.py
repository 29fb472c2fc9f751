from __future__ import annotations

import pytest

from widefield._core.errors import InputError
from widefield.data import AugmentationConfig, DataConfig


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"batch_size": 0}, "Expected batch_size of at least 1, but got 0: raise it to 1 or more."),
        ({"workers": -1}, "Expected workers of at least 0, but got -1: raise it to 0 or more."),
        ({"image_size": 0}, "Expected image_size of at least 1, but got 0: raise it to 1 or more."),
        ({"validation_fraction": 1.0}, "Expected validation_fraction between 0 and 1, but got 1.0: give the share"),
        ({"crop_fraction": 1.5}, "Expected crop_fraction above 0 and at most 1, but got 1.5: give the share"),
        ({"std": (1.0, 0.0, 1.0)}, "Expected a positive std for each channel, but got (1.0, 0.0, 1.0): give"),
    ],
)
def test_data_that_makes_no_sense_is_refused(values: dict, sentence: str):
    with pytest.raises(InputError) as caught:
        DataConfig(**values)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"horizontal_flip": 1.1}, "Expected horizontal_flip between 0 and 1, but got 1.1: give a share, such as 0.1."),
        ({"random_erasing": -0.1}, "Expected random_erasing between 0 and 1, but got -0.1: give a share, such as 0.1."),
        ({"random_erasing_count": 0}, "Expected random_erasing_count of at least 1, but got 0: raise it to 1 or more."),
        ({"mixup": -1.0}, "Expected mixup of at least 0, but got -1.0: raise it to 0 or more."),
        ({"affine_scale": 1.0}, "Expected affine_scale of at least 0 and below 1, but got 1.0: give the change of"),
        (
            {"crop_scale": (0.5, 0.2)},
            "Expected crop_scale as two rising shares above 0 and at most 1, but got (0.5, 0.2)",
        ),
        ({"crop_ratio": (0.0, 2.0)}, "Expected crop_ratio as two rising positive numbers, but got (0.0, 2.0): give"),
    ],
)
def test_augmentation_that_cannot_be_drawn_is_refused(values: dict, sentence: str):
    with pytest.raises(InputError) as caught:
        AugmentationConfig(**values)
    assert str(caught.value).startswith(sentence)
