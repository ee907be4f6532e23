import numpy as np
import pytest

from maw_gym.corpora.collection import QuerySet, checked_grade, checked_id, content_hash
from maw_gym.errors import InputError


def test_grades_are_whole_numbers_however_they_are_written():
    given = [2, -1, "1", "1.0", 3.0, np.int64(4), 1_000_000]
    grades = [checked_grade(one, "here") for one in given]
    assert grades == [2, 0, 1, 1, 3, 4, 1_000_000]
    assert set(map(type, grades)) == {int}
    for one in [0.9, "1.5", None, "", "yes", float("nan"), 1_000_001, "1e9", 10**400, [1]]:
        with pytest.raises(
            InputError, match=r"^here: a grade must be a whole number from -1000000"
        ):
            checked_grade(one, "here")


def test_ids_are_texts_without_space_or_whole_numbers():
    ids = ["a-1", 7, np.int64(8), "e\u0301", "\ud800"]
    assert [checked_id(one, "here") for one in ids] == ["a-1", "7", "8", "é", "\ufffd"]
    for given in ("", "a b", "a\n", "a\0b", None, True, 1.0, ["a"], float("nan")):
        with pytest.raises(InputError, match=r"^here: an id must be a whole number or a text "):
            checked_id(given, "here")


def test_content_hash_tells_every_part():
    query = QuerySet(("q",), ("text",), ({"b": 0, "a": 1},))
    # The sha256 of 1:a1:x1:b1:y12:split test 11:q4:text20:[('a', 1), ('b', 0)]
    expected = "150f502eba4aff8032d9ddf66050c35c6162f0cc183ba4b69cd2b1c4c9bb33df"
    assert content_hash({"a": "x", "b": "y"}, {"test": query}) == expected
