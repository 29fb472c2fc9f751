from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from widefield._core.errors import InputError
from widefield.data import DataConfig, UndecodableImageError, open_split, open_splits

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def quiet_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def table(first: int, count: int, image_bytes: Callable[[int], bytes], label: object = None) -> datasets.Dataset:
    features = {"image": datasets.Image(), "label": label or datasets.ClassLabel(names=["cat", "dog"])}
    rows = {
        "image": [{"bytes": image_bytes(number), "path": None} for number in range(first, first + count)],
        "label": [number % 2 for number in range(count)],
    }
    if isinstance(label, datasets.Value) and label.dtype == "string":
        rows["label"] = [("dog", "cat")[number % 2] for number in range(count)]
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def test_a_folder_written_by_save_to_disk_opens(tmp_path: Path, image_bytes: Callable[[int], bytes]):
    tables = {"train": table(0, 6, image_bytes), "validation": table(10, 4, image_bytes)}
    datasets.DatasetDict(**tables).save_to_disk(str(tmp_path / "saved"))
    splits = open_splits(DataConfig(root=f"hfds:{tmp_path / 'saved'}"))
    assert (len(splits.train), len(splits.validation)) == (6, 4)
    assert splits.train.classes == ("cat", "dog")
    image, label = splits.validation.load(3)
    assert label == 1
    assert image.tobytes() == tables["validation"][3]["image"].tobytes()
    copy = pickle.loads(pickle.dumps(splits.validation))
    assert copy.load(3)[0].tobytes() == image.tobytes()
    assert splits.validation.name(3).endswith("saved validation[3]")


def test_a_single_saved_table_is_split(tmp_path: Path, image_bytes: Callable[[int], bytes]):
    table(0, 10, image_bytes).save_to_disk(str(tmp_path / "saved"))
    splits = open_splits(DataConfig(root=f"hfds:{tmp_path / 'saved'}"))
    assert (len(splits.train), len(splits.validation)) == (8, 2)


@pytest.mark.parametrize(("dtype", "names"), [("string", ("cat", "dog")), ("int64", ("0", "1"))])
def test_a_folder_of_parquet_files_opens(
    dtype: str, names: tuple[str, ...], tmp_path: Path, image_bytes: Callable[[int], bytes]
):
    (tmp_path / "tables").mkdir()
    for split in ("train", "test"):
        rows = table(0, 6, image_bytes, datasets.Value(dtype))
        rows.to_parquet(str(tmp_path / "tables" / f"{split}.parquet"))
    splits = open_splits(DataConfig(root=f"hfds:{tmp_path / 'tables'}", validation_fraction=0.34))
    assert splits.train.classes == names
    assert splits.test is not None
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (4, 2, 6)
    assert splits.test.load(0)[1] == (1 if dtype == "string" else 0)


def test_class_folders_open_through_the_library_too(write_tree: Write, two_classes: dict[str, int]):
    members = {f"{split}/{path}": seed for split in ("train", "validation") for path, seed in two_classes.items()}
    root = write_tree("folders", members)
    theirs = open_split(DataConfig(root=f"hfds:{root}"), "validation")
    ours = open_split(DataConfig(root=str(root)), "validation")
    assert theirs.classes == ours.classes
    assert {theirs.load(index)[0].tobytes() for index in range(10)} == {
        ours.load(index)[0].tobytes() for index in range(10)
    }


def test_rows_without_a_readable_image_are_named(tmp_path: Path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [{"bytes": b"broken", "path": None}, None], "label": [0, 1]}
    datasets.DatasetDict({"validation": datasets.Dataset.from_dict(rows, features=features)}).save_to_disk(
        str(tmp_path / "saved")
    )
    source = open_split(DataConfig(root=f"hfds:{tmp_path / 'saved'}"), "validation")
    with pytest.raises(UndecodableImageError, match=r"saved validation\[0\]' \(no known image format\)"):
        source.load(0)
    with pytest.raises(UndecodableImageError, match=r"saved validation\[1\]' \(the cell is empty\)"):
        source.load(1)


def test_a_set_that_is_not_here_is_refused(tmp_path: Path):
    with pytest.raises(InputError) as caught:
        open_splits(DataConfig(root="hfds:nobody/nothing"))
    assert str(caught.value).startswith("Expected a Hugging Face data set on this machine, but got 'nobody/nothing' (")
    assert str(caught.value).endswith("of parquet files or of class folders, or download it first.")


def test_sets_of_another_form_are_refused(tmp_path: Path, image_bytes: Callable[[int], bytes]):
    datasets.Dataset.from_dict({"text": ["a"], "label": [0]}).save_to_disk(str(tmp_path / "text"))
    with pytest.raises(
        InputError, match="Expected an image column and a label column, but got the columns 'text', 'label'"
    ):
        open_splits(DataConfig(root=f"hfds:{tmp_path / 'text'}"))
    datasets.DatasetDict({"dev": table(0, 4, image_bytes)}).save_to_disk(str(tmp_path / "dev"))
    with pytest.raises(InputError, match="Expected a split called train, validation or test, but got 'dev' in"):
        open_splits(DataConfig(root=f"hfds:{tmp_path / 'dev'}"))
    table(0, 4, image_bytes, datasets.ClassLabel(names=["cat", "dog"])).map(lambda row: {"label": None}).save_to_disk(
        str(tmp_path / "unlabelled")
    )
    with pytest.raises(
        InputError, match="one class index or name in each row, but got something else in the column 'label'"
    ):
        open_splits(DataConfig(root=f"hfds:{tmp_path / 'unlabelled'}"))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat"])})
    rows = {"image": [{"bytes": image_bytes(0), "path": None}], "label": [0]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "one"))
    with pytest.raises(InputError, match="Expected at least 2 classes, but got 1 in"):
        open_splits(DataConfig(root=f"hfds:{tmp_path / 'one'}"))
