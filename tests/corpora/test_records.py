from collections import Counter

from maw_gym.corpora.collection import Collection, QuerySet, content_hash, encodable, judged_queries


def test_judged_queries_keeps_those_with_a_relevant_document_and_counts_the_rest():
    dropped: Counter[str] = Counter()
    queries = judged_queries(
        [("1", "one"), ("2", "two"), ("1", "again"), ("3", "three"), ("4", "")],
        [
            ("1", "a", 2),
            ("1", "b", -1),
            ("2", "a", 0),
            ("2", "gone", 1),
            ("3", "b", 1),
            ("3", "b", 3),
            ("4", "a", 1),
            ("unknown", "a", 1),
        ],
        {"a", "b"},
        dropped,
    )
    assert queries == QuerySet(
        ("1", "3", "4"), ("one", "three", ""), ({"a": 2, "b": 0}, {"b": 3}, {"a": 1})
    )
    assert dropped == {
        "queries with an id seen before": 1,
        "judgments of missing queries": 1,
        "judgments of missing documents": 1,
        "queries without a relevant document": 1,
        "judgments that a later one contradicts": 1,
    }


def test_encodable_replaces_lone_surrogates_and_joins_pairs():
    assert encodable("a\ud800b") == "a\ufffdb"
    assert encodable("\udc00") == "\ufffd"
    assert encodable("\ud83d\ude00") == "\U0001f600"
    assert encodable("a\x00é") == "a\x00é"


def test_content_hash_tells_every_part_and_only_the_parts():
    query = QuerySet(("q",), ("text",), ({"a": 1, "b": 0},))
    first = content_hash(["a", "b"], ["x", "y"], {"test": query})
    # The sha256 of 1:a1:x1:b1:y12:split test 11:q4:text20:[('a', 1), ('b', 0)]
    assert first == "150f502eba4aff8032d9ddf66050c35c6162f0cc183ba4b69cd2b1c4c9bb33df"
    reordered = query._replace(relevance=({"b": 0, "a": 1},))
    assert content_hash(["a", "b"], ["x", "y"], {"test": reordered}) == first
    others = [
        content_hash(["a", "b"], ["x", "z"], {"test": query}),
        content_hash(["a", "bx"], ["x", ""], {"test": query}),
        content_hash(["a", "b"], ["x", "y"], {"train": query}),
        content_hash(["a", "b"], ["x", "y"], {"test": query._replace(relevance=({"a": 2},))}),
    ]
    assert len({first, *others}) == 5


def test_small_is_fewer_than_50000_documents():
    ids = tuple(map(str, range(50_000)))
    assert Collection("x", ids[:-1], ids[:-1], {}, {}).small
    assert not Collection("x", ids, ids, {}, {}).small
