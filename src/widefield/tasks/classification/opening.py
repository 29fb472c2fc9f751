"""Any network by what a user types: a timm name, a run, a checkpoint, torchvision's, or a function of their own."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from widefield._core.checks import check, check_name
from widefield._core.errors import InputError
from widefield.models import create_model
from widefield.models.published import load_published
from widefield.tasks.classification.card import Form, find_checkpoint, load_classifier

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CHECKPOINTS = (".safetensors", ".pth", ".pt", ".pth.tar", ".bin")


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A network, and how it wants its images."""

    name: str
    """What to call it in tables: the name of the model, of the run's folder or of the file."""
    model: nn.Module
    """The network in evaluation mode, in float32, on the CPU."""
    weights: str
    """Where its weights are from, in a few words ("random, seed 0", "pretrained", a path)."""
    mean: tuple[float, ...] = _IMAGENET_MEAN
    """Of each channel, of pixels in [0, 1]."""
    std: tuple[float, ...] = _IMAGENET_STD
    """Of each channel, of pixels in [0, 1]."""
    image_size: int = 224
    """Side in pixels of the images that it was made for."""
    crop_fraction: float = 0.875
    """Share of the short side that the centre crop keeps in evaluation."""
    interpolation: str = "bicubic"
    """How images are resized: "bilinear" or "bicubic"."""
    classes: tuple[str, ...] | None = None
    """Names of its outputs where they are known: those of a run."""


def open_model(
    source: str, *, pretrained: bool = False, seed: int = 0, form: Form = "branched", **model_kwargs: Any
) -> OpenedModel:
    """Make the network that a user named, ready to be looked into.

    Args:
        source: One of ours or of timm's by name ("replknet_31b", "resnet50"); a run folder or a checkpoint file;
            "torchvision:NAME", also of a segmentation model ("torchvision:fcn_resnet50"); or "MODULE:FUNCTION", a
            function of the user's that returns an `nn.Module`, looked for in the working directory as well.
        pretrained: Whether to fetch published weights, of timm's and torchvision's networks; else they are random.
        seed: Of random weights. torch's generator is left as it was.
        form: Which file of a run folder.
        **model_kwargs: For the constructor of a network by name.

    Returns:
        The network and how it wants its images.

    Raises:
        InputError: If there is no such network, or it cannot be made.
    """
    path = Path(source).expanduser()
    if path.exists() or path.name.endswith(_CHECKPOINTS) or "/" in source.partition(":")[0]:
        check(not model_kwargs, "no settings for a checkpoint", f"{', '.join(model_kwargs)}", "leave them out")
        return _from_file(path, form)
    with torch.random.fork_rng(devices=[]):
        # The CPU's alone: torch.manual_seed would seed those of the accelerators as well.
        torch.default_generator.manual_seed(seed)
        opened = _by_name(source, pretrained, f"random, seed {seed}", model_kwargs)
    opened.model.float().cpu().eval()
    return opened


def _by_name(source: str, pretrained: bool, random: str, model_kwargs: dict[str, Any]) -> OpenedModel:
    weights = "pretrained" if pretrained else random
    prefix, colon, rest = source.partition(":")
    if prefix == "torchvision":
        model = _torchvision(rest, pretrained, model_kwargs)
        return OpenedModel(name=rest, model=model, weights=weights, **_torchvision_images(rest))
    if colon and re.fullmatch(r"[A-Za-z_][\w.]*", prefix) and prefix not in ("hf_hub", "timm"):
        return OpenedModel(name=source, model=_own(prefix, rest, model_kwargs), weights="its own")
    model = _made(source, lambda: create_model(source, pretrained=pretrained, **model_kwargs))
    return OpenedModel(name=source, model=model, weights=weights, **_timm_images(model))


def _made(name: str, make: Callable[[], nn.Module]) -> nn.Module:
    try:
        return make()
    except (InputError, OSError):
        raise
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        # Of a source that it does not know, an old timm says nothing.
        reason = str(error).rstrip(".") or f"Unknown model source {name.partition(':')[0]!r}"
        raise InputError(
            f"a name and settings of which a network can be made, with {name!r}", reason, "change the one or the other"
        ) from error


def _timm_images(model: nn.Module) -> dict[str, Any]:
    settings = cast("dict[str, Any]", getattr(model, "pretrained_cfg", None) or {})
    return {
        "mean": tuple(settings.get("mean", _IMAGENET_MEAN)),
        "std": tuple(settings.get("std", _IMAGENET_STD)),
        "image_size": int(settings.get("input_size", (3, 224, 224))[-1]),
        "crop_fraction": float(settings.get("crop_pct", 0.875)),
        "interpolation": "bilinear" if settings.get("interpolation") == "bilinear" else "bicubic",
    }


def _from_file(path: Path, form: Form) -> OpenedModel:
    file = find_checkpoint(path, form)
    name = _name_of(path.resolve())
    try:
        model, card = load_classifier(path, form)
    except InputError as error:
        # A file of somebody else's that says nothing of itself: what is in it may still be a published network.
        try:
            published = load_published(file).float().eval()
        except InputError:
            raise error from None
        return OpenedModel(name=name, model=published, weights=str(file), **_timm_images(published))
    return OpenedModel(
        name=name,
        model=model.float().eval(),
        weights=str(file),
        mean=card.data.mean,
        std=card.data.std,
        image_size=card.data.image_size,
        crop_fraction=card.data.crop_fraction,
        interpolation=card.data.interpolation,
        classes=card.classes,
    )


def _name_of(path: Path) -> str:
    if path.is_dir():
        return path.name
    if path.name in ("model.safetensors", "merged.safetensors"):
        return path.parent.name
    return path.name.removesuffix(next((ending for ending in _CHECKPOINTS if path.name.endswith(ending)), ""))


def _torchvision(name: str, pretrained: bool, model_kwargs: dict[str, Any]) -> nn.Module:
    from torchvision import models

    check_name(name, models.list_models(), "torchvision model")
    # What cannot be classified or segmented without its own weights would fetch those of its backbone.
    backbone = {} if pretrained or "weights_backbone" not in _parameters(name) else {"weights_backbone": None}
    weights = "DEFAULT" if pretrained else None
    return _made(name, lambda: models.get_model(name, weights=weights, **{**backbone, **model_kwargs}))


def _torchvision_images(name: str) -> dict[str, Any]:
    """How the published weights want their images; nothing where it is no classifier of images."""
    from torchvision import models

    wanted = cast("Any", models.get_model_weights(name)).DEFAULT.transforms()
    if getattr(wanted, "crop_size", None) is None:
        return {}
    return {
        "mean": tuple(wanted.mean),
        "std": tuple(wanted.std),
        "image_size": wanted.crop_size[-1],
        "crop_fraction": wanted.crop_size[-1] / wanted.resize_size[-1],
        "interpolation": "bilinear" if wanted.interpolation.value == "bilinear" else "bicubic",
    }


def _parameters(name: str) -> set[str]:
    import inspect

    from torchvision import models

    return set(inspect.signature(models.get_model_builder(name)).parameters)


def _own(module: str, function: str, model_kwargs: dict[str, Any]) -> nn.Module:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        try:
            builder = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise InputError(
                "MODULE:FUNCTION, a function that returns a torch.nn.Module",
                f"'{module}:{function}' ({error})",
                "check both names, and that the module can be imported from here",
            ) from error
        # What it imports when it is called may lie here as well.
        model = builder(**model_kwargs)
    finally:
        sys.path.remove(here)
    check(
        isinstance(model, nn.Module),
        f"a torch.nn.Module from {module}:{function}",
        type(model).__name__,
        "return the network",
    )
    return model
