"""Lazy infos are like a plain dict in all that can be asked of one."""

import copy
import json
import operator
import pickle
from typing import Any

import pytest

from maw_gym.envs.infos import LazyInfos

PLAIN = {"ready": 1, "ids": ["a", "b"], "more": 2}


def lazy() -> tuple[LazyInfos, list[str]]:
    """Infos like `PLAIN`, and a list of what was made."""
    made: list[str] = []

    def make() -> tuple[Any, ...]:
        made.append("values")
        return PLAIN["ids"], PLAIN["more"]

    return LazyInfos({"ready": 1}, ("ids", "more"), make), made


def test_nothing_is_made_for_keys_lengths_and_ready_values() -> None:
    infos, made = lazy()
    assert infos["ready"] == 1
    assert list(infos) == list(infos.keys()) == list(PLAIN)
    assert len(infos) == 3
    assert "ids" in infos
    assert "other" not in infos
    with pytest.raises(KeyError, match="other"):
        infos["other"]
    assert made == []


def test_values_are_made_once() -> None:
    infos, made = lazy()
    assert infos["ids"] is infos["ids"]
    assert infos["more"] == infos["more"] == 2
    assert made == ["values"]


def unpacked(**values: Any) -> dict[str, Any]:
    return values


def updated(infos: LazyInfos) -> dict[str, Any]:
    plain: dict[str, Any] = {"ids": None}
    plain.update(infos)
    return plain


@pytest.mark.parametrize(
    "read",
    [
        dict,
        copy.copy,
        copy.deepcopy,
        updated,
        lambda infos: infos.copy(),
        lambda infos: dict(infos.items()),
        lambda infos: dict(zip(infos, infos.values(), strict=True)),
        lambda infos: {key: infos[key] for key in infos},
        lambda infos: {key: infos.get(key) for key in infos},
        lambda infos: {key: infos.pop(key) for key in list(infos)},
        lambda infos: dict([infos.popitem() for _ in range(3)]),
        lambda infos: {key: infos.setdefault(key, None) for key in infos},
        lambda infos: {**infos},
        lambda infos: unpacked(**infos),
        lambda infos: infos | {},
        lambda infos: {} | infos,
        lambda infos: {"ids": None} | infos,
        lambda infos: json.loads(json.dumps(infos)),
        lambda infos: pickle.loads(pickle.dumps(infos)),
        lambda infos: eval(repr(infos)),
    ],
)
def test_every_way_of_reading_gives_the_values(read: Any) -> None:
    found = read(lazy()[0])
    assert type(found) is dict
    assert found == PLAIN


def test_equality() -> None:
    assert lazy()[0] == PLAIN
    assert operator.eq(PLAIN, lazy()[0])
    assert not operator.ne(PLAIN, lazy()[0])
    assert lazy()[0] == lazy()[0]
    assert lazy()[0] != {**PLAIN, "ready": 2}


def test_what_is_written_stays() -> None:
    infos, _ = lazy()
    infos["ids"] = "other"
    infos["new"] = 3
    assert infos == {"ready": 1, "ids": "other", "more": 2, "new": 3}
    infos, _ = lazy()
    infos.update(more=4)
    del infos["ids"]
    infos |= {"ready": 0}
    assert infos == {"ready": 0, "more": 4}
    infos, _ = lazy()
    infos.clear()
    assert infos == {}
