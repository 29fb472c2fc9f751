from __future__ import annotations

import hashlib
import pickle
from typing import TYPE_CHECKING

import numpy as np
import pytest
from torchvision.datasets import CIFAR10, CIFAR100

from widefield._core.errors import InputError
from widefield.data import DataConfig, open_splits

if TYPE_CHECKING:
    from pathlib import Path


def dumped(path: Path, content: dict[str, object]) -> str:
    path.write_bytes(pickle.dumps(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Files in CIFAR's own format, with two classes of twenty random images in each part."""
    kind = CIFAR10 if request.param == "cifar10" else CIFAR100
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    key = "labels" if kind is CIFAR10 else "fine_labels"
    for part, seed in (("train", 0), ("test", 1)):
        pixels = np.random.RandomState(seed).randint(0, 256, (20, 3072), dtype=np.uint8)
        md5 = dumped(folder / part, {"data": pixels, key: [0, 1] * 10})
        monkeypatch.setattr(kind, f"{part}_list", [[part, md5]])
    key = "label_names" if kind is CIFAR10 else "fine_label_names"
    md5 = dumped(folder / "meta", {key: ["cat", "dog"]})
    monkeypatch.setattr(kind, "meta", {"filename": "meta", "key": key, "md5": md5})
    return f"torch/{request.param}:{tmp_path}"


def test_cifar_on_disk_opens_with_its_test_part_apart(cifar: str):
    splits = open_splits(DataConfig(root=cifar))
    assert splits.test is not None
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (16, 4, 20)
    assert splits.train.classes == ("cat", "dog")
    image, label = splits.test.load(1)
    raw = np.random.RandomState(1).randint(0, 256, (20, 3072), dtype=np.uint8)[1]
    assert np.array_equal(np.asarray(image).transpose(2, 0, 1).ravel(), raw)
    assert label == 1
    assert splits.test.name(1) == f"{cifar} test[1]"


def test_files_that_are_missing_or_changed_are_not_read(cifar: str, tmp_path: Path):
    next(tmp_path.glob("cifar*/train")).write_bytes(b"something else")
    with pytest.raises(InputError) as caught:
        open_splits(DataConfig(root=cifar))
    assert str(caught.value) == (
        f"Expected the complete files of {cifar.partition(':')[0]}, but got {str(tmp_path)!r}, where they are missing "
        "or differ from the published ones: give the folder into which torchvision downloaded them."
    )


def test_another_name_or_no_folder_is_refused():
    with pytest.raises(
        InputError, match="Expected the name of a torchvision data set, but got 'cifar1': did you mean 'cifar10'"
    ):
        open_splits(DataConfig(root="torch/cifar1:/data"))
    with pytest.raises(InputError, match="Expected a folder in 'torch/cifar10:/folder', but got 'torch/cifar10': add"):
        open_splits(DataConfig(root="torch/cifar10"))
