from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from widefield._core.errors import InputError
from widefield.engine import RunFolder

HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
file.write("process 77 on elsewhere")
file.flush()
print("held", flush=True)
sys.stdin.read()
"""

FORKING = """
import os, signal, sys
from contextlib import ExitStack
from pathlib import Path
from widefield.engine import RunFolder
RunFolder.create(Path(sys.argv[1]), False, 0, stack=ExitStack())
child = os.fork()
if child == 0:
    os.close(1)
    signal.pause()
print(child, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def another(tmp_path: Path) -> Any:
    """Another process that holds the lock of the folder `run`."""
    (tmp_path / "run").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run" / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def taken(path: Path, resume: bool) -> None:
    with ExitStack() as stack:
        RunFolder.create(path, resume, 0, "lr: 1\n", stack=stack)
        holder = (path / ".lock").read_text()
        assert holder.startswith(f"process {os.getpid()} on ")
    assert sorted(entry.name for entry in path.iterdir()) == ["config.yaml"]


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_that_another_process_writes_is_refused_and_left_alone(
    another: Any, tmp_path: Path, resume: bool
) -> None:
    run = tmp_path / "run"
    if resume:
        (run / "config.yaml").write_text("lr: 1\n")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with (
        ExitStack() as stack,
        pytest.raises(
            InputError,
            match=r"^Expected a run folder that no other process is writing, but got .*run, which process 77 on "
            r"elsewhere is writing: wait until it has ended, or choose another folder\.$",
        ),
    ):
        RunFolder.create(run, resume, 0, "lr: 1\n", stack=stack)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    another.kill()
    another.wait()
    taken(run, resume)


def test_two_new_runs_that_find_the_folder_empty_do_not_share_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    real = shutil.disk_usage

    def begun_by_another(path: Path) -> Any:
        if not run.exists():
            with ExitStack() as stack:
                run.mkdir()
                RunFolder.create(run, False, 0, "theirs: 1\n", stack=stack)
        return real(path)

    monkeypatch.setattr(shutil, "disk_usage", begun_by_another)
    with ExitStack() as stack, pytest.raises(InputError, match="Expected a run folder that is new or empty"):
        RunFolder.create(run, False, 0, "ours: 1\n", stack=stack)
    assert [entry.read_text() for entry in run.iterdir()] == ["theirs: 1\n"]


def test_what_a_kill_leaves_behind_locks_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", FORKING, str(run)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
        timeout=100,
    )
    child = int(done.stdout)
    try:
        assert done.returncode == -signal.SIGKILL
        assert (run / ".lock").is_file()
        taken(run, False)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_lock_file_that_was_taken_away_meanwhile_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = fcntl.flock, []

    def slow(descriptor: int, operation: int) -> None:
        if not calls:
            (tmp_path / "run" / ".lock").unlink()
        calls.append(operation)
        real(descriptor, operation)

    (tmp_path / "run").mkdir()
    monkeypatch.setattr(fcntl, "flock", slow)
    taken(tmp_path / "run", False)
    assert len(calls) == 2


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with ExitStack() as stack:
        RunFolder.create(tmp_path / "run", False, 0, "lr: 1\n", stack=stack)
        assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["config.yaml"]
    assert "run cannot be locked (No locks available): start no second process on this run" in caplog.text


def test_a_run_that_cannot_be_written_cannot_be_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RunFolder.create(tmp_path / "run", False, 0, "lr: 1\n")
    real = os.open

    def refuse(path: Any, *rest: Any) -> int:
        if str(path).endswith(".lock"):
            raise PermissionError(13, "Permission denied")
        return real(path, *rest)

    monkeypatch.setattr(os, "open", refuse)
    with ExitStack() as stack, pytest.raises(InputError, match=r"a folder that can be written, but got .*\(Permission"):
        RunFolder.create(tmp_path / "run", True, 0, "lr: 1\n", stack=stack)
