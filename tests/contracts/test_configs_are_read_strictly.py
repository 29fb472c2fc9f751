from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from widefield._core.configs import from_plain, to_plain
from widefield._core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    sizes: tuple[int, ...] | None = None
    pair: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str = "a"
    mode: Literal["x", "y"] = "x"
    count: int = 1
    is_on: bool = False
    path: Path | None = None
    inner: Inner = field(default_factory=Inner)


def test_what_is_written_is_read_back() -> None:
    config = Outer(name="b", mode="y", path=Path("/data"), inner=Inner(rate=2.0, sizes=(13, 7)))
    assert from_plain(Outer, to_plain(config)) == config
    assert from_plain(Outer, {}) == Outer()


def test_whole_numbers_serve_as_fractions_but_not_the_other_way() -> None:
    assert from_plain(Inner, {"rate": 1, "pair": [0, 2]}) == Inner(rate=1.0, pair=(0.0, 2.0))
    with pytest.raises(InputError, match=r"Expected count to be of type int, but got 1\.5: change its value"):
        from_plain(Outer, {"count": 1.5})


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"nam": "b"}, r"Expected the name of a field of the config, but got 'nam': did you mean 'name'"),
        ({"inner": {"rat": 1}}, r"Expected the name of a field of inner, but got 'rat': did you mean 'rate'"),
        ({"mode": "z"}, r"Expected mode to be one of 'x', 'y', but got 'z': use one of them"),
        ({"is_on": 1}, r"Expected is_on to be of type bool, but got 1: change its value"),
        ({"count": True}, r"Expected count to be of type int, but got True: change its value"),
        ({"inner": {"sizes": 3}}, r"Expected inner\.sizes to be a list, but got 3: write it as \[a, b\]"),
        ({"inner": {"pair": [1]}}, r"Expected inner\.pair to be 2 values, but got 1: give that many"),
        ({"inner": 3}, r"Expected a mapping of the fields of inner, but got 3: write one line for each field"),
        ([], r"Expected a mapping of the fields of the config, but got \[\]"),
    ],
)
def test_mistakes_are_told(values: object, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        from_plain(Outer, values)


def test_freed_memory_is_kept_where_the_c_library_can() -> None:
    code = (
        "import torch\n"
        "from widefield._core.memory import keep_freed_memory\n"
        "print(keep_freed_memory())\n"
        "print(float(sum(torch.ones(1 << 22).sum() for _ in range(3))))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    has_glibc = platform.system() == "Linux" and platform.libc_ver()[0] == "glibc"
    assert done.stdout.split() == [str(has_glibc), str(float(3 << 22))]
