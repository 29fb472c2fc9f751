"""The effective receptive field of any network: what reaches a location of a feature map, averaged over images."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from widefield._core.checks import check, check_name
from widefield._core.errors import InputError
from widefield._core.files import write_atomically
from widefield.analysis.area import Area, interpolated_ratio, jackknife_interval, smallest_square
from widefield.analysis.contribution import Location

Scale = Literal["log", "linear"]
Around = Literal["image", "map"]

THRESHOLDS = (0.2, 0.3, 0.5, 0.99)
"""The shares t for which RepLKNet, Table 10, states r(t)."""

_KIND = "widefield receptive field"
_TENSORS = ("mean", "standard_error", "group_sums")


@dataclass(frozen=True, kw_only=True, eq=False)
class ReceptiveField:
    """The mean contribution map of a location, and what can be read off it.

    It says what the output there is sensitive to, over all channels and images. It is no class activation map: that
    shows which places speak for one class in one image.
    """

    name: str
    """What to call the network."""
    weights: str
    """Where its weights are from, in a few words: an untrained network often has a wider field than a trained one."""
    layer: str
    """Whose output was looked at."""
    location: Location
    """Row and column in that output."""
    input_size: tuple[int, int]
    """(H, W) in pixels. Ratios at different sizes are different questions: at 224 px the order of networks can turn."""
    output_size: tuple[int, int]
    """(h, w) of that output."""
    images: int
    """How many were averaged."""
    skipped: int
    """How many more were left out, since their gradients were not finite."""
    mean: Tensor
    """(H, W) float64."""
    standard_error: Tensor
    """(H, W) float64: of the mean over images; NaN for one image."""
    group_sums: Tensor | None = None
    """(groups, H, W) float32: sums over the images, dealt into groups in turn, for intervals."""
    thresholds: tuple[float, ...] = THRESHOLDS
    """For which shares `ratios` are."""
    around: Around = "image"
    """What squares and profiles are centred on, see `centre_px`."""

    @property
    def centre_px(self) -> tuple[int, int]:
        """Row and column of the pixel to measure from.

        Around the "image" it is (H // 2, W // 2) for the central location, as published, and for any other the middle
        of the cell of the image that it stands for. Around the "map" it is the centre of gravity of the map. The two
        can be half a stride apart: with convolutions of odd size, the central one of an even number of locations looks
        at the middle of the image, and that of an odd number (7 at 224 px) does not.
        """
        if self.around == "map":
            row, column = self.gravity_px
            if not math.isnan(row):
                return round(row), round(column)
        (height, width), (rows, columns) = self.input_size, self.output_size
        if self.location == (rows // 2, columns // 2):
            return height // 2, width // 2
        row, column = self.location
        return (2 * row + 1) * height // (2 * rows), (2 * column + 1) * width // (2 * columns)

    @property
    def gravity_px(self) -> tuple[float, float]:
        """Row and column of the map's centre of gravity; NaN for an empty map."""
        total = self.mean.sum()
        row, column = ((_places(sums) * sums).sum() / total for sums in (self.mean.sum(1), self.mean.sum(0)))
        return row.item(), column.item()

    @cached_property
    def ratios(self) -> tuple[Area, ...]:
        """The area ratio r(t) for each of `thresholds`."""
        return tuple(map(self.area, self.thresholds))

    def area(self, threshold: float, scale: Scale = "log") -> Area:
        """Return the smallest square around `centre_px` that holds more than a share of the map.

        The published scale "log" is log10(1 + mean): it lifts small values where the mean is large, and does nothing
        where it is far below 1, so the ratio depends on the size of the gradients. "linear" is the mean itself, which
        depends on its form alone.

        Args:
            threshold: t, in (0, 1).
            scale: Of the map.

        Returns:
            Side and ratio, with a 95 % interval over images: the delete-a-group jackknife over `group_sums`, on the
            ratio that is interpolated between the squares. None of these if no square that fits is enough.

        Raises:
            InputError: If the threshold or the scale cannot be.
        """
        check_name(scale, ("log", "linear"), "scale")
        area = smallest_square(scaled(self.mean, scale), self.centre_px, threshold)
        used = 0 if self.group_sums is None else min(len(self.group_sums), self.images)
        if area.ratio is None or used < 2:
            return area
        assert self.group_sums is not None
        sums = self.group_sums[:used]
        total = sums.double().sum(0)
        ratios = []
        for index, one in enumerate(sums):
            rest = self.images - len(range(index, self.images, len(self.group_sums)))
            without = (total - one).clamp_(min=0) / rest
            ratios.append(interpolated_ratio(scaled(without, scale), self.centre_px, threshold))
        known = [ratio for ratio in ratios if ratio is not None]
        if len(known) < used:
            return area
        low, high = jackknife_interval(area.ratio, known, used)
        return replace(area, low=low, high=high)

    def radial_profile(self) -> Tensor:
        """Return the mean of the map at each distance from `centre_px`.

        Returns:
            (R,) float64; entry i is over the pixels whose distance rounds to i. R reaches the farthest corner.
        """
        (height, width), (row, column) = self.input_size, self.centre_px
        down, across = torch.arange(height) - row, torch.arange(width) - column
        distance = (down[:, None] ** 2 + across[None] ** 2).double().sqrt().round().long().flatten()
        counts = torch.bincount(distance)
        return torch.bincount(distance, self.mean.flatten()) / counts.clamp(min=1)

    @property
    def effective_diameter_px(self) -> float:
        """Four standard deviations of the map along an axis, on average over both, in pixels; NaN for an empty map.

        It takes the map as a distribution around its centre of gravity: of a Gaussian it is the width between the
        points two standard deviations to either side. Luo et al., NeurIPS 2016, show effective fields to be nearly
        Gaussian and take two standard deviations as their radius; ISO 11146 defines widths by second moments so.
        """
        total = self.mean.sum().item()
        if not total > 0:
            return math.nan
        variances = [
            ((_places(sums) - middle) ** 2 * sums).sum().item() / total
            for sums, middle in zip((self.mean.sum(1), self.mean.sum(0)), self.gravity_px, strict=True)
        ]
        return 4 * math.sqrt(sum(variances) / 2)

    def summary(self) -> dict[str, Any]:
        """Return all figures and no map, ready for JSON."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in _TENSORS}
        diameter = self.effective_diameter_px
        return {
            **values,
            "effective_diameter_px": None if math.isnan(diameter) else diameter,
            "areas": [vars(area) for area in self.ratios],
            "areas_of_the_linear_map": [vars(self.area(each, "linear")) for each in self.thresholds],
        }

    def save(self, path: str | Path) -> None:
        """Write the maps as safetensors, with the rest as JSON in the header.

        Raises:
            InputError: If the file exists.
        """
        save_receptive_fields(path, [self])


def save_receptive_fields(path: str | Path, receptive_fields: Sequence[ReceptiveField]) -> None:
    """Write receptive fields to one safetensors file, with all but the maps as JSON in the header.

    Raises:
        InputError: If the file exists.
    """
    from safetensors.torch import save_file

    path = Path(path)
    check(not path.exists(), "a new file to write", f"{path}, which exists", "name another")
    tensors, headers = {}, []
    for index, each in enumerate(receptive_fields):
        values = {item.name: getattr(each, item.name) for item in fields(each)}
        maps = {name: values.pop(name) for name in _TENSORS}
        tensors |= {f"{index}.{name}": tensor.contiguous() for name, tensor in maps.items() if tensor is not None}
        headers.append(values)
    metadata = {_KIND: json.dumps(headers)}
    write_atomically(path, lambda partial: save_file(tensors, partial, metadata=metadata))


def load_receptive_fields(path: str | Path) -> tuple[ReceptiveField, ...]:
    """Read what `save_receptive_fields` wrote.

    Raises:
        InputError: If the file holds something else.
    """
    from safetensors import SafetensorError, safe_open

    loaded = []
    try:
        with safe_open(path, framework="pt") as file:
            headers: list[dict[str, Any]] = json.loads((file.metadata() or {})[_KIND])
            names = set(file.keys())
            for index, header in enumerate(headers):
                values = {name: tuple(value) if isinstance(value, list) else value for name, value in header.items()}
                keys = {name: f"{index}.{name}" for name in _TENSORS}
                maps = {name: file.get_tensor(key) for name, key in keys.items() if key in names}
                loaded.append(ReceptiveField(**values, **maps))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError("a file of receptive fields", f"{str(path)!r}, which is none", "name another") from error
    return tuple(loaded)


def load_receptive_field(path: str | Path) -> ReceptiveField:
    """Read the one that `ReceptiveField.save` wrote.

    Raises:
        InputError: If the file holds something else, or several.
    """
    loaded = load_receptive_fields(path)
    check(len(loaded) == 1, "a file of one receptive field", f"{len(loaded)} in {str(path)!r}", "load all of them")
    return loaded[0]


def _places(sums: Tensor) -> Tensor:
    return torch.arange(len(sums), dtype=torch.float64)


def scaled(mean: Tensor, scale: Scale) -> Tensor:
    """Return log10(1 + mean), or the mean itself."""
    return torch.log1p(mean) / math.log(10) if scale == "log" else mean
