"""The depthwise layers of the published large-kernel networks, as data."""

from __future__ import annotations

from dataclasses import dataclass

Kernel = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What one published network convolves depthwise, stage by stage, in its merged form unless `source` says more."""

    name: str
    channels: tuple[int, ...]
    """Channels of each stage that are convolved."""
    kernels: tuple[tuple[Kernel, ...], ...]
    """Kernel sizes (K_h, K_w) that run in each stage."""
    small_channels: tuple[int, ...] = ()
    """Width of each stage in a network whose stem and transitions are depthwise 3x3 as well (RepLKNet); else empty."""
    source: str
    """Paper, section, table or released code."""


def _square(*sizes: int) -> tuple[Kernel, ...]:
    return tuple((size, size) for size in sizes)


def _doubling(width: int) -> tuple[int, ...]:
    return tuple(width * 2**stage for stage in range(4))


def _widened(widths: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(13 * width // 10 for width in widths)


def _replknet(name: str, width: int, sizes: tuple[int, ...], small: int | None, ratio: float = 1.0) -> Variant:
    parallel = () if small is None else (small,)
    return Variant(
        name=name,
        channels=tuple(int(channels * ratio) for channels in _doubling(width)),
        kernels=tuple(_square(size, *parallel) for size in sizes),
        small_channels=_doubling(width),
        source="RepLKNet (CVPR 2022), Table 5 and released code; the parallel kernel is of the train form",
    )


def _slak(name: str, widths: tuple[int, ...]) -> Variant:
    long = (51, 49, 47, 13)
    return Variant(
        name=name,
        channels=_widened(widths),
        kernels=tuple(((size, 5), (5, size), (5, 5)) for size in long),
        source="SLaK (ICLR 2023), released code: stripes M x 5 and 5 x M, and 5 x 5, on widths 1.3 times ConvNeXt's",
    )


def _pelk(name: str, widths: tuple[int, ...], sizes: tuple[int, ...]) -> Variant:
    return Variant(
        name=name,
        channels=tuple(3 * width // 8 for width in _widened(widths)),
        kernels=tuple(_square(size) for size in sizes),
        source="PeLK (CVPR 2024), sections 4.3 and 4.4: 3/8 of the channels, dense kernels",
    )


def _unireplknet(name: str, width: int, mixes_sizes: bool) -> Variant:
    third = (13, 3) if mixes_sizes else (13,)
    return Variant(
        name=name,
        channels=_doubling(width),
        kernels=(_square(3), _square(13), _square(*third), _square(13)),
        source="UniRepLKNet (CVPR 2024), released code",
    )


def _convnext(name: str, width: int) -> Variant:
    return Variant(
        name=name,
        channels=_doubling(width),
        kernels=(_square(7),) * 4,
        source="ConvNeXt (CVPR 2022), section 2.7",
    )


_T, _B = _doubling(96), _doubling(128)
_PELK, _PELK_101 = (51, 49, 47, 13), (101, 69, 67, 13)

VARIANTS: tuple[Variant, ...] = (
    _replknet("RepLKNet-3", 128, (3, 3, 3, 3), None),
    _replknet("RepLKNet-7", 128, (7, 7, 7, 7), 5),
    _replknet("RepLKNet-13", 128, (13, 13, 13, 13), 5),
    _replknet("RepLKNet-25", 128, (25, 25, 25, 13), 5),
    _replknet("RepLKNet-31B", 128, (31, 29, 27, 13), 5),
    _replknet("RepLKNet-31L", 192, (31, 29, 27, 13), 5),
    _replknet("RepLKNet-XL", 256, (27, 27, 27, 13), None, 1.5),
    _slak("SLaK-T", _T),
    _slak("SLaK-S", _T),
    _slak("SLaK-B", _B),
    _pelk("PeLK-T", _T, _PELK),
    _pelk("PeLK-S", _T, _PELK),
    _pelk("PeLK-B", _B, _PELK),
    _pelk("PeLK-B-101", _B, _PELK_101),
    _unireplknet("UniRepLKNet-A", 40, False),
    _unireplknet("UniRepLKNet-F", 48, False),
    _unireplknet("UniRepLKNet-P", 64, False),
    _unireplknet("UniRepLKNet-N", 80, False),
    _unireplknet("UniRepLKNet-T", 80, True),
    _unireplknet("UniRepLKNet-S", 96, True),
    _unireplknet("UniRepLKNet-B", 128, True),
    _unireplknet("UniRepLKNet-L", 192, True),
    _unireplknet("UniRepLKNet-XL", 256, True),
    _convnext("ConvNeXt-T", 96),
    _convnext("ConvNeXt-B", 128),
    _convnext("ConvNeXt-L", 192),
    _convnext("ConvNeXt-XL", 256),
)
