"""The two errors of the library: what the user can mend, and what a run could not survive."""

from __future__ import annotations


class WidefieldError(Exception):
    """Base of every error that widefield raises on purpose; the command line turns it into one sentence."""


class InputError(WidefieldError, ValueError):
    """Something the caller gave cannot be used: the message says what was expected, what came, and what to do.

    Args:
        expected: What would have been accepted, as a noun phrase.
        got: What came instead, as a noun phrase.
        fix: What to do about it, as an imperative.
    """

    def __init__(self, expected: str, got: str, fix: str) -> None:
        self.expected = expected
        self.got = got
        self.fix = fix
        super().__init__(f"Expected {expected}, but got {got}: {fix}.")

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str]]:
        # Errors cross process boundaries, and pickle would call the constructor with the message alone.
        return type(self), (self.expected, self.got, self.fix)


class MissingExtraError(WidefieldError, ImportError):
    """An optional dependency is needed here and is not installed."""


class RunError(WidefieldError, RuntimeError):
    """A run had to stop for a reason outside its input (a full disk, a loss that is not finite)."""


class RunInterruptedError(RunError):
    """A signal asked the run to stop, and it did after writing a checkpoint.

    It is raised by the trainer on every process. Nothing went wrong, so a command line should end with exit code 0:
    schedulers requeue such a job without counting a failure, and the launcher does not tear down the other processes.
    Whether the run itself is finished is told by its summary, not by the exit code.
    """
