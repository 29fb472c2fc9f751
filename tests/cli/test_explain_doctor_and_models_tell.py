from __future__ import annotations

import torch

from widefield import explain, list_models
from widefield.ops.depthwise_conv.order import BACKENDS


def test_explain_prints_every_candidate_of_every_map(widefield) -> None:
    outcome = widefield("explain", 4, 96, 56, 56, 31)
    assert outcome.code == 0
    for pass_ in ("forward", "grad_input", "grad_weight"):
        lines = [line for line in outcome.out.splitlines() if line.strip().startswith(pass_)]
        assert len(lines) == len(BACKENDS)
        assert sum("chosen" in line for line in lines) == 1
    assert "it computes grad_weight alone" in outcome.out


def test_explain_takes_a_rectangular_kernel_and_a_type(widefield) -> None:
    outcome = widefield("explain", 1, 8, 14, 14, 51, 5, "--dtype", "bfloat16", "--layout", "channels_last")
    lines = outcome.out.splitlines()
    assert lines[0] == "depthwise 51x5 on N1 C8 14x14, bfloat16, channels_last, cpu"
    assert lines[1] == "  run as 27x5: the other taps meet no pixel"
    assert str(explain(1, 8, 14, 14, (51, 5), dtype=torch.bfloat16, layout="channels_last")) in outcome.out


def test_doctor_checks_every_backend(widefield, monkeypatch) -> None:
    # Triton's interpreter would take most of a minute; its kernels have tests of their own.
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    outcome = widefield("doctor")
    assert outcome.code == 0, outcome.err
    for backend in BACKENDS:
        assert backend.name in outcome.out
    assert "everything that runs here computes the right thing" in outcome.out


def test_doctor_finds_a_backend_that_is_wrong(widefield, monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    backend = BACKENDS[0]
    monkeypatch.setattr(type(backend), "forward", lambda self, x, weight, bias, problem: 2 * x)
    outcome = widefield("doctor")
    assert outcome.code == 1
    assert f"{backend.name} forward" in outcome.err


def test_models_lists_all_and_shows_one(widefield) -> None:
    outcome = widefield("models")
    for name in list_models():
        assert name in outcome.out
    outcome = widefield("models", "replknet_31b")
    assert "parameters   79,864,168" in outcome.out


def test_no_command_says_what_there_is(widefield) -> None:
    outcome = widefield()
    assert outcome.code == 0
    assert "predict" in outcome.out
    assert widefield("--version").out.startswith("widefield ")


def test_an_unforeseen_error_is_one_line_and_debug_shows_it_all(widefield, monkeypatch) -> None:
    import pytest

    from widefield.cli import models

    def broken(words: object) -> None:
        raise ZeroDivisionError("it broke")

    monkeypatch.setattr(models, "run", broken)
    outcome = widefield("models")
    assert outcome.code == 1
    assert "ZeroDivisionError: it broke (run again with --debug for the traceback)" in outcome.err.replace("\n", " ")
    with pytest.raises(ZeroDivisionError):
        widefield("models", "--debug")
