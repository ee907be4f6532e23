import math
from functools import partial

import numpy as np
import pytest
import torch

from maw_gym.corpora.collection import QuerySet
from maw_gym.errors import DamagedFileError
from maw_gym.retrieval.bm25 import (
    BM25,
    Candidates,
    best_weight,
    fused_ranking,
    hybrid_ranking,
    reciprocal_ranks,
    scored_candidates,
    standardised,
    weighted_sum,
)
from maw_gym.retrieval.documents import DocumentIndex
from maw_gym.retrieval.search import rank


def index_of(*texts):
    return BM25.of([f"d{row}" for row in range(len(texts))], iter(texts))


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
    # A word counts as often as the query has it.
    assert index.scores("wing wings") == pytest.approx(2 * index.scores("wing"))
    assert index.scores("jet tail") == pytest.approx(index.scores("jet") + index.scores("tail"))


@pytest.mark.parametrize(
    ("texts", "queries", "k", "found"),
    [
        # Equal scores take trec_eval's order at the cut too: ids descending.
        (["jet", *["wing"] * 6, "wing wing"], ["wing"], 4, [[7, 6, 5, 4]]),
        (["wing", "", "the"], ["", "the", "jet", "wing"], 5, [[-1] * 3] * 3 + [[0, -1, -1]]),
        (["", "the"], ["wing"], 5, [[-1, -1]]),
    ],
)
def test_rankings_by_hand(texts, queries, k, found):
    assert index_of(*texts).rank(queries, k).documents.tolist() == found


def test_an_index_without_a_word_is_saved_and_read(tmp_path):
    index_of("", "the").save(tmp_path)
    assert BM25.load(tmp_path, ["a", "b"]).scores("wing the").tolist() == [0, 0]
    with pytest.raises(DamagedFileError, match="1 document ids for 2 texts"):
        BM25.load(tmp_path, ["a"])


# d0 to d3 in trec_eval's order of equal scores: ids descending.
IDS = ("d3", "d2", "d1", "d0")
TEXTS = ("wing", "wing jet", "tail", "rudder")
VECTORS = torch.tensor([[0.6, 0.8], [0.8, 0.6], [1.0, 0.0], [0.0, 1.0]])


@pytest.fixture
def both():
    return DocumentIndex(IDS, VECTORS), BM25.of(IDS, TEXTS)


@pytest.mark.parametrize(
    ("texts", "lists", "k", "own", "documents", "dense"),
    [
        # By cosine d1, by BM25 d3, whose text is shorter than d2's; then d0 alone.
        (["wing", "nothing"], [[2, -1], [3, -1]], 1, None, [[0, 2], [3]], [[0.6, 1.0], [1.0]]),
        # They may be given.
        (["jet", "wing"], [[3, 1, 3], []], 0, None, [[1, 3], []], [[0.8, 0.0], []]),
        # Of "wing jet" BM25 finds d2, and d3 no more, which is the query; of "tail" d1.
        (["wing jet", "tail"], [[2, 0], [3, -1]], 2, [0, -1], [[1, 2], [2, 3]], [[0.8, 1], [0, 1]]),
    ],
)
def test_candidates_of_both_rankings_in_tie_order(both, texts, lists, k, own, documents, dense):
    lists, own = [np.array(one, int) for one in lists], own and np.array(own)
    found = scored_candidates(*both, torch.eye(2), texts, lists, k, own)
    assert [one.documents.tolist() for one in found] == documents
    assert [one.dense.tolist() for one in found] == [pytest.approx(one) for one in dense]
    for one, text in zip(found, texts, strict=True):
        assert one.lexical.tolist() == both[1].scores(text)[one.documents].tolist()


THREE = Candidates(np.array([4, 7, 2]), np.array([0.1, 0.5, 0.3]), np.array([8.0, 0.0, 4.0]))
TWO = Candidates(np.array([5, 6]), np.array([0.2, 0.2]), np.array([0.0, 3.0]))


def test_fusion_by_hand():
    assert standardised(np.array([0.1, 0.1, 0.1])).tolist() == [0, 0, 0]
    assert standardised(np.array([])).tolist() == []
    # Standardised: cosines -z, z, 0 and BM25 z, -z, 0 with z = sqrt(3 / 2); then 0, 0 and -1, 1.
    z = math.sqrt(1.5)
    assert weighted_sum(THREE, 0.75) == pytest.approx([-0.5 * z, 0.5 * z, 0])
    assert weighted_sum(TWO, 0.75).tolist() == [-0.25, 0.25]
    assert weighted_sum(TWO, 1).tolist() == [0, 0]
    # Cosines 3rd, 1st, 2nd and BM25 1st, not at all, 2nd. Then equal cosines in the order of the
    # documents: 1st, 2nd, and BM25 not at all, 1st.
    assert reciprocal_ranks(THREE) == pytest.approx([1 / 63 + 1 / 61, 1 / 61, 2 / 62])
    assert reciprocal_ranks(TWO) == pytest.approx([1 / 61, 1 / 62 + 1 / 61])
    # Equal fused scores keep the order of ties.
    scores = [np.array([1.0, 2.0, 2.0]), np.array([0.5, 0.5])]
    ranking = fused_ranking([THREE, TWO], scores, 3)
    assert ranking.documents.tolist() == [[7, 2, 4], [5, 6, -1]]
    assert ranking.scores.tolist() == [[2.0, 2.0, 1.0], [0.5, 0.5, -math.inf]]


def test_the_order_depends_neither_on_k_nor_on_documents_without_text():
    rng = np.random.default_rng(0)

    def drawn(count, length):
        vectors = torch.from_numpy(rng.normal(size=(count, 8))).float()
        texts = [" ".join(rng.choice(list("bcdefghklmno"), length)) for _ in range(count)]
        return torch.nn.functional.normalize(vectors), texts

    (vectors, texts), (queries, asked) = drawn(400, 4), drawn(20, 3)
    vectors[-3:], texts[-3:] = 0, ["", "", ""]

    def fused(k, rows, texts, asked):
        ids = [f"{row:03}" for row in rows]
        index = DocumentIndex(ids, vectors[list(rows)])
        search = partial(rank, index)
        return hybrid_ranking(index, BM25.of(ids, texts), search, queries, asked, k, 0.5)

    scores, documents = fused(1000, range(400), texts, asked)
    assert all(sorted(row) == list(range(400)) for row in documents.tolist())
    assert sorted(documents[0, -3:].tolist()) == [397, 398, 399]
    assert (scores.diff(dim=1) <= 0).all()
    for k in (1, 10, 100, 150, 250):
        found = fused(k, range(400), texts, asked)
        assert torch.equal(found.documents, documents[:, :k])
        assert torch.equal(found.scores, scores[:, :k])
    # Words as rare as each other, so that BM25 has the same scores up to a factor.
    texts, asked = ["b", "c"] * 15, ["b", "c"] * 10
    alone = fused(30, range(30), texts, asked)
    beside = fused(30, [*range(30), 397, 398, 399], [*texts, "", "", ""], asked)
    assert torch.equal(alone.documents, beside.documents)


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
