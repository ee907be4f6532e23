import json
import math
import unicodedata
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maw_gym.corpora.collection import Collection, QuerySet
from maw_gym.errors import DamagedFileError
from maw_gym.files import write_manifest
from maw_gym.retrieval import bm25 as bm25_module
from maw_gym.retrieval.bm25 import (
    BM25,
    KIND,
    Candidates,
    best_weight,
    candidate_documents,
    fused_ranking,
    hybrid_ranking,
    reciprocal_ranks,
    scored_candidates,
    standardised,
    weighted_sum,
    with_relevant,
)
from maw_gym.retrieval.documents import DocumentIndex
from maw_gym.retrieval.search import rank


def index_of(*texts: str) -> BM25:
    return BM25.of([f"d{row}" for row in range(len(texts))], texts)


def test_scores_are_lucenes():
    index = index_of("wing jet", "Wings wing rudder", "tail")
    # idf = ln(1 + (3 - 2 + .5) / (2 + .5)) = ln 1.6 = .470; mean length 2; k1 1.2, b .75:
    # tf 2, length 3: 2 / (2 + 1.2 (.25 + .75 * 1.5)) = .5479; tf 1, length 2: 1 / 2.2 = .4545
    expected = [0.470004 * 0.454545, 0.470004 * 0.547945, 0]
    assert index.scores("wing") == pytest.approx(expected, abs=1e-5)
    assert index.scores("wing").dtype == np.float32
    ranking = index.rank(["wing"], 10)
    assert ranking.documents.tolist() == [[1, 0, -1]]
    assert ranking.documents.dtype == torch.int64
    assert ranking.scores[0].tolist() == pytest.approx([expected[1], expected[0], -np.inf])


def test_a_word_counts_as_often_as_the_query_has_it():
    index = index_of("wing jet", "rudder", "tail fin")
    assert index.scores("wing wings") == pytest.approx(2 * index.scores("wing"))
    assert index.scores("jet wing") == pytest.approx(index.scores("jet") + index.scores("wing"))


def test_equal_scores_take_trec_evals_order_at_the_cut_too():
    ranking = index_of("jet", *["wing"] * 6, "wing wing").rank(["wing"], 4)
    assert ranking.documents.tolist() == [[7, 6, 5, 4]]  # ids descending


def test_queries_without_a_match_have_an_empty_ranking():
    ranking = index_of("wing", "", "the").rank(["", "the", "jet", "wing"], 5)
    assert ranking.documents.tolist() == [[-1] * 3, [-1] * 3, [-1] * 3, [0, -1, -1]]
    assert index_of("", "the").rank(["wing"], 5).documents.tolist() == [[-1, -1]]


def test_texts_are_read_as_a_stream():
    texts = ["wing", "jet", "wing jet", "tail", "wing"]
    streamed = BM25.of([f"d{row}" for row in range(5)], iter(texts))
    whole = index_of(*texts)
    np.testing.assert_array_equal(streamed.scores("wing jet"), whole.scores("wing jet"))
    with pytest.raises(ValueError, match="2 document ids for 1 texts"):
        BM25.of(["a", "b"], iter(["x"]))


@pytest.mark.parametrize(
    ("texts", "query"),
    [
        (("国際標準化に関する動向を調べる", "日本料理の作り方"), "国際標準化"),
        (("ฉันชอบอาหารไทยมาก", "แมวนอนหลับ"), "อาหารไทย"),
        (("हिन्दी में लिखो", "हिन्दू मंदिर"), "हिन्दी"),
        (("un résumé du café", "un livre"), "re\u0301sume\u0301 cafe\u0301"),
    ],
)
def test_texts_of_the_world_are_found(texts: tuple[str, str], query: str):
    """A script without spaces is not one word, a mark does not cut one, one letter is not two."""
    first, second = index_of(*texts).scores(query)
    assert first > second
    assert first == index_of(*texts).scores(unicodedata.normalize("NFC", query))[0]


@pytest.mark.parametrize("texts", [("wing jet", "Wings wing rudder", "tail"), ("", "the")])
def test_an_index_is_saved_and_read(tmp_path: Path, texts: tuple[str, ...]):
    index = index_of(*texts)
    for _ in range(2):  # over itself, too
        index.save(tmp_path / "words")
        index = BM25.load(tmp_path / "words", [f"d{row}" for row in range(len(texts))])
    np.testing.assert_array_equal(index.scores("wing tail"), index_of(*texts).scores("wing tail"))
    assert index.rank(["wing"], 2).documents.equal(index_of(*texts).rank(["wing"], 2).documents)
    with pytest.raises(DamagedFileError, match=f"5 document ids for {len(texts)} texts"):
        BM25.load(tmp_path / "words", list("abcde"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("indices.csc.index.npy", np.array([0, 2], np.int32)),  # of two
        ("indices.csc.index.npy", np.array([0.0, 1.0])),
        ("indptr.csc.index.npy", np.array([0, 9, 2])),
        ("indptr.csc.index.npy", np.array([0, 1])),
        ("data.csc.index.npy", np.array([1.0, np.nan], np.float32)),
        ("data.csc.index.npy", np.array([[1.0, 1.0]], np.float32)),
        ("data.csc.index.npy", None),
        ("vocab.index.json", {"wing": 0, "jet": 2}),
        ("vocab.index.json", {"wing": "0"}),
        ("vocab.index.json", [1]),
        ("params.index.json", {"num_docs": 2, "corpus": 1, "magic": True}),
        ("params.index.json", [1]),
    ],
)
def test_a_stranger_can_make_checksums_that_fit(tmp_path: Path, name: str, content: Any):
    index_of("wing", "jet").save(tmp_path)
    if content is None:
        (tmp_path / name).write_bytes(b"no array")
    elif isinstance(content, np.ndarray):
        np.save(tmp_path / name, content)
    else:
        (tmp_path / name).write_text(json.dumps(content))
    write_manifest(tmp_path, KIND, {})
    with pytest.raises(DamagedFileError, match="is no BM25 index") as caught:
        BM25.load(tmp_path, ["d0", "d1"])
    assert "\n" not in str(caught.value)


def test_relevant_documents_follow_those_that_words_find(monkeypatch):
    monkeypatch.setattr(bm25_module, "CANDIDATES", 2)
    asked = QuerySet(("a", "b"), ("wing", "jet"), ({"d0": 1, "d3": 2, "d1": 1, "d2": 0}, {"d4": 1}))
    splits = dict.fromkeys(("encoder", "train", "validation", "test"), asked)
    texts = ("tail", "wing", "wing", "rudder", "jet")
    collection = Collection("x", tuple(f"d{row}" for row in range(5)), texts, splits, {})
    bm25 = BM25.of(collection.doc_ids, texts)
    lists = candidate_documents(collection, "train", bm25)
    assert [documents.tolist() for documents in lists] == [[2, 1], [4]]
    joined = with_relevant(lists, collection, "train")
    assert [documents.tolist() for documents in joined] == [[2, 1, 0, 3], [4]]
    assert all(documents.dtype == np.int64 for documents in lists + joined)


# d0 to d3 in trec_eval's order of equal scores: ids descending.
IDS = ("d3", "d2", "d1", "d0")
TEXTS = ("wing", "wing jet", "tail", "rudder")
VECTORS = torch.tensor([[0.6, 0.8], [0.8, 0.6], [1.0, 0.0], [0.0, 1.0]])


@pytest.fixture
def both() -> tuple[DocumentIndex, BM25]:
    return DocumentIndex(IDS, VECTORS), BM25.of(IDS, TEXTS)


def values(candidates: list[Candidates], field: str) -> list[list[float]]:
    return [getattr(one, field).tolist() for one in candidates]


def test_candidates_are_the_best_of_both_rankings_in_tie_order(both):
    by_cosine = [np.array([2, -1]), np.array([3, -1])]
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = scored_candidates(*both, query, ["wing", "nothing"], by_cosine, k=1)
    # By cosine d1, by BM25 d3, whose text is shorter than d2's; then d0 alone.
    assert values(found, "documents") == [[0, 2], [3]]
    assert values(found, "dense") == [[pytest.approx(0.6), 1.0], [1.0]]
    assert values(found, "lexical") == [[float(both[1].scores("wing")[0]), 0.0], [0.0]]
    # They may be given, and a query that is a document is none.
    lists = [np.array([3, 1, 3]), np.array([], int)]
    found = scored_candidates(*both, torch.eye(2), ["jet", "wing"], lists, k=0)
    assert values(found, "documents") == [[1, 3], []]
    assert values(found, "dense") == [[pytest.approx(0.8), 0.0], []]
    lists, own = [np.array([2, 0]), np.array([3, -1])], np.array([0, -1])
    found = scored_candidates(*both, torch.eye(2), ["wing jet", "tail"], lists, 2, own)
    # Of "wing jet" BM25 finds d2, and d3 no more, which is the query; of "tail" d1.
    assert values(found, "documents") == [[1, 2], [2, 3]]


def test_standardised_by_hand():
    z = 2 / math.sqrt(8 / 3)  # mean 3, deviation sqrt(8 / 3)
    assert standardised(np.array([1.0, 3.0, 5.0])) == pytest.approx([-z, 0, z])
    assert standardised(np.array([0.1, 0.1, 0.1])).tolist() == [0, 0, 0]
    assert standardised(np.array([])).tolist() == []


THREE = Candidates(np.array([4, 7, 2]), np.array([0.1, 0.5, 0.3]), np.array([8.0, 0.0, 4.0]))
TWO = Candidates(np.array([5, 6]), np.array([0.2, 0.2]), np.array([0.0, 3.0]))


def test_weighted_sum_by_hand():
    # Standardised: cosines -z, z, 0 and BM25 z, -z, 0 with z = sqrt(3 / 2); then 0, 0 and -1, 1.
    z = math.sqrt(1.5)
    assert weighted_sum(THREE, 0.75) == pytest.approx([-0.5 * z, 0.5 * z, 0])
    assert weighted_sum(TWO, 0.75).tolist() == [-0.25, 0.25]
    assert weighted_sum(TWO, 1).tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"a weight in \[0, 1\], got 60"):
        weighted_sum(TWO, 60)


def test_reciprocal_ranks_by_hand():
    # Cosines 3rd, 1st, 2nd and BM25 1st, not at all, 2nd. Then equal cosines in the order of the
    # documents: 1st, 2nd, and BM25 not at all, 1st.
    assert reciprocal_ranks(THREE) == pytest.approx([1 / 63 + 1 / 61, 1 / 61, 2 / 62])
    assert reciprocal_ranks(TWO) == pytest.approx([1 / 61, 1 / 62 + 1 / 61])
    assert reciprocal_ranks(THREE, constant=0)[2] == 1


def test_equal_fused_scores_keep_the_order_of_ties():
    scores = [np.array([1.0, 2.0, 2.0]), np.array([0.5, 0.5])]
    ranking = fused_ranking([THREE, TWO], scores, 3)
    assert ranking.documents.tolist() == [[7, 2, 4], [5, 6, -1]]
    assert ranking.scores.tolist() == [[2.0, 2.0, 1.0], [0.5, 0.5, -math.inf]]


@pytest.fixture
def many() -> tuple[DocumentIndex, BM25, torch.Tensor, list[str]]:
    """400 documents, the last three without text, and 20 queries."""
    rng = np.random.default_rng(0)

    def texts(count: int, length: int) -> list[str]:
        return [" ".join(rng.choice(list("abcdefghklmno"), length)) for _ in range(count)]

    def vectors(count: int) -> torch.Tensor:
        drawn = torch.from_numpy(rng.normal(size=(count, 8))).float()
        return torch.nn.functional.normalize(drawn)

    documents, embeddings = [*texts(397, 4), "", "", ""], vectors(400)
    embeddings[-3:] = 0
    ids = [f"{row:03}" for row in range(400)]
    return DocumentIndex(ids, embeddings), BM25.of(ids, documents), vectors(20), texts(20, 3)


def fused(many, k):
    index, bm25, queries, texts = many
    return hybrid_ranking(index, bm25, partial(rank, index), queries, texts, k, 0.5)


def test_the_order_does_not_depend_on_how_many_are_wanted(many):
    scores, documents = fused(many, 1000)
    assert all(sorted(row) == list(range(400)) for row in documents.tolist())
    assert sorted(documents[0, -3:].tolist()) == [397, 398, 399]
    assert (scores.diff(dim=1) <= 0).all()
    for k in (1, 10, 100, 150, 250):
        found = fused(many, k)
        assert torch.equal(found.documents, documents[:, :k])
        assert torch.equal(found.scores, scores[:, :k])


def test_documents_without_text_change_nothing(many):
    index, _, queries, texts = many
    found = []
    for rows in (torch.arange(30), torch.cat([torch.arange(30), torch.arange(397, 400)])):
        ids = [index.doc_ids[row] for row in rows]
        chosen = BM25.of(ids, ["a b" if row < 397 else "" for row in rows])
        part = DocumentIndex(ids, index.vectors[rows])
        found.append(fused((part, chosen, queries, texts), 30).documents)
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("relevant", "dense", "lexical", "weight"),
    [
        # Standardised scores are -1 and 1: d3 comes first where its ranker weighs at least half,
        # of equal ones d3 first.
        ("d3", [0.9, 0.1], [1.0, 2.0], 0.5),
        ("d3", [0.1, 0.9], [2.0, 1.0], 0.5),
        # d2 second of equal ones: more than half is needed, and .6 is the nearest.
        ("d2", [0.1, 0.9], [2.0, 1.0], 0.6),
        ("d2", [0.9, 0.1], [1.0, 2.0], 0.4),
        (None, [0.9, 0.1], [1.0, 2.0], 0.5),
    ],
)
def test_the_weight_with_the_best_ndcg_is_chosen(both, relevant, dense, lexical, weight):
    queries = QuerySet(("a",), ("text",), ({relevant: 1},)) if relevant else QuerySet((), (), ())
    candidates = Candidates(np.array([0, 1]), np.array(dense), np.array(lexical))
    assert best_weight(both[0], queries, [candidates]) == weight
