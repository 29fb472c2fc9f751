"""What every family tells timm: the default configurations of its variants, and how one of them is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast

from timm.models import PretrainedCfg, build_model_with_cfg

from widefield._core.checks import check
from widefield.models._backbone import HierarchicalBackbone
from widefield.models._pretrained import check_source, pretrained_filter
from widefield.models._stage_features import StageFeatures
from widefield.models.cards import CARDS, cards_of, published_cfgs

Network = TypeVar("Network", bound=HierarchicalBackbone)


def configurations(variants: Iterable[str], first_conv: str) -> dict[str, dict[str, Any] | PretrainedCfg]:
    """Return name with tag to configuration, for `timm.models.generate_default_cfgs`.

    Args:
        variants: Names of the variants of one family.
        first_conv: Name of the convolution that sees the image.
    """
    names = list(variants)
    family = _family_of(names[0])
    found = published_cfgs(family) if family in CARDS else {}
    return {**found, **{f"{name}.untrained": _plain(first_conv) for name in names if not cards_of(name)}}


def build(
    kind: type[Network], variants: Mapping[str, object], name: str, pretrained: bool, settings: Mapping[str, Any]
) -> Network:
    """Make a variant as timm does it.

    timm's entry points take any keyword; all of them end in the constructor, which refuses what it does not know.

    Args:
        kind: The family's class.
        variants: Names to dataclasses of constructor arguments.
        name: Which of them.
        pretrained: Whether to fetch weights.
        settings: What the entry point was called with; it has the last word.

    Raises:
        InputError: If weights are asked for that cannot be fetched.
        TypeError: If the constructor does not know a setting.
    """
    check_source(name, pretrained, settings)
    if settings.get("output_stride") == 32:
        # What every one of these networks has; tools that know other strides pass it along.
        settings = {key: value for key, value in settings.items() if key != "output_stride"}
    model = build_model_with_cfg(
        kind,
        name,
        pretrained,
        pretrained_filter_fn=pretrained_filter if _family_of(name) in CARDS else None,
        feature_cfg=_feature_cfg(settings),
        **{**vars(variants[name]), **settings},
    )
    return cast("Network", model)


def _feature_cfg(settings: Mapping[str, Any]) -> dict[str, Any]:
    kind = settings.get("feature_cls", StageFeatures)
    check(
        kind in (StageFeatures, "getter") or not settings.get("feature_norms"),
        'no `feature_cls`, or "getter", with `feature_norms=True`',
        f"{kind!r}",
        "leave `feature_cls` out: the other extractors pass the norms by",
    )
    # The extractors that are rebuilt from modules find a stage only where the sequence of stages is opened.
    opened = {"flatten_sequential": True} if kind in ("list", "dict") else {}
    return {"out_indices": (0, 1, 2, 3), "feature_cls": StageFeatures, **opened}


def _family_of(name: str) -> str:
    return name.partition("_")[0]


def _plain(first_conv: str) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": first_conv,
        "classifier": "head.fc",
        "license": "mit",
    }
