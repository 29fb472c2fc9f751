from __future__ import annotations

import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from widefield._core.checks import check, check_name, nearest
from widefield._core.configs import from_plain, to_plain
from widefield._core.errors import InputError, MissingExtraError, RunError, WidefieldError
from widefield._core.extras import require


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[int, float] = (1, 2.0)


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    inner: Inner = Inner()
    mode: Literal["a", "b"] = "a"
    place: Path | None = None
    is_on: bool = False
    count: int = 1


def test_an_error_has_three_parts_and_crosses_processes() -> None:
    error = InputError("a pear", "an apple", "buy one")
    assert str(error) == "Expected a pear, but got an apple: buy one."
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.fix) == (InputError, str(error), "buy one")
    assert isinstance(error, ValueError)
    assert issubclass(RunError, RuntimeError)
    assert all(issubclass(kind, WidefieldError) for kind in (InputError, RunError, MissingExtraError))


def test_a_check_raises_only_if_it_does_not_hold() -> None:
    check(True, "a", "b", "c")
    with pytest.raises(InputError, match=r"^Expected a, but got b: c\.$"):
        check(False, "a", "b", "c")


def test_names_are_answered_with_the_nearest_or_all() -> None:
    check_name("aten", ["aten", "fft"], "backend")
    with pytest.raises(InputError, match=re.escape("the name of a tree, but got 'elme': did you mean 'elm'.")):
        check_name("elme", ["oak", "elm"], "tree")
    with pytest.raises(InputError, match=re.escape("the name of a tree, but got 'zzz': use one of elm, oak.")):
        check_name("zzz", ["oak", "elm"], "tree")
    assert len(nearest("replknet_31", ["replknet_31b", "replknet_31l", "other"], 1)) == 1


def test_a_missing_extra_comes_with_its_command() -> None:
    assert require("json", "hf", "reading").__name__ == "json"
    text = (
        "Expected the package 'absent_package' for reading shards, but it is not installed: "
        "run pip install 'widefield[wds]'."
    )
    with pytest.raises(MissingExtraError, match=re.escape(text)):
        require("absent_package", "wds", "reading shards")


def test_a_config_becomes_plain_and_itself_again() -> None:
    config = Outer(name="x", inner=Inner(rate=1.0, sizes=(3,)), mode="b", place=Path("p"), is_on=True)
    plain = to_plain(config)
    assert plain == {
        "name": "x",
        "inner": {"rate": 1.0, "sizes": [3], "pair": [1, 2.0]},
        "mode": "b",
        "place": "p",
        "is_on": True,
        "count": 1,
    }
    assert from_plain(Outer, plain) == config
    assert from_plain(Outer, {"name": "x", "place": None, "inner": {"rate": 1}}) == Outer(
        name="x", inner=Inner(rate=1.0)
    )


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([], "Expected a mapping of the fields of the config, but got []: write one line for each field."),
        ({"name": "x", "inner": 3}, "Expected a mapping of the fields of inner, but got 3: write"),
        ({"nam": "x"}, "Expected the name of a field of the config, but got 'nam': did you mean 'name'"),
        (
            {"name": "x", "inner": {"rat": 1}},
            "Expected the name of a field of inner, but got 'rat': did you mean 'rate'",
        ),
        ({"name": "x", "mode": "c"}, "Expected mode to be one of 'a', 'b', but got 'c': use one of them."),
        ({"name": "x", "inner": {"sizes": 3}}, "Expected inner.sizes to be a list, but got 3: write it as [a, b]."),
        ({"name": "x", "inner": {"pair": [1]}}, "Expected inner.pair to be 2 values, but got 1: give that many."),
        ({"name": 3}, "Expected name to be of type str, but got 3: change its value."),
        ({"name": "x", "count": True}, "Expected count to be of type int, but got True: change its value."),
        ({"name": "x", "is_on": 1}, "Expected is_on to be of type bool, but got 1: change its value."),
        ({"name": "x", "inner": {"rate": "1"}}, "Expected inner.rate to be of type float, but got '1': change"),
        ({"name": "x", "place": 3}, "Expected place to be of type Path, but got 3: change its value."),
    ],
)
def test_what_does_not_fit_a_config_is_named_by_its_path(values: Any, text: str) -> None:
    with pytest.raises(InputError, match=re.escape(text)):
        from_plain(Outer, values)
