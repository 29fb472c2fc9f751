"""Which backend runs: a forced one within a block, else the first of an ordered list that does not refuse."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from widefield._core.checks import check, check_name
from widefield.ops.backends import PASSES, Backend, Pass, find

if TYPE_CHECKING:
    from widefield.ops.depthwise_conv.problem import Problem

_forced: ContextVar[str] = ContextVar("widefield_forced_backend", default="")
# Compilers of PyTorch before 2.15 cannot read a context variable; a global they read, and compile anew when it changes.
_COMPILERS_READ_CONTEXT = torch.__version__ >= "2.15"
_forced_for_compilers = ""

BACKEND_NAMES = ("aten", "channels_last", "transposed", "correlation", "fft", "dft", "triton", "reference")


@contextmanager
def use_backend(name: str) -> Generator[None]:
    """Run every operator called within the block on one backend, forward and backward.

    A forced backend never falls back: a problem that it cannot run raises `InputError` with all its reasons.
    What was recorded within the block keeps its backend when ``backward`` is called after it. A compiled function
    follows the block around its call; the block itself cannot lie inside a function given to `torch.compile`.

    Args:
        name: One of `BACKEND_NAMES`.

    Raises:
        InputError: If there is no backend of that name.

    Example:
        >>> with use_backend("aten"):
        ...     y = depthwise_conv2d(x, weight)
    """
    check_name(name, BACKEND_NAMES, "backend")
    global _forced_for_compilers
    token, before = _forced.set(name), _forced_for_compilers
    _forced_for_compilers = name
    try:
        yield
    finally:
        _forced.reset(token)
        _forced_for_compilers = before


def forced_backend() -> str:
    """Return the name that `use_backend` has set here, or the empty string."""
    if not _COMPILERS_READ_CONTEXT and torch.compiler.is_compiling():
        return _forced_for_compilers
    return _forced.get()


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One backend's standing for one map: its rank in the order of preference and why it cannot run, if it cannot."""

    pass_: Pass
    backend: str
    is_chosen: bool
    is_automatic: bool
    """Whether it may be chosen without `use_backend`."""
    refusals: tuple[str, ...]
    predicted_ms: float | None = None
    """Milliseconds that the choice was made by, if there is a prediction."""

    @property
    def standing(self) -> str:
        """In words, what the backend can do here."""
        if self.refusals:
            return "cannot run"
        return "chosen" if self.is_chosen else "can run" if self.is_automatic else "on request only"


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Every candidate for every map of a problem, best first, and what is chosen. ``str()`` gives a table."""

    problem: Problem
    """What was asked for."""
    runs_as: Problem
    """What runs: the same without taps that meet no pixel."""
    candidates: tuple[Candidate, ...]

    def chosen(self, pass_: Pass) -> str:
        """Return the name of the backend that runs `pass_`, or the empty string if none can."""
        return next((c.backend for c in self.candidates if c.pass_ == pass_ and c.is_chosen), "")

    def __str__(self) -> str:
        lines = [str(self.problem)]
        if self.runs_as != self.problem:
            kernel = "x".join(map(str, self.runs_as.kernel_size))
            lines.append(f"  run as {kernel}: the other taps meet no pixel")
        for candidate in self.candidates:
            reason = f" ({'; '.join(candidate.refusals)})" if candidate.refusals else ""
            time = "" if candidate.predicted_ms is None else f"about {candidate.predicted_ms:.3g} ms"
            line = f"  {candidate.pass_:<12} {candidate.backend:<14} {time:<16} {candidate.standing}{reason}"
            lines.append(line)
        return "\n".join(lines)


def choose(backends: Sequence[Backend], order: Sequence[str], problem: Problem, pass_: Pass, forced: str) -> Backend:
    """Return the backend for one map.

    Args:
        backends: All backends of the operator.
        order: Names of those that may be chosen automatically, best first.
        problem: The shape at hand.
        pass_: The map.
        forced: A name that must be used, or the empty string.

    Returns:
        The forced backend, or the first of `order` without a refusal.

    Raises:
        InputError: If the forced backend, or every one of `order`, refuses; all reasons are listed.
    """
    names = (forced,) if forced else order
    reasons: list[str] = []
    for name in names:
        backend = find(backends, name)
        refusals = backend.refusals(problem, pass_)
        if not refusals:
            return backend
        reasons += [f"{name}: {reason}" for reason in refusals]
    check(
        False,
        f"a problem whose {pass_} the backend{'' if forced else 's'} {' or '.join(map(repr, names))} can run",
        f"{problem} ({'; '.join(reasons)})",
        "choose another backend or none" if forced else "change the input",
    )
    raise AssertionError("unreachable")


def explain_choice(
    backends: Sequence[Backend],
    orders: dict[Pass, Sequence[str]],
    problem: Problem,
    runs_as: Problem,
    forced: str,
    predictions: dict[Pass, dict[str, float]] | None = None,
) -> Explanation:
    """Return the `Explanation` of what `choose` does for each map."""
    candidates: list[Candidate] = []
    for pass_ in PASSES:
        order = [forced] if forced else list(orders[pass_])
        ranked = order + [backend.name for backend in backends if backend.name not in order]
        is_open = True
        for name in ranked:
            refusals = tuple(find(backends, name).refusals(runs_as, pass_))
            is_chosen = is_open and not refusals and name in order
            is_open = is_open and not is_chosen
            predicted = (predictions or {}).get(pass_, {}).get(name, math.inf)
            candidates.append(
                Candidate(
                    pass_=pass_,
                    backend=name,
                    is_chosen=is_chosen,
                    is_automatic=name in order,
                    refusals=refusals,
                    predicted_ms=None if refusals or math.isinf(predicted) else predicted,
                )
            )
    return Explanation(problem=problem, runs_as=runs_as, candidates=tuple(candidates))
