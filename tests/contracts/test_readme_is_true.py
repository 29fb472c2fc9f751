from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from widefield import list_models
from widefield.cli.main import COMMANDS, main
from widefield.recipes import RECIPES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_ci_runs_the_test_command_word_for_word() -> None:
    command = next(block.strip() for block in blocks("bash") if "pytest" in block)
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_the_first_command_sets_up_and_runs_the_quick_start() -> None:
    assert blocks("bash")[0].strip() == (
        "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/widefield train"
    )


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_examples_run(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(blocks("python")[number], f"README block {number}", "exec"), {})


def test_commands_models_recipes_and_options_that_are_named_exist(capsys: pytest.CaptureFixture[str]) -> None:
    for command in re.findall(r"(?:^|`)widefield (\w[\w-]*)", README, flags=re.MULTILINE):
        assert command in COMMANDS, command
    for recipe in re.findall(r"widefield train (\w+)", README):
        assert recipe in RECIPES, recipe
    for name in re.findall(r"\b(?:replknet|slak|pelk|unireplknet|convnext_lk)_\w+", README):
        assert name in list_models(), name
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    help_text = capsys.readouterr().out
    options = {word for word in shlex.split(README.replace("'", " ").replace("`", " ")) if word.startswith("--")}
    own = {option for option in options if "." in option or option in ("--config", "--resume")}
    assert len(own) >= 5
    for option in own:
        assert option.rstrip(",;:") in help_text, option
