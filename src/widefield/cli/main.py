"""``widefield COMMAND``: finds the command, and turns every error into one sentence and an exit code."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from widefield.__about__ import __version__
from widefield._core.checks import check_name
from widefield._core.errors import InputError, MissingExtraError, RunInterruptedError, WidefieldError
from widefield._core.plain_text import visible
from widefield.cli.terminal import Terminal, VisibleFormatter, styled

COMMANDS = {
    "train": "Train, merge and evaluate: widefield train [RECIPE] [--field value ...]",
    "evaluate": "Score a run or a checkpoint on a split",
    "predict": "Name the most probable classes of images",
    "merge": "Turn a checkpoint into its inference form, with a certificate",
    "convert": "Turn a published checkpoint into ours, or back",
    "models": "List the models, or show one",
    "sparsity": "Count what a sparsely trained network has left, layer by layer",
    "erf": "Measure the effective receptive field of any network",
    "shape-bias": "Ask whether a classifier goes by shape or by texture",
    "kernels": "Show where the weights of large kernels lie",
    "cost": "Count parameters, MACs and memory of any network, and time it",
    "report": "Make one HTML page of all that, with receptive fields to click through",
    "bench": "Time backends and networks: widefield bench op | sweep | model",
    "explain": "Say which backend runs a depthwise convolution, and why",
    "tune": "Measure this machine, so that the fastest backend is chosen on it",
    "doctor": "Check what is installed and that every backend computes the right thing",
}

_DONE, _FAILED, _WRONG_INPUT, _INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Words after ``widefield``; those of the process if none are given.

    Returns:
        0 done, 1 failure, 2 wrong usage or input, 130 interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    is_debugging = "--debug" in words
    words = [word for word in words if word != "--debug"]
    lines = logging.StreamHandler()
    lines.setFormatter(VisibleFormatter("%(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO if is_debugging else logging.WARNING, handlers=[lines])
    errors = Terminal(stderr=True)
    try:
        return _run(words)
    except (InputError, MissingExtraError) as error:
        return _told(error, errors, is_debugging, _WRONG_INPUT)
    except RunInterruptedError as error:
        # A scheduler asked for it and starts the job again: no failure.
        errors.print(visible(error), soft_wrap=True)
        return _DONE
    except WidefieldError as error:
        return _told(error, errors, is_debugging, _FAILED)
    except KeyboardInterrupt as interrupt:
        told = str(interrupt) or "interrupted; a run can be taken up with widefield train --resume RUN"
        errors.print(told, soft_wrap=True)
        return _INTERRUPTED
    except BrokenPipeError:
        return _FAILED
    except Exception as error:
        if is_debugging:
            raise
        told = f"error: {type(error).__name__}: {error} (run again with --debug for the traceback)"
        errors.print(visible(told), soft_wrap=True)
        return _FAILED


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        _print_commands()
        return _DONE
    if words[0] in ("-V", "--version"):
        Terminal().print(f"widefield {__version__}")
        return _DONE
    check_name(words[0], COMMANDS, "command")
    module = importlib.import_module(f"widefield.cli.{words[0].replace('-', '_')}")
    module.run(words[1:])
    return _DONE


def _told(error: WidefieldError, console: Console, is_debugging: bool, code: int) -> int:
    if is_debugging:
        raise error
    console.print(Text.assemble(("error: ", "bold red"), visible(error)), soft_wrap=True)
    return code


def _print_commands() -> None:
    console = Terminal()
    console.print(Text.assemble(("widefield", "bold"), ": large-kernel ConvNets in PyTorch\n"))
    table = Table(box=None, show_header=False, padding=(0, 2))
    for name, summary in COMMANDS.items():
        table.add_row(styled(name, "bold"), summary)
    console.print(table)
    console.print("\nwidefield COMMAND --help says more; widefield train alone is the quick start (about a minute).")
