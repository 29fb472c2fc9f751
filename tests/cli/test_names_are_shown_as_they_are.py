from __future__ import annotations

import json
import logging
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from cli_support import SMALL
from matplotlib import cbook
from PIL import Image
from safetensors import SafetensorError

from widefield._core.errors import InputError
from widefield._core.plain_text import figure_text, visible
from widefield.cli.main import main
from widefield.cli.terminal import Terminal, VisibleFormatter, progress_bar, styled

NAMES = ("$0_$10", "[bold]", "\x1b[31mred", "cat [male]", "ünï 猫")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on classes with such names, with one image of each part that cannot be decoded."""
    place = tmp_path_factory.mktemp("names [b]")
    for part in ("train", "val", "test"):
        for label, name in enumerate(NAMES):
            (place / "data" / part / name).mkdir(parents=True)
            for index in range(2):
                Image.new("RGB", (20, 20), (50 * label, 90, 200 - 40 * index)).save(
                    place / "data" / part / name / f"{index}.png"
                )
        (place / "data" / part / NAMES[0] / "bad.png").write_bytes(b"none")
    words = ["train", "image_folder", "--model.name=replknet_nano", "--data.image-size=32", "--data.batch-size=4"]
    words += ["--data.on-error=skip", f"--data.root={place / 'data'}", *map(str, SMALL)]
    with pytest.warns(UserWarning, match="Glyph .* missing"):
        assert main([*words, "--output", str(place / "run")]) == 0
    return place / "run"


def test_a_run_with_such_classes_ends_with_its_figures_and_counts_what_it_left_out(run: Path) -> None:
    assert (run / "confusion_matrix.png").stat().st_size > 0
    assert json.loads((run / "summary.json").read_text())["skipped_images"] == 3


@pytest.mark.filterwarnings("ignore:Glyph")
def test_images_left_out_are_counted_once_over_resumptions(run: Path, widefield: Callable[..., Any]) -> None:
    before = json.loads((run / "summary.json").read_text())
    (run / "summary.json").unlink()
    done = widefield("train", "--resume", run)
    assert done.code == 0, done.err
    after = json.loads((run / "summary.json").read_text())
    assert {**after, "seconds": 0} == {**before, "seconds": 0}


def test_prediction_names_classes_and_files_as_they_are(
    run: Path, widefield: Callable[..., Any], tmp_path: Path
) -> None:
    image = tmp_path / "[red]\x1b]0;x\x07 one\ntwo.png"
    Image.new("RGB", (20, 20)).save(image)
    done = widefield("predict", image, "--run", run, "--top", 5)
    assert done.code == 0, done.err
    for name in ("$0_$10", "[bold]", r"\x1b[31mred", "cat [male]", "ünï 猫"):
        assert name in done.out
    # The title of a table is broken where the terminal ends.
    assert r"[red]\x1b]0;x\x07one\ntwo.png" in "".join(done.out.split())
    assert "\x1b" not in done.out


def test_a_full_disk_at_the_end_is_told_whoever_notices_it(
    run: Path, widefield: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from widefield.tasks.classification import run as module

    def refuse(*_: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(module, "save_classifier", refuse)
    done = widefield("train", "--resume", run)
    assert done.code == 1
    told = " ".join(done.err.split())
    assert f"error: Expected to write the results to {run}, but got Error while serializing" in told
    assert "free space there and finish with widefield train --resume (the trained weights are kept)." in told
    assert "--debug" not in told


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain [b] $x$ ünï 猫 👩‍🚀", "plain [b] $x$ ünï 猫 👩‍🚀"),
        ("a\x1b[2Jb\x07", r"a\x1b[2Jb\x07"),
        ("csi \x9b0m", r"csi \x9b0m"),
        ("one\ntwo\tthree\r", r"one\ntwo\tthree\r"),
        ("gpj\u202egnp", r"gpj\u202egnp"),
        ("line\u2028end\u2066", r"line\u2028end\u2066"),
        ("byte \udcff", r"byte \udcff"),
    ],
)
def test_what_would_act_is_seen(text: str, shown: str) -> None:
    assert visible(text) == shown
    console = Terminal()
    console.file = StringIO()
    console.print(visible(text), styled(visible(text), "bold"), soft_wrap=True)
    assert console.file.getvalue() == f"{shown} {shown}\n"


def test_a_terminal_shows_escapes_of_text_that_nobody_has_looked_at() -> None:
    console = Terminal()
    console.file = StringIO()
    console.print("[bold]a\x1b[31m[/bold]", styled("\x1b[0m", "red"), ":smile:", soft_wrap=True)
    assert console.file.getvalue() == "[bold]a\\x1b[31m[/bold] \\x1b[0m :smile:\n"


def test_a_bar_takes_no_markup_of_a_name() -> None:
    console = Terminal()
    console.file = StringIO()
    with progress_bar(console) as progress:
        progress.add_task("[/b]", total=1)
    assert "\x1b[/b" not in console.file.getvalue()


def test_log_records_keep_to_one_line() -> None:
    record = logging.LogRecord("widefield", logging.WARNING, "", 0, "left out %s", ("a\nb\x1b[2J",), None)
    assert VisibleFormatter("%(name)s: %(message)s").format(record) == r"widefield: left out a\nb\x1b[2J"


def test_an_error_says_what_it_got_as_it_is(widefield: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from widefield.cli import models

    for error, code in ((InputError("a name", "[/b]\x1b[2J\n", "mend it"), 2), (ValueError("[/b]\x1b[2J"), 1)):

        def fail(words: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(models, "run", fail)
        done = widefield("models")
        assert done.code == code
        assert r"[/b]\x1b[2J" in done.err
        assert done.err.count("\n") == 1


@pytest.mark.parametrize("name", ["$0_$10", "$", r"\$a$", "$$", r"a\b$x^{$", "no dollar"])
def test_no_name_is_mathematics_to_matplotlib(name: str) -> None:
    text = figure_text(name)
    assert not cbook.is_math_text(text)
    # What matplotlib draws of text that is no mathematics.
    assert text.replace(r"\$", "$") == name
