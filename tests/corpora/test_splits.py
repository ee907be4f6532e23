import pytest

from maw_gym.corpora.collection import QuerySet
from maw_gym.corpora.splits import (
    SPLITS,
    balanced_shares,
    check_balance,
    divide,
    fraction,
    pooled,
    side,
)
from maw_gym.errors import InputError


def queries(texts):
    return QuerySet(tuple(texts), tuple(texts), ({"d": 1},) * len(texts))


def divided(parts, *arguments):
    splits, _ = divide({part: queries(texts) for part, texts in parts.items()}, *arguments)
    assert tuple(splits) == SPLITS
    return [list(found.ids) for found in splits.values()]


def joined(parts, *arguments):
    return ["".join(ids) for ids in divided(parts, *arguments)]


def test_side_of_a_text():
    # sha256("a") begins with ca978112ca1b: its first 48 bits.
    assert fraction("a") == 0xCA978112CA1B / 2**48 == pytest.approx(0.791374, abs=1e-6)
    ends = (0.0, 0.5999, 0.60, 0.7999, 0.80, 0.8499, 0.85, 0.9999)
    assert [side(position) for position in ends] == [split for split in SPLITS for _ in range(2)]


TWELVE = [f"query {i}" for i in range(12)]
MARKS = ("learn C#", "LEARN  C++", "🙂", "दिन"), ("learn C++", "🍕", "दीन")


@pytest.mark.parametrize(
    ("parts", "encoder", "train", "validation", "test"),
    [
        ({"encoder": "e", "train": "a", "validation": "v", "test": "t"}, "e", "a", "v", "t"),
        ({"test": "abc"}, "", "", "", "abc"),  # for evaluation only
        ({"train": "ab", "validation": "v"}, "", "b", "a", "v"),
        ({"validation": "ab", "test": "t"}, "", "b", "a", "t"),
        ({"train": "ab", "validation": "v", "test": "t"}, "", "ab", "v", "t"),
        ({"all": "a"}, "", "", "", "a"),
        # Of 12 the largest hash, query 7 .977, is for validation: round(12 / 10) = 1.
        ({"train": TWELVE, "test": "t"}, "", [*TWELVE[:7], *TWELVE[8:]], ["query 7"], "t"),
        # A text that recurs stays where it is nearest to test.
        (
            {"train": ["A!", "b", "c", "same", "Same"], "validation": "Bva", "test": "a"},
            *("", ["c", "same", "Same"], "Bv", "a"),
        ),
        # In the order of their hash, see below: d, f, c, b, e, a; equal texts are never parted.
        ({"all": ["a", "A", "a#", *"bcd", "D", *"ef"]}, "", "bcf", "e", ["a", "A", "a#", "d", "D"]),
        # C++ in capitals alone: texts that differ in symbols or marks are different.
        (
            {"train": MARKS[0], "validation": "v", "test": MARKS[1]},
            *("", ["learn C#", "🙂", "दिन"], "v", MARKS[1]),
        ),
    ],
)
def test_parts_and_what_is_missing(parts, encoder, train, validation, test):
    assert divided(parts, 0) == [list(texts) for texts in (encoder, train, validation, test)]


# In the order of their hash: d .096, f .145, c .18, b .243, e .248, h .667, l .675, a .79, g .80
@pytest.mark.parametrize(
    ("folds", "together", "tests", "fold_of_rest", "rest"),
    [
        # The largest hash of the rest is for validation.
        (None, "", ["dh", "fl", "ac", "bg", "e"], 0, ["", "abcefl", "g"]),
        (3, "", ["bdl", "aef", "cgh"], 2, ["", "bdefl", "a"]),
        # a and c go where d goes, which is first in the order of the hash; then f, b, e, h, l, g.
        (4, "acd", ["acdh", "fl", "bg", "e"], 1, ["", "abcdeh", "g"]),
    ],
)
def test_folds_deal_the_texts_in_the_order_of_their_hash(
    folds, together, tests, fold_of_rest, rest
):
    twins = {text: "d" if text in together else text for text in "abcdefghl"}
    parts = {"all": list("abcdefghl")}
    found = [joined(parts, fold, folds, twins) for fold in range(len(tests))]
    assert [splits[3] for splits in found] == tests
    assert found[fold_of_rest][:3] == rest


def test_500_queries_outside_test_are_divided_by_their_hash():
    texts = [f"query {i}" for i in range(500)]
    encoder, train, validation, test = divided({"train": texts, "test": ["x"]}, 0)
    # Ends at 60/85 = .706 and 80/85 = .941: query 0 .52, query 3 .83, query 7 .977, query 11 .935.
    assert {"query 0", "query 1", "query 5"} <= set(encoder)
    assert {"query 3", "query 11"} <= set(train)
    assert "query 7" in validation
    assert test == ["x"]
    assert sorted(encoder + train + validation) == sorted(texts)
    # With its own validation part the ends are .75 and 1, and 499 + 1 are enough.
    parts = {"train": texts[:499], "validation": ["v"], "test": ["x"]}
    encoder, train, validation, _ = divided(parts, 0)
    assert {"query 0", "query 1"} <= set(encoder)
    assert {"query 3", "query 7", "query 11"} <= set(train)
    assert validation == ["v"]
    assert not divided(parts | {"train": texts[:498]}, 0)[0]


def test_subsets_are_pooled_with_all_their_judgments():
    one = QuerySet(("1", "2"), ("one", "two"), ({"a": 1}, {"b": 1}))
    other = QuerySet(("2", "3"), ("two", "three"), ({"a": 2, "b": 0}, {"c": 1}))
    relevance = ({"a": 1}, {"b": 0, "a": 2}, {"c": 1})
    expected = QuerySet(("1", "2", "3"), ("one", "two", "three"), relevance)
    assert pooled({"train": one, "test": other}) == expected
    with pytest.raises(InputError, match=r"^query id '2' stands for different texts"):
        pooled({"train": one, "test": other._replace(texts=("zwei", "three"))})


def test_groups_are_as_likely_as_a_power_of_their_size():
    assert balanced_shares("aaba", 1) == pytest.approx([1 / 4] * 4)
    assert balanced_shares("aaba", 0) == pytest.approx([1 / 6, 1 / 6, 1 / 2, 1 / 6])  # each half
    a, b = 0.2113249, 0.3660254  # the groups as sqrt(3) : 1
    assert balanced_shares("aaba", 0.5) == pytest.approx([a, a, b, a], abs=1e-7)
    for balance in (-0.1, 1.1, float("nan"), float("inf"), "0", None, True):
        with pytest.raises(InputError, match=r"^balance must be a number from 0 .* to 1 .*, got "):
            check_balance(balance)
