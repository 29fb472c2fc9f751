"""Damages files of weights in many ways, and asks whether each damage is noticed.

    python benchmarks/damaged_files.py --mutations 120 --seed 0 -o benchmarks/results/damaged_files.json

Files of small RepLKNets, SLaKs and UniRepLKNets, in the layouts and formats in which such files are published, are
changed one at a time and given to `load_published`, `widefield convert`, `load_classifier` and `widefield merge`. What
comes of it is one of

* refused: one sentence that names the file or the key,
* same: the weights are those of the whole file, or those that the change spells out,
* unguarded: other weights, from a format that has no checksum (old PyTorch files, safetensors of others),
* different: other weights, from a format that has one,
* raw: any other exception, or more than one sentence.

The last two must not happen: the script then ends with exit code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import damaged_files_bytes
import damaged_files_states
import torch
from damaged_files_kinds import MUTATIONS, Mutated, Mutation
from safetensors.torch import save_file
from torch import Tensor

from widefield._core.errors import InputError, RunError
from widefield.checkpoints.files import read_weights
from widefield.checkpoints.layouts import Family, in_layout
from widefield.cli.main import main as widefield
from widefield.data import DataConfig
from widefield.models.published import load_published
from widefield.models.replknet import RepLKNet
from widefield.models.slak import SLaK
from widefield.models.unireplknet import UniRepLKNet
from widefield.tasks.classification import ClassifierCard, ModelConfig, load_classifier, save_classifier
from widefield.tasks.classification.card import make_classifier

# They add their kinds of damage to the list when they are imported.
SOURCES = (damaged_files_bytes, damaged_files_states)

FORMATS = ("archive", "pickle", "safetensors", "card")
_SIZES: dict[str, Any] = {"channels": (8, 12, 16, 24), "depths": (1, 1, 2, 1), "num_classes": 5}
_KERNELS = {"replknet": (9, 7, 7, 5), "slak": (13, 9, 7, 5), "unireplknet": ((3,), (13,), (9, 3), (5,))}
_KINDS: dict[Family, Any] = {"replknet": RepLKNet, "slak": SLaK, "unireplknet": UniRepLKNet}
_NAMED = {"replknet": "replknet_nano", "slak": "slak_a", "unireplknet": "unireplknet_a"}


@dataclass(frozen=True)
class Whole:
    """A file as it was published."""

    family: Family
    layout: str
    format: str
    state: dict[str, Tensor]
    """Under the names of the layout."""
    ours: dict[str, Tensor]

    def write(self, path: Path) -> None:
        if self.format == "card":
            card = ClassifierCard(
                model=ModelConfig(name=_NAMED[self.family]), data=DataConfig(image_size=64), classes=tuple("abcde")
            )
            save_classifier(path, self.ours, card)
        elif self.format == "safetensors":
            save_file(self.state, path)
        else:
            torch.save({"state_dict": self.state}, path, _use_new_zipfile_serialization=self.format == "archive")


def wholes() -> list[Whole]:
    """Every family in every layout that it is published in, and every format."""
    found: list[Whole] = []
    for family, kind in _KINDS.items():
        torch.manual_seed(0)
        small = _randomised(kind(kernel_sizes=_KERNELS[family], **_SIZES).state_dict())
        named = _randomised(make_classifier(ModelConfig(name=_NAMED[family]), 5).state_dict())
        for layout in ("official", "mmpretrain", "backbone") if family == "replknet" else ("official", "backbone"):
            kept = small if layout != "backbone" else {k: v for k, v in small.items() if not _is_head(k)}
            state = {name: tensor.clone() for name, tensor in in_layout(kept, family, layout).items()}
            if layout == "backbone":
                state |= {"decode_head.conv_seg.weight": torch.randn(3, 4, 1, 1)}
            found += [Whole(family, layout, kind_of_file, state, kept) for kind_of_file in FORMATS[:-1]]
        found.append(Whole(family, "widefield", "card", named, named))
    return found


def _is_head(name: str) -> bool:
    return name.startswith(("norm.", "head."))


def _randomised(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: (torch.rand_like(tensor) + 0.5 if tensor.is_floating_point() else tensor.clone())
        for name, tensor in state.items()
    }


def _command(*words: object) -> None:
    """Run a command, and raise what it told."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        code = widefield([str(word) for word in words])
    if code:
        sentence = told.getvalue().strip()
        if not sentence.startswith("error: Expected ") or "\n" in sentence or "Traceback" in sentence:
            raise AssertionError(f"{words[0]} told: {sentence[:500]}")
        raise InputError("", sentence, "")


def _readings(path: Path, whole: Whole, place: Path) -> dict[str, Callable[[], Mapping[str, Tensor]]]:
    """What is done with a file, each giving the weights it came to."""

    def converted() -> Mapping[str, Tensor]:
        output = place / "converted.safetensors"
        output.unlink(missing_ok=True)
        _command("convert", path, "-o", output)
        return read_weights(output)[0]

    def merged() -> Mapping[str, Tensor]:
        output = place / "merged.safetensors"
        for file in (output, place / "merged.branched.safetensors", place / "back.safetensors"):
            file.unlink(missing_ok=True)
        _command("merge", path, "-o", output, "--un-merge-info")
        _command("merge", output, "--undo", "-o", place / "back.safetensors")
        return read_weights(place / "back.safetensors")[0]

    readings: dict[str, Callable[[], Mapping[str, Tensor]]] = {
        "load_published": lambda: load_published(path).state_dict(),
        "convert": converted,
    }
    if whole.format == "card":
        readings |= {"load_classifier": lambda: load_classifier(path)[0].state_dict(), "merge": merged}
    return readings


def _same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].shape == tensor.shape and torch.equal(found[name].double(), tensor.double())
        for name, tensor in expected.items()
    )


def outcome(path: Path, whole: Whole, mutated: Mutated, place: Path) -> dict[str, str]:
    """What came of every reading of a damaged file."""
    found: dict[str, str] = {}
    for name, read in _readings(path, whole, place).items():
        try:
            weights = read()
        except (InputError, RunError) as error:
            text = str(error)
            is_told = "\n" not in text and "Traceback" not in text and "weights_only" not in text
            is_named = path.name in text or any(repr(key) in text for key in (*whole.state, *whole.ours))
            found[name] = "refused" if is_told and is_named else f"raw: {text[:300]}"
        except Exception as error:
            found[name] = f"raw: {type(error).__name__}: {str(error)[:300]}"
        else:
            is_same = _same(weights, {**whole.ours, **mutated.means})
            found[name] = "same" if is_same else ("different" if mutated.is_guarded else "unguarded")
    return found


def _fits(mutation: Mutation, whole: Whole) -> bool:
    return whole.format in mutation.formats


def run(count: int, seed: int) -> dict[str, Any]:
    """Draw and judge mutations; every kind comes up before one comes twice."""
    draw = random.Random(seed)
    files, rows, outcomes = wholes(), [], Counter()
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 3000))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for number in range(count):
            mutation = MUTATIONS[number % len(MUTATIONS)]
            whole = draw.choice([file for file in files if _fits(mutation, file)])
            path = place / ("w.safetensors" if whole.format in ("safetensors", "card") else "w.pth")
            path.unlink(missing_ok=True)
            whole.write(path)
            mutated = mutation.apply(path, whole, draw)
            told = outcome(path, whole, mutated, place)
            assert not (place / "canary").exists(), "code of a file was run"
            row = {"mutation": mutation.name, "family": whole.family, "layout": whole.layout, "format": whole.format}
            rows.append({**row, "detail": mutated.detail, "outcomes": told})
            outcomes.update(result.partition(":")[0] for result in told.values())
    return {
        "mutations": count,
        "seed": seed,
        "readings": sum(outcomes.values()),
        "outcomes": dict(sorted(outcomes.items())),
        "kinds": len(MUTATIONS),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "rows": rows,
    }


def main() -> int:
    """Run the campaign and write its record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=2 * len(MUTATIONS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    record = run(arguments.mutations, arguments.seed)
    record["sources"] = [module.__name__ for module in SOURCES]
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    bad = [row for row in record["rows"] if any(told.startswith(("raw", "diff")) for told in row["outcomes"].values())]
    for row in bad:
        print(json.dumps(row))
    print(f"{record['mutations']} mutations of {record['kinds']} kinds, {record['readings']} readings:", end=" ")
    print(", ".join(f"{count} {name}" for name, count in record["outcomes"].items()))
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
