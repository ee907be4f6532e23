import math
from functools import partial

import numpy as np
import pytest
import torch

from maw_gym.corpora.collection import QuerySet
from maw_gym.retrieval.bm25 import BM25
from maw_gym.retrieval.documents import DocumentIndex
from maw_gym.retrieval.hybrid import (
    Candidates,
    best_weight,
    fused_ranking,
    hybrid_ranking,
    reciprocal_ranks,
    scored_candidates,
    standardised,
    weighted_sum,
)
from maw_gym.retrieval.search import rank

INF = math.inf
# d0 to d3 in trec_eval's order of equal scores: ids descending.
IDS = ("d3", "d2", "d1", "d0")
TEXTS = ("wing", "wing jet", "tail", "rudder")
EMBEDDINGS = torch.tensor([[0.6, 0.8], [0.8, 0.6], [1.0, 0.0], [0.0, 1.0]])


@pytest.fixture
def index() -> DocumentIndex:
    return DocumentIndex(IDS, EMBEDDINGS)


@pytest.fixture
def bm25() -> BM25:
    return BM25.of(IDS, TEXTS)


def test_candidates_are_the_best_of_both_rankings_in_tie_order(index, bm25):
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    by_cosine = [np.array([2, -1]), np.array([3, -1])]
    found = scored_candidates(index, bm25, query, ["wing", "nothing"], by_cosine, k=1)
    # By cosine d1, by BM25 d3, whose text is shorter than d2's; then d0 alone.
    assert found.documents.tolist() == [[0, 2], [3, -1]]
    assert found.dense.tolist() == [[pytest.approx(0.6), 1.0], [1.0, -INF]]
    assert found.lexical.tolist() == [[float(bm25.scores("wing")[0]), 0.0], [0.0, -INF]]


def test_candidates_may_be_given(index, bm25):
    lists = [np.array([3, 1, 3]), np.array([], np.int64)]
    found = scored_candidates(index, bm25, torch.eye(2), ["jet", "wing"], lists, k=0)
    assert found.documents.tolist() == [[1, 3], [-1, -1]]
    assert found.dense.tolist() == [[pytest.approx(0.8), 0.0], [-INF, -INF]]


def test_standardised_by_hand():
    scores = np.array([[1.0, 3.0, -INF, 5.0], [0.1, 0.1, 0.1, -INF], [-INF] * 4])
    # mean 3, deviation sqrt(8 / 3)
    z = 2 / math.sqrt(8 / 3)
    assert standardised(scores).tolist() == [
        [pytest.approx(-z), 0, -INF, pytest.approx(z)],
        [0, 0, 0, -INF],
        [-INF] * 4,
    ]


CANDIDATES = Candidates(
    np.array([[4, 7, 2], [5, 6, -1]]),
    np.array([[0.1, 0.5, 0.3], [0.2, 0.2, -INF]]),
    np.array([[8.0, 0.0, 4.0], [0.0, 3.0, -INF]]),
)


def test_weighted_sum_by_hand():
    # Standardised: cosines -z, z, 0 and BM25 z, -z, 0 with z = sqrt(3 / 2); then 0, 0 and -1, 1.
    z = math.sqrt(1.5)
    assert weighted_sum(CANDIDATES, 0.75).tolist() == [
        [pytest.approx(-0.5 * z), pytest.approx(0.5 * z), pytest.approx(0)],
        [-0.25, 0.25, -INF],
    ]
    assert weighted_sum(CANDIDATES, 1)[1].tolist() == [0, 0, -INF]
    with pytest.raises(ValueError, match=r"a weight in \[0, 1\], got 60"):
        weighted_sum(CANDIDATES, 60)


def test_reciprocal_ranks_by_hand():
    # Cosines 3rd, 1st, 2nd and BM25 1st, not at all, 2nd. Then equal cosines in the order of the
    # columns: 1st, 2nd, and BM25 not at all, 1st.
    assert reciprocal_ranks(CANDIDATES).tolist() == [
        [pytest.approx(1 / 63 + 1 / 61), pytest.approx(1 / 61), pytest.approx(2 / 62)],
        [pytest.approx(1 / 61), pytest.approx(1 / 62 + 1 / 61), -INF],
    ]
    assert reciprocal_ranks(CANDIDATES, constant=0)[0, 2] == 1


def test_equal_fused_scores_keep_the_order_of_ties():
    ranking = fused_ranking(CANDIDATES, np.array([[1.0, 2.0, 2.0], [0.5, 0.5, -INF]]), 2)
    assert ranking.documents.tolist() == [[7, 2], [5, 6]]
    assert ranking.scores.tolist() == [[2.0, 2.0], [0.5, 0.5]]


@pytest.fixture
def many() -> tuple[DocumentIndex, BM25, torch.Tensor, list[str]]:
    """400 documents, the last three without text, and 20 queries."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdefghklmno"), 4)) for _ in range(400)]
    vectors = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(400, 8))).float())
    texts[-3:], vectors[-3:] = [""] * 3, 0
    ids = [f"{row:03}" for row in range(400)]
    queries = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(20, 8))).float())
    asked = [" ".join(rng.choice(list("abcdefghklmno"), 3)) for _ in range(20)]
    return DocumentIndex(ids, vectors), BM25.of(ids, texts), queries, asked


def fused(many, k):
    index, bm25, queries, texts = many
    return hybrid_ranking(index, bm25, partial(rank, index), queries, texts, k, 0.5)


def test_the_order_does_not_depend_on_how_many_are_wanted(many):
    scores, documents = fused(many, 1000)
    assert all(sorted(row) == list(range(400)) for row in documents.tolist())
    assert (scores.diff(dim=1) <= 0).all()
    for k in (1, 10, 100, 150, 250):
        found = fused(many, k)
        assert torch.equal(found.documents, documents[:, :k])
        assert torch.equal(found.scores, scores[:, :k])


def test_documents_without_text_are_last_and_change_nothing(many):
    index, _, queries, texts = many
    documents = fused(many, 1000).documents
    assert sorted(documents[0, -3:].tolist()) == [397, 398, 399]
    some = torch.arange(30), torch.cat([torch.arange(30), torch.arange(397, 400)])
    found = []
    for rows in some:
        ids = [index.doc_ids[row] for row in rows]
        chosen = BM25.of(ids, ["a b" if row < 397 else "" for row in rows])
        part = DocumentIndex(ids, index.vectors[rows])
        found.append(fused((part, chosen, queries, texts), 30).documents)
    assert torch.equal(*found)


def test_a_query_that_is_a_document_is_no_candidate(index, bm25):
    lists = [np.array([2, 0]), np.array([3, -1])]
    own = np.array([0, -1])
    found = scored_candidates(index, bm25, torch.eye(2), ["wing jet", "tail"], lists, 2, own)
    # Of "wing jet" BM25 finds d2, and d3 no more, which is the query; of "tail" d1.
    assert found.documents.tolist() == [[1, 2], [2, 3]]


def test_the_weight_with_the_best_ndcg_is_chosen(index):
    queries = QuerySet(("a",), ("text",), ({"d3": 1},))

    def candidates(dense, lexical):
        return Candidates(np.array([[0, 1]]), np.array([dense]), np.array([lexical]))

    # Standardised scores are -1 and 1: d3 comes first where its ranker weighs at least half, of
    # equal ones d3 first.
    assert best_weight(index, queries, candidates([0.9, 0.1], [1.0, 2.0])) == 0.5
    assert best_weight(index, queries, candidates([0.1, 0.9], [2.0, 1.0])) == 0.5
    # d2 first in equal ones: more than half is needed, and .6 is the nearest.
    other = QuerySet(("a",), ("text",), ({"d2": 1},))
    assert best_weight(index, other, candidates([0.1, 0.9], [2.0, 1.0])) == 0.6
    assert best_weight(index, other, candidates([0.9, 0.1], [1.0, 2.0])) == 0.4
    nobody = QuerySet((), (), ())
    assert best_weight(index, nobody, candidates([0.9, 0.1], [1.0, 2.0])) == 0.5
