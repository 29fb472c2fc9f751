from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cli_support import SMALL
from PIL import Image

from widefield.cli.main import main


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def widefield(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command line in this process."""

    def run(*words: object) -> Outcome:
        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a quick start cut to one epoch."""
    path = tmp_path_factory.mktemp("runs") / "quickstart"
    assert main(["train", *map(str, SMALL), "--output", str(path)]) == 0
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of six images each, told apart by their colour."""
    root = tmp_path / "photos"
    for name, colour in (("red", (220, 30, 30)), ("blue", (30, 30, 220))):
        (root / name).mkdir(parents=True)
        for index in range(6):
            tint = tuple(min(255, channel + 5 * index) for channel in colour)
            Image.new("RGB", (40 + index, 36), tint).save(root / name / f"{index}.png")
    return root
