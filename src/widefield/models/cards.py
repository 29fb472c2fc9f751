"""The published checkpoints of classifiers as data: where they lie, what they expect, how they scored.

Sources: the read-me files and the model code of the authors' repositories; mmpretrain's configurations for the copies
that OpenMMLab serves (the same weights under mmpretrain's names).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from widefield._core.checks import check_name

CLASS_LISTS = {1000: "imagenet-1k", 21841: "imagenet-22k"}
"""Number of classes to timm's name for the list of them."""

_DEFAULT = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True, kw_only=True)
class FamilyFacts:
    """What all published checkpoints of a family share."""

    licence: str
    """SPDX name of the licence of code and weights."""
    paper: str
    """Title."""
    paper_id: str
    """Number at arXiv."""
    repository: str
    """The authors' repository, which links to the files."""
    first_conv: str
    """Our name of the first convolution."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One published checkpoint."""

    variant: str
    """Name of our model."""
    tag: str
    """What it was trained on; ``variant.tag`` is its name in timm."""
    num_classes: int = 1000
    """Outputs of its head."""
    image_size: int = 224
    """Pixels on each side."""
    top1: float | None = None
    """Published accuracy on ImageNet-1K in percent, if it has that classifier."""
    hub_id: str | None = None
    """Repository at Hugging Face."""
    hub_file: str | None = None
    """File in it."""
    url: str | None = None
    """Address that serves the file directly."""
    page: str | None = None
    """Page to download it from by hand."""
    mean_std: tuple[tuple[float, ...], tuple[float, ...]] = _DEFAULT
    """Mean and standard deviation of the channels, for values from 0 to 1."""

    @property
    def name(self) -> str:
        """Its name in timm."""
        return f"{self.variant}.{self.tag}"

    @property
    def source(self) -> str:
        """Where it lies, for people."""
        hub = None if self.hub_id is None else f"https://huggingface.co/{self.hub_id}/blob/main/{self.hub_file}"
        return hub or self.url or self.page or ""

    @property
    def is_fetched(self) -> bool:
        """Whether timm can download it; else it is to be downloaded by hand."""
        return self.hub_id is not None or self.url is not None


_FACTS = {
    "replknet": FamilyFacts(
        licence="mit",
        paper="Scaling Up Your Kernels to 31x31: Revisiting Large Kernel Design in CNNs",
        paper_id="2203.06717",
        repository="https://github.com/DingXiaoH/RepLKNet-pytorch",
        first_conv="stem.0.conv",
    ),
    "slak": FamilyFacts(
        licence="mit",
        paper="More ConvNets in the 2020s: Scaling up Kernels Beyond 51x51 using Sparsity",
        paper_id="2207.03620",
        repository="https://github.com/VITA-Group/SLaK",
        first_conv="stem.0",
    ),
    "unireplknet": FamilyFacts(
        licence="apache-2.0",
        paper="UniRepLKNet: A Universal Perception Large-Kernel ConvNet for Audio, Video, Point Cloud, Time-Series and "
        "Image Recognition",
        paper_id="2311.15599",
        repository="https://github.com/AILab-CVC/UniRepLKNet",
        first_conv="stem.0",
    ),
}


def _drive(file: str) -> str:
    return f"https://drive.google.com/file/d/{file}/view"


def _open_mmlab(file: str) -> str:
    return f"https://download.openmmlab.com/mmclassification/v0/replknet/{file}"


def _unireplknet(variant: str, tag: str, file: str, **facts: Any) -> Card:
    return Card(variant=f"unireplknet_{variant}", tag=tag, hub_id="DingXiaoH/UniRepLKNet", hub_file=file, **facts)


_IN22K: dict[str, Any] = {"num_classes": 21841}

# The first of a variant is the one that its name without a tag stands for.
CARDS: dict[str, tuple[Card, ...]] = {
    "replknet": (
        Card(
            variant="replknet_31b",
            tag="in1k",
            top1=83.5,
            url=_open_mmlab("RepLKNet-31B_ImageNet-1K_224_20221024-debd6715.pth"),
            page=_drive("1azQUiCxK9feYVkkrPqwVPBtNsTzDrX7S"),
        ),
        Card(
            variant="replknet_31b",
            tag="in1k_384",
            image_size=384,
            top1=84.8,
            url=_open_mmlab("RepLKNet-31B_ImageNet-1K_384_20221024-3d05883f.pth"),
            page=_drive("1vo-P3XB6mRLUeDzmgv90dOu73uCeLfZN"),
        ),
        Card(variant="replknet_31b", tag="in22k", page=_drive("1PYJiMszZYNrkZOeYwjccvxX8UHMALB7z"), **_IN22K),
        Card(
            variant="replknet_31b",
            tag="in22k_ft_in1k",
            top1=85.2,
            url=_open_mmlab("RepLKNet-31B_ImageNet-22K-to-1K_224_20221024-f68d7698.pth"),
            page=_drive("1DslZ2voXZQR1QoFY9KnbsHAeF84hzS0s"),
        ),
        Card(
            variant="replknet_31b",
            tag="in22k_ft_in1k_384",
            image_size=384,
            top1=86.0,
            url=_open_mmlab("RepLKNet-31B_ImageNet-22K-to-1K_384_20221024-ca9f04ca.pth"),
            page=_drive("1Sc46BWdXXm2fVP-K_hKKU_W8vAB-0duX"),
        ),
        Card(
            variant="replknet_31l",
            tag="in22k_ft_in1k_384",
            image_size=384,
            top1=86.6,
            url=_open_mmlab("RepLKNet-31L_ImageNet-22K-to-1K_384_20221024-6f8ee74d.pth"),
            page=_drive("1JYXoNHuRvC33QV1pmpzMTKEni1hpWfBl"),
        ),
        Card(variant="replknet_31l", tag="in22k", page=_drive("16jcPsPwo5rko7ojWS9k_W-svHX-iFknY"), **_IN22K),
        Card(
            variant="replknet_xl",
            tag="meg73m_ft_in1k_320",
            image_size=320,
            top1=87.8,
            url=_open_mmlab("RepLKNet-XL_MegData73M_ImageNet1K_20221024-664f2980.pth"),
            page=_drive("1tPC60El34GntXByIRHb-z-Apm4Y5LX1T"),
            mean_std=_HALVES,
        ),
    ),
    "slak": (
        Card(variant="slak_t", tag="in1k", top1=82.5, page=_drive("1Iut2f5FMS_77jGPYoUJDQzDIXOsax1u4")),
        Card(
            variant="slak_t",
            tag="in1k_120e",
            top1=81.6,
            page="https://surfdrive.surf.nl/files/index.php/s/WiQYWNclJ9bW5XV",
        ),
        Card(variant="slak_s", tag="in1k", top1=83.8, page=_drive("1etM6KQbnlsgDAZ37adsQJ3UI8Bbv2AVe")),
        Card(variant="slak_b", tag="in1k", top1=84.0, page=_drive("1duUxUD3RSblQ6eDHd0n-u0aulwGypf1j")),
    ),
    "unireplknet": (
        _unireplknet("a", "in1k", "unireplknet_a_in1k_224_acc77.03.pth", top1=77.03),
        _unireplknet("f", "in1k", "unireplknet_f_in1k_224_acc78.58.pth", top1=78.58),
        _unireplknet("p", "in1k", "unireplknet_p_in1k_224_acc80.23.pth", top1=80.23),
        _unireplknet("n", "in1k", "unireplknet_n_in1k_224_acc81.64.pth", top1=81.64),
        _unireplknet("t", "in1k", "unireplknet_t_in1k_224_acc83.21.pth", top1=83.21),
        _unireplknet("s", "in1k", "unireplknet_s_in1k_224_acc83.91.pth", top1=83.91),
        _unireplknet(
            "s", "in22k_ft_in1k_384", "unireplknet_s_in22k_to_in1k_384_acc86.44.pth", top1=86.44, image_size=384
        ),
        _unireplknet("s", "in22k", "unireplknet_s_in22k_pretrain.pth", **_IN22K),
        _unireplknet(
            "b", "in22k_ft_in1k_384", "unireplknet_b_in22k_to_in1k_384_acc87.40.pth", top1=87.40, image_size=384
        ),
        _unireplknet("b", "in22k", "unireplknet_b_in22k_pretrain.pth", **_IN22K),
        _unireplknet(
            "l", "in22k_ft_in1k_384", "unireplknet_l_in22k_to_in1k_384_acc87.88.pth", top1=87.88, image_size=384
        ),
        _unireplknet("l", "in22k", "unireplknet_l_in22k_pretrain.pth", image_size=192, **_IN22K),
        _unireplknet(
            "xl", "in22k_ft_in1k_384", "unireplknet_xl_in22k_to_in1k_384_acc87.96.pth", top1=87.96, image_size=384
        ),
        _unireplknet("xl", "in22k", "unireplknet_xl_in22k_pretrain.pth", image_size=192, **_IN22K),
    ),
}
"""Checkpoints of each family, small to large."""


def cards_of(variant: str) -> tuple[Card, ...]:
    """Return the published checkpoints of one of our models; none if nobody published one."""
    return tuple(card for family in CARDS.values() for card in family if card.variant == variant)


def facts_of(family: str) -> FamilyFacts:
    """Return what all published checkpoints of a family share.

    Raises:
        InputError: If there is no such family with published checkpoints.
    """
    check_name(family, _FACTS, "family with published checkpoints")
    return _FACTS[family]


def published_cfgs(family: str) -> dict[str, dict[str, Any]]:
    """Return timm's configurations of a family's published checkpoints, for `timm.models.generate_default_cfgs`.

    Args:
        family: "replknet", "slak" or "unireplknet".

    Returns:
        Name with tag to the fields of timm's ``PretrainedCfg``.

    Raises:
        InputError: If there is no such family with published checkpoints.
    """
    facts = facts_of(family)
    return {card.name: _cfg(card, facts) for card in CARDS[family]}


def _cfg(card: Card, facts: FamilyFacts) -> dict[str, Any]:
    # Images of 384 pixels are resized as they are, all others cut from the middle of 256 / 224 times their size.
    is_whole = card.image_size >= 384
    mean, std = card.mean_std
    score = "" if card.top1 is None else f"top-1 on ImageNet-1K: {card.top1} %"
    notes = (f"classes: {CLASS_LISTS[card.num_classes]}", *([score] if score else []))
    return {
        "url": card.url or "",
        "hf_hub_id": card.hub_id,
        "hf_hub_filename": card.hub_file,
        "num_classes": card.num_classes,
        "input_size": (3, card.image_size, card.image_size),
        "pool_size": (card.image_size // 32, card.image_size // 32),
        "crop_pct": 1.0 if is_whole else 0.875,
        "crop_mode": "squash" if is_whole else "center",
        "interpolation": "bicubic",
        "mean": mean,
        "std": std,
        "first_conv": facts.first_conv,
        "classifier": "head.fc",
        "license": facts.licence,
        "origin_url": card.page or facts.repository,
        "paper_name": facts.paper,
        "paper_ids": f"arXiv:{facts.paper_id}",
        "notes": notes,
    }
