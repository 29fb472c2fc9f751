"""``widefield merge``: a checkpoint to its inference form, and back if what that takes was kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from widefield._core.checks import check
from widefield._core.plain_text import visible
from widefield.checkpoints.files import read_weights, write_weights
from widefield.cli.arguments import parse
from widefield.cli.terminal import Terminal
from widefield.reparam import merge
from widefield.reparam.unmerge import UnmergeInfo, unmerge, unmerge_info
from widefield.tasks.classification import find_checkpoint, load_classifier, save_classifier

_SWITCHES = ("--un-merge-info", "--undo")


@dataclass(frozen=True, kw_only=True)
class MergeArguments:
    """Fold branches and norms of a checkpoint and state the error that this makes; or undo it."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A run folder or a checkpoint file: in train form, or merged with --undo."""

    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """File to write; NAME.merged.safetensors (or .unmerged) beside the checkpoint if not given. Never overwritten."""

    model: str | None = None
    """Name of the model, for a published checkpoint that does not say it."""

    un_merge_info: bool = False
    """Also write NAME.branched.safetensors beside the merged file NAME: what --undo needs to restore the train form."""

    undo: bool = False
    """Restore the train form, bit for bit, by the file of --un-merge-info beside unchanged merged weights."""


def run(words: Sequence[str]) -> None:
    """Run the command."""
    arguments = parse(MergeArguments, _spelled_out(words), command="merge")
    check(
        not (arguments.undo and arguments.un_merge_info),
        "one of --undo and --un-merge-info",
        "both",
        "keep the info when merging, and undo later",
    )
    console = Terminal()
    for line in (_undo if arguments.undo else _merge)(arguments):
        console.print(visible(line, keep="\n"), soft_wrap=True)


def _merge(arguments: MergeArguments) -> list[str]:
    file = find_checkpoint(arguments.checkpoint, "branched")
    output = _new_file(arguments.output or file.with_name(f"{file.stem}.merged.safetensors"))
    info_file = _new_file(_info_file(output)) if arguments.un_merge_info else None
    model, card = load_classifier(file, "branched", arguments.model)
    check(card.form == "branched", "a checkpoint in train form", f"{file}, which is merged already", "use it as it is")
    branched = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = merge(model)
    lines = [str(report)]
    if info_file is not None:
        info = unmerge_info(branched, model.state_dict())
        write_weights(info_file, info.tensors, info.header())
        lines.append(f"wrote {visible(info_file)}, which widefield merge --undo needs")
    save_classifier(output, model.state_dict(), replace(card, form="merged"))
    return [*lines, f"wrote {visible(output)}"]


def _undo(arguments: MergeArguments) -> list[str]:
    file = find_checkpoint(arguments.checkpoint, "merged")
    output = _new_file(arguments.output or file.with_name(f"{file.stem}.unmerged.safetensors"))
    model, card = load_classifier(file, "merged", arguments.model)
    check(card.form == "merged", "a merged checkpoint", f"{file}, which is in train form", "use it as it is")
    info_file = _info_file(file)
    check(
        info_file.is_file(),
        f"{info_file.name} beside the merged checkpoint, as --un-merge-info writes it",
        f"{file} alone",
        "take the checkpoint in train form, since branches cannot be told apart in a merged kernel",
    )
    tensors, header = read_weights(info_file)
    branched = unmerge(model.state_dict(), UnmergeInfo.from_file(tensors, header, str(info_file)))
    save_classifier(output, branched, replace(card, form="branched"))
    return [f"restored {len(branched)} tensors of the train form, {len(tensors)} of them from {info_file.name}"] + [
        f"wrote {visible(output)}"
    ]


def _info_file(merged: Path) -> Path:
    return merged.with_name(f"{merged.stem}.branched.safetensors")


def _new_file(path: Path) -> Path:
    check(not path.exists(), "a new file to write", f"{path}, which exists", "name another with --output")
    check(path.parent.is_dir(), "a folder to write to", f"{path.parent}, which does not exist", "make it first")
    return path


def _spelled_out(words: Sequence[str]) -> list[str]:
    """Let a switch stand without its value."""
    full: list[str] = []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        full.append(word)
        if word.replace("_", "-") in _SWITCHES and following not in ("True", "False"):
            full.append("True")
    return full
