"""``widefield convert``: a published checkpoint to ours, or back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
import tyro

from widefield._core.plain_text import visible
from widefield.checkpoints.convert import check_new_file, convert, write_converted
from widefield.cli.arguments import parse
from widefield.cli.terminal import Terminal
from widefield.data import DataConfig
from widefield.models import create_model
from widefield.models.published import Published, read_published
from widefield.tasks.classification import ClassifierCard, ModelConfig, save_classifier


@dataclass(frozen=True, kw_only=True)
class ConvertArguments:
    """Convert a checkpoint of RepLKNet, SLaK or UniRepLKNet; what it is, is found out from its content.

    Read are the authors' files, mmpretrain's, the backbones in mmsegmentation's and mmdetection's, and ours; branched
    or merged. Nothing but tensors is read from a pickle, and a file that is not whole is refused.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A safetensors or PyTorch file."""

    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """File to write, .safetensors or .pth; never overwritten. Left out, nothing is written."""

    to: Literal["widefield", "official", "mmpretrain", "backbone"] = "widefield"
    """Whose names to give: ours, the authors', mmpretrain's, or those of a backbone in a larger model."""

    weights: Literal["auto", "model", "ema"] = "auto"
    """Where a file has both: the weights that were trained, or their moving average; auto prefers the former."""


def run(words: Sequence[str]) -> None:
    """Run the command."""
    arguments = parse(ConvertArguments, words, command="convert")
    if arguments.output is not None:
        check_new_file(arguments.output)
    published = read_published(arguments.checkpoint, arguments.weights)
    console = Terminal()
    for line in _found(published):
        console.print(line, soft_wrap=True)
    if arguments.output is None:
        return
    conversion = convert(published.tensors, published.recognised.family, arguments.to)
    if conversion.left_out:
        told = f"left out     {_counted(conversion.left_out)}: a backbone has no place for them"
        console.print(told, soft_wrap=True)
    card = _classifier_card(published) if arguments.to == "widefield" else None
    if card is not None and arguments.output.suffix == ".safetensors":
        save_classifier(arguments.output, conversion.tensors, card)
    else:
        metadata = {"source": arguments.checkpoint.name, "names": arguments.to, "form": published.recognised.form}
        write_converted(arguments.output, conversion.tensors, metadata)
    console.print(
        f"wrote {visible(arguments.output)} ({len(conversion.tensors):,} tensors, {arguments.to} names)", soft_wrap=True
    )


def _found(published: Published) -> list[str]:
    recognised = published.recognised
    naming, kwargs = recognised.naming, recognised.model_kwargs
    network = f"{published.variant or 'no variant that has a name'}, {recognised.form}"
    classes = f"{kwargs['num_classes']:,} classes" if kwargs["num_classes"] else "no classifier"
    norms = ", a norm for the features of every stage" if kwargs["feature_norms"] else ""
    lines = [
        f"found        {naming.title}",
        f"network      {network}, {classes}{norms}",
        *(f"{name.replace('_', ' '):<12} {_plain(kwargs[name])}" for name in ("channels", "depths", "kernel_sizes")),
    ]
    if published.taken is not None:
        others = f"; the file has {' and '.join(map(repr, published.others))} too" if published.others else ""
        lines.append(f"taken        {published.taken!r}{others}")
    lines.append(f"names        {len(naming.names):,}, all of them mapped")
    if naming.unused:
        rules = ", ".join(rule.theirs for rule in naming.unused)
        lines.append(f"unused rules {len(naming.unused)}: {rules}")
    if naming.left_out:
        lines.append(f"left out     {_counted(naming.left_out)}: not the network's")
    return lines


def _plain(sizes: Sequence[int | Sequence[int]]) -> str:
    """Numbers of the stages; of the blocks in a stage where they differ."""
    stages = [(size,) if isinstance(size, int) else tuple(size) for size in sizes]
    return "  ".join(" ".join(map(str, stage)) if len(set(stage)) > 1 else str(stage[0]) for stage in stages if stage)


def _counted(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in parts.items())


def _classifier_card(published: Published) -> ClassifierCard | None:
    """What the file shall say of itself so that the other commands can use it without being told the model."""
    recognised, name = published.recognised, published.variant
    own = recognised.model_kwargs
    is_partly_merged = recognised.form == "merged" and any(
        key.startswith(("stem.", "stages.")) and key.endswith(".running_var") for key in published.tensors
    )
    if name is None or not own["num_classes"] or own["in_chans"] != 3 or own["feature_norms"] or is_partly_merged:
        return None
    with torch.device("meta"):
        settings = cast("dict[str, Any]", create_model(name).pretrained_cfg)
    data = DataConfig(
        image_size=settings["input_size"][-1],
        crop_fraction=settings["crop_pct"],
        crop_mode="squash" if settings.get("crop_mode") == "squash" else "center",
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
    )
    classes = tuple(str(index) for index in range(own["num_classes"]))
    return ClassifierCard(model=ModelConfig(name=name), data=data, classes=classes, form=recognised.form)
