"""Images as a network wants them, one at a time: photos resized without a crop, or noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from widefield._core.checks import check
from widefield.data import Photos, open_photos


class PhotoTensors:
    """Photos, resized bicubically to one size without a crop and normalised.

    Args:
        photos: As `widefield.data.open_photos` returns them.
        size: (H, W) in pixels.
        mean: Of red, green and blue, of pixels in [0, 1].
        std: Of red, green and blue.
        count: How many, the first ones; all of them if not given.

    Raises:
        InputError: If there are not as many.
    """

    def __init__(
        self,
        photos: Photos | str | Path,
        size: tuple[int, int],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        count: int | None = None,
    ) -> None:
        self._photos = photos if isinstance(photos, Photos) else open_photos(photos)
        check(
            count is None or 1 <= count <= len(self._photos),
            f"a count of 1 to {len(self._photos)}, the images there are",
            f"{count}",
            "ask for fewer, or name a place with more",
        )
        self._count = len(self._photos) if count is None else count
        self._size = size
        self._mean, self._std = (torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1) for values in (mean, std))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Tensor]:
        """Yield (1, 3, H, W) in float32, in the order of the names."""
        import numpy as np
        from PIL import Image

        height, width = self._size
        for index in range(self._count):
            photo = self._photos.load(index).resize((width, height), Image.Resampling.BICUBIC)
            pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1).float() / 255
            yield ((pixels - self._mean) / self._std)[None]


class NoiseTensors:
    """Gaussian noise of mean 0 and standard deviation 1, as normalised images have.

    Args:
        count: How many images.
        size: (H, W) in pixels.
        channels: C.
        seed: Of the first image; the next has the next seed.
    """

    def __init__(self, count: int, size: tuple[int, int], *, channels: int = 3, seed: int = 0) -> None:
        check(count >= 1, "a count of 1 or more", f"{count}", "ask for at least one image")
        self._count, self._shape, self._seed = count, (1, channels, *size), seed

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Tensor]:
        """Yield (1, C, H, W) in float32."""
        for index in range(self._count):
            yield torch.randn(self._shape, generator=torch.Generator().manual_seed(self._seed + index))
