from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from widefield._core.errors import InputError
from widefield.data import DataConfig, open_split, open_splits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_an_unknown_prefix_is_answered_with_the_known_ones():
    with pytest.raises(InputError) as caught:
        open_splits(DataConfig(root="hfdss:name"))
    assert (
        str(caught.value) == "Expected the name of a kind of data set, but got 'hfdss': did you mean 'hfds' or 'wds'."
    )


def test_an_unknown_embedded_set_is_refused():
    with pytest.raises(
        InputError, match="Expected the name of a embedded data set, but got 'digit': did you mean 'digits'"
    ):
        open_splits(DataConfig(root="embedded:digit"))


def test_an_unknown_split_is_refused():
    with pytest.raises(InputError, match="Expected the name of a split, but got 'trian': did you mean 'train'"):
        open_split(DataConfig(), "trian")  # pyright: ignore[reportArgumentType]


def test_a_folder_with_a_colon_in_its_name_is_a_folder(
    write_tree: Callable[..., Path], two_classes: dict[str, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    write_tree("run:3", two_classes)
    monkeypatch.chdir(tmp_path)
    assert len(open_splits(DataConfig(root="run:3")).train) == 8


def test_importing_the_package_leaves_the_heavy_ones_out():
    heavy = "timm, torchvision, sklearn, datasets, webdataset"
    code = f"import sys, widefield.data; print([name for name in '{heavy}'.split(', ') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
