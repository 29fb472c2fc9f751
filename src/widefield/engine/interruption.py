"""A run that is told to stop: the signals of a scheduler, answered by a checkpoint and a clean end."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from widefield._core.errors import RunInterruptedError

if TYPE_CHECKING:
    from contextlib import ExitStack

    from accelerate import Accelerator

_NAMES = ("SIGTERM", "SIGUSR1", "SIGINT")
_REPEAT_S = 2.0
_AGREE_EVERY_S = 10.0


class StopSignals:
    """Takes note of SIGTERM, SIGUSR1 and SIGINT while it is on `stack`; ranks agree on the step at which they stop.

    Handlers are installed in the main thread only, and what was there before is put back at the end. A signal that
    comes twice within 2 s is one order that scheduler and launcher both passed on; later, a second signal has the
    effect it would have had without the run, which by default is the death of the process. SIGINT (Ctrl-C) is left to
    whoever has set a handler for it or has it ignored. In forked children SIGTERM ends the process, SIGINT interrupts
    it and SIGUSR1 does nothing.

    One process answers after the current step. Several ask one another about every 10 s, measured in steps so that all
    do it at the same one, which costs one reduction of two numbers each time; an order to any of them reaches all.

    Args:
        stack: Takes the callback that puts the handlers back.
        accelerator: Of the run.
    """

    def __init__(self, stack: ExitStack, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._pid = os.getpid()
        self._name: str | None = None
        self._asked_at = 0.0
        self._before: dict[signal.Signals, Any] = {}
        self._due: int | None = None
        self._last_step, self._last_time = 0, 0.0
        if threading.current_thread() is threading.main_thread():
            for name in _NAMES:
                number = getattr(signal, name, None)
                if number is not None and self._is_ours(number):
                    self._before[number] = signal.signal(number, self._take_note)
        stack.callback(self._restore)

    @property
    def is_asked(self) -> bool:
        """Whether this process was told to stop."""
        return self._name is not None

    def is_agreed(self, step: int, *, at_once: bool = False) -> bool:
        """Return whether the run stops after `step`, the same on all ranks; called on all of them at each step.

        Args:
            step: Optimizer updates done.
            at_once: Ask the other processes now, whenever it was done last.
        """
        if self._accelerator.num_processes == 1:
            return self.is_asked
        if not at_once and self._due is not None and step < self._due:
            return False
        now = time.perf_counter()
        seconds = 0.0 if self._due is None else (now - self._last_time) / max(step - self._last_step, 1)
        # In float64 and by sum, so that every rank computes the same next step.
        both = torch.tensor([float(self.is_asked), seconds], dtype=torch.float64, device=self._accelerator.device)
        dist.all_reduce(both)
        asked, total = both.tolist()
        steps = 1 if self._due is None else int(_AGREE_EVERY_S * self._accelerator.num_processes / max(total, 1e-9))
        self._due, self._last_step = step + max(steps, 1), step
        self._last_time = time.perf_counter()
        return asked > 0

    def outcome(self, step: int) -> RunInterruptedError | KeyboardInterrupt:
        """Return what to raise once the checkpoint of `step` is written; Ctrl-C stays what Python makes of it."""
        by = self._name or "a signal to another process"
        kind = KeyboardInterrupt if self._name == "SIGINT" else RunInterruptedError
        return kind(f"Stopped by {by} after step {step}: resume the run; everything up to that step is kept.")

    @staticmethod
    def _is_ours(number: signal.Signals) -> bool:
        return number != signal.SIGINT or signal.getsignal(number) is signal.default_int_handler

    def _take_note(self, number: int, frame: object) -> None:
        if os.getpid() != self._pid:
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        now = time.monotonic()
        if self._name is None:
            self._name, self._asked_at = signal.Signals(number).name, now
        elif now - self._asked_at > _REPEAT_S:
            self._restore()
            os.kill(self._pid, number)

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
