"""A classifier in one file: the weights, and in the header all that is needed to make, merge and feed the network."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from widefield._core.checks import check
from widefield._core.configs import from_plain, to_plain
from widefield._core.errors import InputError
from widefield.checkpoints.files import load_weights, read_weights, write_weights
from widefield.checkpoints.recognise import recognise
from widefield.data import DataConfig
from widefield.models import create_model
from widefield.models.size import check_size
from widefield.reparam import fold
from widefield.tasks.classification.card_rules import ClassifierCard as ClassifierCard
from widefield.tasks.classification.card_rules import Form as Form
from widefield.tasks.classification.card_rules import check_card, without_sources
from widefield.tasks.classification.config import ModelConfig

logger = logging.getLogger(__name__)

_HEADER = "widefield"
_FILES: dict[Form, str] = {"branched": "model.safetensors", "merged": "merged.safetensors"}


def make_classifier(config: ModelConfig, num_classes: int, *, copies: int = 1) -> nn.Module:
    """Make the network of a config with random weights.

    Args:
        config: The network.
        num_classes: Outputs.
        copies: How many times its parameters are going to be held in memory, as for their gradients.

    Returns:
        The model in training mode.

    Raises:
        InputError: If there is no such model, it does not take a setting, or with these settings it does not fit into
            the memory of this machine.
    """
    arguments: dict[str, Any] = {"num_classes": num_classes, **config.arguments()}

    def make() -> nn.Module:
        return create_model(config.name, **arguments)

    try:
        if config.kernel_sizes or config.options:
            check_size(make, f"{config.name} with {_told(arguments)}", copies)
        model = make()
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"settings that {config.name} takes",
            f"{_told(arguments)} ({error})",
            "change or leave out model.kernel_sizes, model.drop_path_rate, model.head_init_scale or model.options",
        ) from error
    if config.grad_checkpointing:
        cast("Any", model).set_grad_checkpointing(True)
    return model


def _told(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in arguments.items())


def start_from(model: nn.Module, path: Path) -> None:
    """Load the weights of a checkpoint into a new network, but for a head of another size.

    Args:
        model: The network, branched.
        path: A run folder, a file of ours, or a published state dict.

    Raises:
        InputError: If the checkpoint cannot be read, is merged, or belongs to another model.
    """
    file = find_checkpoint(path, "branched")
    state, header = read_weights(file)
    card = _read_card(header, file)
    check(
        card is None or card.form == "branched",
        "a checkpoint in train form to start from",
        f"the merged {file}",
        "use the model.safetensors beside it",
    )
    state = _in_our_names(state, file)
    own = model.state_dict()
    head = [name for name in own if name.startswith("head.") and name in state]
    if any(state[name].shape != own[name].shape for name in head):
        logger.info("%s has a head for other classes: starting with a new one", file)
        state = {**state, **{name: own[name] for name in head}}
    load_weights(model, state, str(file))


def save_classifier(path: Path, weights: dict[str, torch.Tensor], card: ClassifierCard) -> None:
    """Write weights and card as one safetensors file, atomically; of where weights came from the card says nothing."""
    write_weights(path, weights, {_HEADER: json.dumps(to_plain(without_sources(card)))})


def load_classifier(path: Path, form: Form = "branched", model: str | None = None) -> tuple[nn.Module, ClassifierCard]:
    """Make the network of a checkpoint and load its weights.

    Args:
        path: A run folder or a checkpoint file.
        form: Which file of a run folder; a file has its own form.
        model: Name of the model, for a file without a card (a published state dict). Its classes are then numbered.

    Returns:
        The model in evaluation mode, and its card.

    Raises:
        InputError: If the checkpoint cannot be read, does not fit, or does not say what it is.
    """
    file = find_checkpoint(path, form)
    state, header = read_weights(file)
    card = _read_card(header, file)
    if card is None:
        check(
            model is not None,
            "a checkpoint that says which model it is",
            f"{file}, which was written elsewhere",
            "name the model with --model, for instance --model replknet_31b",
        )
        card, state = _foreign_card(cast("str", model), _in_our_names(state, file), file)
    check(
        model is None or model == card.model.name,
        f"a checkpoint of {model}",
        f"{file}, which is one of {card.model.name}",
        f"leave out --model or use --model {card.model.name}",
    )
    try:
        check_card(card, file, model)
        network = make_classifier(replace(card.model, weights=None, grad_checkpointing=False), len(card.classes)).eval()
    except InputError as error:
        raise _of_card(file, error) from error
    if card.form == "merged":
        fold(network)
    load_weights(network, state, str(file))
    return network, card


def find_checkpoint(path: Path, form: Form) -> Path:
    """Return the checkpoint file of a run folder, or the file itself.

    Raises:
        InputError: If there is none.
    """
    if not path.is_dir():
        check(path.exists(), "a run folder or a checkpoint file", f"nothing at {path}", "check the path")
        return path
    file = path / _FILES[form]
    check(
        file.is_file(),
        f"a run folder with {_FILES[form]}",
        f"{path} without it",
        "finish the run (widefield train --resume), or name another folder",
    )
    return file


def _read_card(header: dict[str, str], file: Path) -> ClassifierCard | None:
    if _HEADER not in header:
        return None
    try:
        return from_plain(ClassifierCard, json.loads(header[_HEADER]))
    except InputError as error:
        raise _of_card(file, error) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(
            "a classifier's card in the header of its file, as widefield writes it",
            f"{file} with another ({(str(error).splitlines() or [type(error).__name__])[0]})",
            "copy or download the file again, or write it with this version of widefield",
        ) from error


def _of_card(file: Path, error: InputError) -> InputError:
    """Say of an error that a file's card is the cause, unless it does."""
    if str(file) in error.got:
        return error
    return InputError(error.expected, f"{error.got} on the card of {file}", error.fix)


def _in_our_names(state: dict[str, torch.Tensor], file: Path) -> dict[str, torch.Tensor]:
    """Return a published state dict under our names; of another network, as it is."""
    try:
        return recognise(state, str(file)).ours(state)
    except InputError as error:
        logger.info("%s", error)
        return state


def _foreign_card(
    name: str, state: dict[str, torch.Tensor], file: Path
) -> tuple[ClassifierCard, dict[str, torch.Tensor]]:
    with torch.device("meta"):
        probe = create_model(name)
    settings = cast("dict[str, Any]", probe.pretrained_cfg)
    head = state.get(f"{settings['classifier']}.weight")
    check(
        head is not None,
        f"weights of {name} with a classifier",
        f"{file} without {settings['classifier']}.weight",
        "check which model the file belongs to",
    )
    data = DataConfig(
        image_size=settings["input_size"][-1],
        crop_fraction=settings["crop_pct"],
        crop_mode="squash" if settings["crop_mode"] == "squash" else "center",
        interpolation="bilinear" if settings["interpolation"] == "bilinear" else "bicubic",
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
    )
    outputs = cast("torch.Tensor", head).shape[0]
    classes = tuple(str(index) for index in range(outputs))
    return ClassifierCard(model=ModelConfig(name=name), data=data, classes=classes), state
