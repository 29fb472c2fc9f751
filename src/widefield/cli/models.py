"""``widefield models``: what there is."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, cast

import timm
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from widefield._core.checks import check_name
from widefield.cli.arguments import parse
from widefield.cli.terminal import Terminal
from widefield.models import create_model, list_models
from widefield.models.cards import CLASS_LISTS, Card, cards_of
from widefield.models.catalogue import FAMILIES
from widefield.reparam import fold


@dataclass(frozen=True, kw_only=True)
class ModelsArguments:
    """List the models, or show one: its published weights, licence, cost, and how to load it."""

    name: Annotated[str | None, tyro.conf.Positional] = None
    """A model; all of them if not given."""


def run(words: Sequence[str]) -> None:
    """Run the command."""
    arguments = parse(ModelsArguments, words, command="models")
    console = Terminal()
    if arguments.name is not None:
        _print_one(console, arguments.name)
        return
    table = Table()
    for heading in ("model", "parameters", "widths", "depths", "kernel sizes", "weights"):
        is_number = heading in ("parameters", "weights")
        table.add_column(heading, justify="right" if is_number else "left", no_wrap=heading == "model")
    for name in list_models():
        model = _on_meta(name)
        widths = " ".join(str(stage["num_chs"]) for stage in model.feature_info)
        weights = str(len(cards_of(name)) or "-")
        table.add_row(name, f"{_parameters(model) / 1e6:.1f} M", widths, *_sizes(name, model), weights)
    console.print(table)
    console.print("weights: how many published checkpoints there are; widefield models NAME names them")


def _on_meta(name: str) -> Any:
    with torch.device("meta"):
        return cast("Any", create_model(name)).eval()


def _parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _sizes(name: str, model: Any) -> tuple[str, str]:
    """Depths and kernel sizes of the stages."""
    defaults = {key: parameter.default for key, parameter in inspect.signature(type(model)).parameters.items()}
    variant = next(vars(family.VARIANTS[name]) for family in FAMILIES if name in family.VARIANTS)
    settings = {**defaults, **variant}
    depths = settings.get("depths") or [len(stage.blocks) for stage in model.stages]
    return " ".join(map(str, depths)), " ".join(map(_kernel_size, settings["kernel_sizes"]))


def _kernel_size(size: int | Sequence[int]) -> str:
    """Of a stage, or of the first blocks of one where they take turns."""
    if isinstance(size, int):
        return str(size)
    period = next(n for n in range(1, len(size) + 1) if all(a == b for a, b in zip(size, size[n:], strict=False)))
    return f"({','.join(map(str, size[:period]))})" if period > 1 else str(size[0])


def _print_one(console: Console, name: str) -> None:
    base = name.split(".")[0]
    check_name(base, list_models(), "model")
    cards = cards_of(base)
    if "." in name:
        check_name(name, [card.name for card in cards], "published checkpoint")
        cards = tuple(card for card in cards if card.name == name)
    model = _on_meta(base)
    settings = cast("dict[str, Any]", model.pretrained_cfg)
    size = cards[0].image_size if cards else settings["input_size"][-1]
    mean, std = cards[0].mean_std if cards else (settings["mean"], settings["std"])
    depths, kernel_sizes = _sizes(base, model)
    branched, merged, macs = _costs(model, size)
    summary = inspect.getdoc(timm.model_entrypoint(base)) or ""
    for line in (
        f"{name}: {summary}",
        f"parameters   {branched:,}; merged {merged:,}",
        f"MACs         {macs / 1e9:.2f} G merged, at {size}x{size}",
        f"widths       {' '.join(str(stage['num_chs']) for stage in model.feature_info)}",
        f"depths       {depths}",
        f"kernel sizes {kernel_sizes}",
        f"input        3x{size}x{size}, any from 32x32",
        f"mean, std    {tuple(mean)}, {tuple(std)}",
        f"licence      {settings['license']}",
    ):
        console.print(line, soft_wrap=True)
    for card in cards:
        _print_card(console, card)
    if not cards:
        console.print("weights      none published; load a file of yours with --model.weights")
    _print_use(console, base, cards)


def _costs(model: Any, size: int) -> tuple[int, int, int]:
    """Parameters branched and merged, and multiply-accumulates of the merged form for one image."""
    branched = _parameters(model)
    fold(model)
    merged = _parameters(model)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, size, size, device="meta"))
    return branched, merged, counter.get_total_flops() // 2


def _print_card(console: Console, card: Card) -> None:
    score = "no ImageNet-1K score" if card.top1 is None else f"top-1 {card.top1} %"
    facts = (
        f"{card.num_classes:,} classes ({CLASS_LISTS[card.num_classes]}), {card.image_size}x{card.image_size}, {score}"
    )
    how = "" if card.is_fetched else ", to be downloaded by hand"
    console.print(f"\n{card.name}: {facts}", soft_wrap=True)
    console.print(f"  {card.source}{how}", soft_wrap=True)


def _print_use(console: Console, base: str, cards: Sequence[Card]) -> None:
    lines = [f'widefield.create_model("{base}", num_classes=10)']
    fetched = next((card for card in cards if card.is_fetched), None)
    if fetched is not None:
        lines.append(f'timm.create_model("{fetched.name}", pretrained=True, num_classes=10)')
    if cards:
        lines.append('widefield.load_published("FILE", num_classes=10)')
    console.print("\nin Python")
    for line in lines:
        console.print(f"  {line}", soft_wrap=True)
    if cards:
        console.print("in a shell\n  widefield convert FILE -o model.safetensors")
