"""From what the user typed as `root` to the images of each split."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from widefield._core.checks import check, check_name
from widefield.data.embedded import embedded_parts
from widefield.data.folder import folder_parts, listed
from widefield.data.hugging_face import hugging_face_parts
from widefield.data.shards import shard_parts
from widefield.data.split import SubsetSource, stratified_split
from widefield.data.timm_readers import torchvision_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from PIL import Image

    from widefield.data.config import DataConfig

Split = Literal["train", "validation", "test"]


class ImageSource(Protocol):
    """A list of images with their classes, read one by one."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Name of each class, in the order of their indices."""
        ...

    def __len__(self) -> int: ...

    def load(self, index: int) -> tuple[Image.Image, int]:
        """Read one image.

        Args:
            index: Its place in the list.

        Returns:
            The image in mode RGB, and the index of its class.

        Raises:
            UndecodableImageError: If it cannot be decoded; the message names the file or archive member.
        """
        ...

    def name(self, index: int) -> str:
        """Return the path or archive member of an image, for messages and reports."""
        ...


class LabelledSource(ImageSource, Protocol):
    """A source whose labels and names are known without reading the images."""

    @property
    def targets(self) -> np.ndarray:
        """Class index of each image, (N,)."""
        ...

    def member(self, index: int) -> str:
        """Return what names an image within its set, wherever the set lies: a path below the root, or a row."""
        ...

    def signature(self, index: int) -> str:
        """Return what tells an image from another of its name: size, and a checksum of the first bytes or all.

        Empty where there is no file of its own, or it cannot be read.
        """
        ...


@dataclass(frozen=True)
class Splits:
    """The images to train on, to choose by, and to test on."""

    train: LabelledSource
    validation: LabelledSource | None
    """None where the data has none and none is to be drawn (`validation_fraction` 0)."""
    test: LabelledSource | None
    """Never used to choose anything; None where the data has none."""
    description: str
    """One line on what was found."""

    def parts(self) -> dict[str, LabelledSource | None]:
        """Return the parts by their names."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


def open_splits(config: DataConfig) -> Splits:
    """Open the training, validation and test images of a data set.

    Args:
        config: Names the data set; `validation_fraction` and `split_seed` count only where it has no validation split.
            With a fraction of 0 there is none then, and all images are in train.

    Returns:
        The splits. They have the same classes in the same order.

    Raises:
        InputError: If the data cannot be used as it is; the message names the place and what to do.
    """
    parts, description = _parts(config.root)
    check(
        "train" in parts,
        "a train split",
        f"only {' and '.join(parts)} in {config.root!r}",
        "add the training images, or use the data for evaluation alone",
    )
    opened = {split: parts[split]() for split in parts}
    _check_classes(opened, config.root)
    train = opened["train"]
    missing = "validation" not in opened
    drawn = missing and config.validation_fraction > 0
    if drawn:
        train, opened["validation"] = _divided(train, config)
    sizes = ", ".join(
        f"{len(source):,} {split}" for split, source in {"train": train, **_without_train(opened)}.items()
    )
    description = description or (
        f"{config.root}: {len(train.classes)} classes, {sizes} images"
        + (f" (validation drawn from train, seed {config.split_seed})" if drawn else "")
        + (" (none held back for validation)" if missing and not drawn else "")
    )
    return Splits(train, opened.get("validation"), opened.get("test"), description)


def open_split(config: DataConfig, split: Split) -> ImageSource:
    """Open one split, as `open_splits` would give it; the others may be missing where they do not define it.

    Args:
        config: Names the data set.
        split: Which split.

    Returns:
        Its images.

    Raises:
        InputError: If the data cannot be used as it is, or has no such split.
    """
    check_name(split, ["train", "validation", "test"], "split")
    parts, _ = _parts(config.root)
    drawn = split != "test" and "validation" not in parts and "train" in parts and config.validation_fraction > 0
    check(
        split != "validation" or split in parts or drawn or "train" not in parts,
        "a validation split",
        f"{config.root!r} without one, and none drawn from its training images (validation_fraction 0)",
        "choose another split, or data that has one",
    )
    check(
        split in parts or drawn,
        f"a {split} split",
        f"only {' and '.join(parts)} in {config.root!r}",
        f"add the {split} images, or choose another split",
    )
    if drawn:
        return _divided(parts["train"](), config)[("train", "validation").index(split)]
    # Train comes along where it is there: labels are indices, and only equal classes make them mean the same.
    opened = {name: parts[name]() for name in ("train", split) if name in parts}
    _check_classes(opened, config.root)
    return opened[split]


def _parts(root: str) -> tuple[Mapping[str, Callable[[], LabelledSource]], str]:
    """Return what opens each split, and a description where the set has its own."""
    if root.startswith("torch/"):
        return torchvision_parts(root.removeprefix("torch/")), ""
    prefix, colon, location = root.partition(":")
    if not colon or len(prefix) == 1 or not re.fullmatch(r"[\w-]+", prefix) or Path(root).expanduser().exists():
        return folder_parts(Path(root).expanduser()), ""
    check_name(prefix, ["embedded", "wds", "hfds", "torch/cifar10", "torch/cifar100"], "kind of data set")
    if prefix == "embedded":
        sources, description = embedded_parts(location)
        return {split: partial(_given, source) for split, source in sources.items()}, description
    return (shard_parts(location) if prefix == "wds" else hugging_face_parts(location)), ""


def _given(source: LabelledSource) -> LabelledSource:
    return source


def _without_train(opened: dict[str, LabelledSource]) -> dict[str, LabelledSource]:
    return {split: source for split, source in opened.items() if split != "train"}


def _divided(train: LabelledSource, config: DataConfig) -> tuple[SubsetSource, SubsetSource]:
    kept, drawn = stratified_split(train.targets, train.classes, config.validation_fraction, config.split_seed)
    return SubsetSource(train, kept), SubsetSource(train, drawn)


def _check_classes(opened: dict[str, LabelledSource], root: str) -> None:
    train = opened.get("train")
    if train is None:
        return
    for split, source in _without_train(opened).items():
        differences = [
            f"{listed(sorted(odd))} only in {where}"
            for odd, where in (
                (set(train.classes) - set(source.classes), "train"),
                (set(source.classes) - set(train.classes), split),
            )
            if odd
        ]
        check(
            not differences,
            f"the same classes in train and {split}",
            f"{' and '.join(differences)} ({root!r})",
            "add, rename or remove these classes",
        )
        check(
            source.classes == train.classes,
            f"the classes of train and {split} in the same order",
            f"two orders in {root!r}",
            "make the lists of class names equal",
        )
