from __future__ import annotations

import pytest

from widefield._core.errors import InputError
from widefield.engine.extensions import Extensions
from widefield.tasks.classification.skipped_images import SkippedImages


def test_a_checkpoint_that_lost_the_count_is_refused() -> None:
    with pytest.raises(InputError, match="a checkpoint with the state of the extension 'skipped_images'"):
        Extensions((SkippedImages({}),)).restore({}, {})


def test_a_checkpoint_with_the_count_is_taken() -> None:
    extensions = Extensions((SkippedImages({}),))
    tensors, states = extensions.take()
    assert not tensors
    extensions.restore({}, states)
