import pytest

from maw_gym.corpora.collection import QuerySet
from maw_gym.corpora.splits import balanced_shares, check_balance, divide, fraction, pooled, side
from maw_gym.errors import InputError


def queries(texts):
    texts = tuple(texts)
    return QuerySet(texts, texts, tuple({"d": 1} for _ in texts))


def ids(splits):
    return {split: list(found.ids) for split, found in splits.items()}


def test_fraction_is_the_first_48_bits_of_the_sha256():
    # sha256("a") begins with ca978112ca1b.
    assert fraction("a") == 0xCA978112CA1B / 2**48
    assert fraction("a") == pytest.approx(0.791374, abs=1e-6)


def test_side_of_a_position():
    ends = (0.0, 0.5999, 0.60, 0.7999, 0.80, 0.8499, 0.85, 0.9999)
    expected = ["encoder"] * 2 + ["train"] * 2 + ["validation"] * 2 + ["test"] * 2
    assert [side(position) for position in ends] == expected


def test_own_splits_are_kept():
    parts = {name: queries([name]) for name in ("encoder", "train", "validation", "test")}
    splits, notes = divide(parts, 0)
    assert splits == parts
    assert "fold" not in notes


def test_a_test_part_alone_is_for_evaluation_only():
    splits, _ = divide({"test": queries("abc")}, 0)
    assert ids(splits) == {"encoder": [], "train": [], "validation": [], "test": list("abc")}


# In the order of their hash: d .096, f .145, c .18, b .243, e .248, h .667, l .675, a .79, g .80
def test_folds_deal_the_texts_in_the_order_of_their_hash():
    folds = [divide({"all": queries("abcdefghl")}, fold)[0] for fold in range(5)]
    assert [list(splits["test"].ids) for splits in folds] == [
        ["d", "h"],
        ["f", "l"],
        ["a", "c"],
        ["b", "g"],
        ["e"],
    ]
    # The rest of fold 0 without the one with the largest hash, which is for validation.
    assert ids(folds[0]) == {
        "encoder": [],
        "train": ["a", "b", "c", "e", "f", "l"],
        "validation": ["g"],
        "test": ["d", "h"],
    }


def test_folds_of_a_number_asked_for():
    folds = [divide({"all": queries("abcdefghl")}, fold, folds=3) for fold in range(3)]
    tests = [list(splits["test"].ids) for splits, _ in folds]
    assert tests == [["b", "d", "l"], ["a", "e", "f"], ["c", "g", "h"]]
    assert folds[2][1]["made"] == "fold 2 of 3 is test"
    assert (folds[2][1]["fold"], folds[2][1]["folds"]) == (2, 3)


def test_twins_are_in_the_same_fold_and_on_the_same_side():
    # a and c go where d goes, which is first in the order of the hash; then f, b, e, h, l, g.
    twins = {text: "d" if text in "acd" else text for text in "abcdefghl"}
    folds = [divide({"all": queries("abcdefghl")}, fold, 4, twins)[0] for fold in range(4)]
    tests = [list(splits["test"].ids) for splits in folds]
    assert tests == [["a", "c", "d", "h"], ["f", "l"], ["b", "g"], ["e"]]
    # Of the rest of fold 1 the largest hash, that of g, is for validation.
    assert ids(folds[1]) == {
        "encoder": [],
        "train": ["a", "b", "c", "d", "e", "h"],
        "validation": ["g"],
        "test": ["f", "l"],
    }


def test_subsets_are_pooled_with_all_their_judgments():
    one = QuerySet(("1", "2"), ("one", "two"), ({"a": 1}, {"b": 1}))
    other = QuerySet(("2", "3"), ("two", "three"), ({"a": 2, "b": 0}, {"c": 1}))
    assert pooled({"train": one, "test": other}) == QuerySet(
        ("1", "2", "3"), ("one", "two", "three"), ({"a": 1}, {"b": 0, "a": 2}, {"c": 1})
    )
    with pytest.raises(InputError, match=r"^query id '2' stands for different texts"):
        pooled({"train": one, "test": other._replace(texts=("zwei", "three"))})


def test_a_tenth_is_for_validation_in_a_small_collection():
    texts = [f"query {i}" for i in range(12)]
    splits, notes = divide({"train": queries(texts), "test": queries(["x"])}, 0)
    # The largest hash: query 7 .977; round(12 / 10) = 1.
    assert ids(splits)["validation"] == ["query 7"]
    assert ids(splits)["train"] == [text for text in texts if text != "query 7"]
    assert ids(splits)["encoder"] == []
    assert notes["outside_test"] == 12
    own, _ = divide({"train": queries(texts), "validation": queries("v"), "test": queries("x")}, 0)
    assert ids(own) == {"encoder": [], "train": texts, "validation": ["v"], "test": ["x"]}


def test_500_queries_outside_test_are_divided_by_their_hash():
    texts = [f"query {i}" for i in range(500)]
    test = queries(["x"])
    splits, _ = divide({"train": queries(texts), "test": test}, 0)
    assert splits["test"] == test
    # Ends at 60/85 = .706 and 80/85 = .941: query 0 .52, query 3 .83, query 7 .977, query 11 .935.
    for split, members in {
        "encoder": ("query 0", "query 1", "query 5"),
        "train": ("query 3", "query 11"),
        "validation": ("query 7",),
    }.items():
        assert set(members) <= set(splits[split].ids)
    assert sum(len(splits[split].ids) for split in ("encoder", "train", "validation")) == 500
    # With its own validation part the ends are .75 and 1, and 499 + 1 are enough.
    parts = {"train": queries(texts[:499]), "validation": queries("v"), "test": test}
    splits, _ = divide(parts, 0)
    assert {"query 0", "query 1"} <= set(splits["encoder"].ids)
    assert {"query 3", "query 7", "query 11"} <= set(splits["train"].ids)
    assert ids(splits)["validation"] == ["v"]
    splits, _ = divide(parts | {"train": queries(texts[:498])}, 0)
    assert splits["encoder"].ids == ()


def test_missing_parts_are_made_up_for():
    no_test, _ = divide({"train": queries("ab"), "validation": queries("v")}, 0)
    assert ids(no_test) == {"encoder": [], "train": ["b"], "validation": ["a"], "test": ["v"]}
    no_train, _ = divide({"validation": queries("ab"), "test": queries("x")}, 0)
    assert ids(no_train) == {"encoder": [], "train": ["b"], "validation": ["a"], "test": ["x"]}


def test_recurring_texts_are_kept_nearest_to_test_only():
    parts = {
        "train": queries(["A!", "b", "c", "same", "Same"]),
        "validation": queries(["B", "v", "a"]),
        "test": queries(["a"]),
    }
    splits, notes = divide(parts, 0)
    assert ids(splits) == {
        "encoder": [],
        "train": ["c", "same", "Same"],
        "validation": ["B", "v"],
        "test": ["a"],
    }
    assert notes["dropped_recurring_texts"] == 3


def test_equal_texts_are_never_parted():
    splits, _ = divide({"all": queries(["a", "A", "a.", "b", "c", "d", "D", "e", "f"])}, 0)
    for group in ({"a", "A", "a."}, {"d", "D"}):
        homes = [split for split, found in splits.items() if group & set(found.ids)]
        assert len(homes) == 1


def test_one_query_is_test_and_none_is_left():
    splits, _ = divide({"all": queries("a")}, 0)
    assert ids(splits) == {"encoder": [], "train": [], "validation": [], "test": ["a"]}
    assert divide({"all": queries("a")}, 1)[0]["test"].ids == ()


def test_queries_that_differ_in_symbols_or_marks_are_different():
    train, test = ("learn C#", "learn C", "LEARN  C++", "🙂", "दिन"), ("learn C++", "🍕", "दीन")
    parts = {
        name: QuerySet(
            tuple(f"{name}{row}" for row in range(len(texts))), texts, ({"d": 1},) * len(texts)
        )
        for name, texts in (("train", train), ("test", test))
    }
    splits, notes = divide(parts, 0)
    assert notes["dropped_recurring_texts"] == 1  # C++ in capitals
    assert set(splits["train"].texts + splits["validation"].texts) == set(train) - {"LEARN  C++"}


@pytest.mark.parametrize(
    ("balance", "of_a", "of_b"),
    [
        (1, 1 / 4, 1 / 4),
        (0, 1 / 6, 1 / 2),  # each group half
        (0.5, 0.2113249, 0.3660254),  # the groups as sqrt(3) : 1
    ],
)
def test_groups_are_as_likely_as_a_power_of_their_size(balance, of_a, of_b):
    assert balanced_shares("aaba", balance) == pytest.approx([of_a, of_a, of_b, of_a], abs=1e-7)


@pytest.mark.parametrize("balance", [-0.1, 1.1, float("nan"), float("inf"), "0", None, True])
def test_other_exponents_are_refused(balance):
    with pytest.raises(InputError, match=r"^balance must be a number from 0 .* to 1 .*, got "):
        check_balance(balance)
