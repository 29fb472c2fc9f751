"""What the parts of a GPU session share: options, a deadline, and rows that are kept as they are measured."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from widefield._core.configs import to_plain
from widefield._core.files import write_text_atomically
from widefield.bench.environment import environment


class Part:
    """One part of the session.

    Args:
        name: Its name, which is that of its script.
    """

    def __init__(self, name: str) -> None:
        parser = argparse.ArgumentParser(prog=name)
        parser.add_argument("--output", type=Path, required=True, help="JSON file to write; never overwritten")
        parser.add_argument(
            "--limit-s", type=float, default=600.0, help="seconds after which to stop and keep what is there"
        )
        parser.add_argument("--tiny", action="store_true", help="tiny shapes on the CPU: a rehearsal")
        parser.add_argument("--shard", default="0/1", help="which share of the work, K/N")
        parser.add_argument("--resume", action="store_true", help="go on after the rows that the file holds")
        parser.add_argument("--deadline", type=float, default=0.0, help="the same limit as a time of the clock")
        options = parser.parse_args()
        self.name = name
        self.output: Path = options.output
        self.is_tiny: bool = options.tiny
        self.shard, self.shards = (int(number) for number in options.shard.split("/"))
        self.deadline: float = options.deadline or time.time() + options.limit_s
        self.device = "cpu" if self.is_tiny else "cuda"
        if not self.is_tiny and not torch.cuda.is_available():
            sys.exit(f"{name}: no GPU is here; rehearse with --dry-run-cpu")
        if self.output.exists() and not options.resume:
            sys.exit(f"{name}: {self.output} exists; name another folder in OUT")
        self.rows: list[dict[str, Any]] = []
        if options.resume and self.output.exists():
            self.rows = json.loads(self.output.read_text(encoding="utf-8"))["rows"]
        self.facts: dict[str, Any] = {}
        self.environment = environment(self.device)

    @property
    def seconds_left(self) -> float:
        """Seconds until this part must stop."""
        return self.deadline - time.time()

    def is_done(self, **key: object) -> bool:
        """Whether a row with these values is there already."""
        return any(all(row.get(name) == value for name, value in key.items()) for row in self.rows)

    def add(self, **row: object) -> None:
        """Keep a row, on disk as well."""
        self.rows.append(row)
        self.write(is_complete=False)

    def write(self, *, is_complete: bool) -> None:
        """Write all rows."""
        head = {
            "part": self.name,
            "is_complete": is_complete,
            "environment": to_plain(self.environment),
            **self.facts,
        }
        lines = ",\n  ".join(json.dumps(row) for row in self.rows)
        text = json.dumps(head, indent=1).removesuffix("\n}") + ',\n "rows": [\n  ' + lines + "\n ]\n}\n"
        write_text_atomically(self.output, text)

    def restart(self) -> None:
        """Begin this script again after the rows that are on disk: a GPU is of no use to a process that broke it."""
        options = ["--output", str(self.output), "--resume", "--deadline", str(self.deadline)]
        options += ["--shard", f"{self.shard}/{self.shards}", *(["--tiny"] if self.is_tiny else [])]
        os.execv(sys.executable, [sys.executable, sys.argv[0], *options])


def breaks_the_gpu(error: BaseException) -> bool:
    """Return whether an exception says that the process's CUDA context is lost."""
    words = str(error)
    return any(name in words for name in ("illegal memory access", "misaligned address", "unspecified launch failure"))
