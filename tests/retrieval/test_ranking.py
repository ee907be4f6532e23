import math

import numpy as np
import pytest
import pytrec_eval
import torch
from lattice import Lattice

import maw_gym.retrieval.ranking
from maw_gym.corpora.collection import QuerySet
from maw_gym.retrieval.documents import (
    DocumentIndex,
    Relevant,
    trec_order,
)
from maw_gym.retrieval.ranking import (
    _top,
    alignment_of_depths,
    ideal_dcg,
    listwise_of_scores,
    ndcg_of_scores,
    top_in_tie_order,
)
from maw_gym.retrieval.search import rank


def judged(**grades):
    return Relevant(
        np.array([int(name[1:]) for name in grades]), np.array(list(grades.values()), np.float32)
    )


def trec_ndcg(scores, doc_ids, relevant):
    """nDCG@10 of one ranking, from raw scores, by trec_eval itself."""
    grades = {doc_ids[d]: int(g) for d, g in zip(relevant.documents, relevant.grades, strict=True)}
    evaluator = pytrec_eval.RelevanceEvaluator({"q": grades}, ["ndcg_cut_10"])
    run = {"q": dict(zip(doc_ids, map(float, scores), strict=True))}
    return evaluator.evaluate(run)["q"]["ndcg_cut_10"]


def test_trec_order_is_descending_by_utf8_bytes():
    assert trec_order(["d1", "Z", "d10", "é", "d2", "d"]).tolist() == [3, 4, 2, 0, 5, 1]


def test_top_breaks_ties_inside_and_across_the_cut():
    scores = torch.tensor([[1.0, 3.0, 1.0, 1.0, 2.0], [5.0, 4.0, 3.0, 2.0, 1.0], [0.0] * 5])
    tie_rank = torch.tensor([4, 0, 3, 1, 2])
    values, columns = top_in_tie_order(scores, tie_rank, 3)
    assert values.tolist() == [[3, 2, 1], [5, 4, 3], [0, 0, 0]]
    assert columns.tolist() == [[1, 4, 3], [0, 1, 2], [1, 3, 4]]
    values, columns = top_in_tie_order(scores, tie_rank, 9)
    assert columns.tolist() == [[1, 4, 3, 2, 0], [0, 1, 2, 3, 4], [1, 3, 4, 2, 0]]


@pytest.mark.parametrize("apart", [0.0, 0.1, 10.0])
@pytest.mark.parametrize("levels", [3, 200, 10**6])
def test_the_top_of_many_depths_is_that_of_sorting_each(monkeypatch, apart, levels):
    """Depths that are the same, alike and quite different; with many ties, some and hardly any."""
    monkeypatch.setattr(maw_gym.retrieval.ranking, "SHARED", 60)
    generator = torch.Generator().manual_seed(levels)
    scores = torch.randn(3, 1, 500, generator=generator)
    scores = ((scores + apart * torch.randn(3, 6, 500, generator=generator)) * levels).round()
    scores[0, 0] = -torch.inf
    scores[1, :, 40:] = -torch.inf
    tie_rank = torch.randperm(500, generator=generator)
    by_tie = tie_rank.argsort()
    expected = scores[..., by_tie].sort(dim=-1, descending=True, stable=True)
    for k in (1, 10, 50):
        values, columns = _top(scores, tie_rank, k)
        assert torch.equal(values, expected.values[..., :k])
        there = values > -torch.inf
        assert torch.equal(columns[there], by_tie[expected.indices[..., :k]][there])


def test_ndcg_by_hand():
    scores = torch.tensor([[[0.9, 0.8, 0.7, 0.6], [0.6, 0.7, 0.8, 0.9], [0.9, 0.9, 0.1, 0.1]]])
    gains = torch.tensor([[0.0, 2.0, 0.0, 1.0]])
    ideal = ideal_dcg(np.array([1, 2], np.float32))
    assert ideal == pytest.approx(2 + 1 / math.log2(3), abs=1e-12)  # 2.63093
    ndcg = ndcg_of_scores(scores, torch.tensor([0, 1, 2, 3]), gains, [ideal])
    # depth 0: grade 2 at rank 2, grade 1 at rank 4; depth 1: grade 1 first, grade 2 third;
    # depth 2: columns 0, 1, 2, 3 by tie rank, as depth 0
    first = (2 / math.log2(3) + 1 / math.log2(5)) / ideal  # .64332
    second = (1 + 2 / 2) / ideal  # .76019
    assert ndcg.tolist()[0] == pytest.approx([first, second, first], abs=1e-6)
    assert first == pytest.approx(0.64332, abs=1e-5)
    assert second == pytest.approx(0.76019, abs=1e-5)


def test_ndcg_counts_the_first_ten_only_and_a_perfect_ranking_is_exactly_one():
    scores = torch.arange(20, 0, -1.0).expand(1, 1, 20)
    ties = torch.arange(20)
    gains = torch.zeros(3, 20)
    gains[0, 9] = gains[1, 10] = gains[2, :3] = 1
    tenth, eleventh, perfect = (
        ndcg_of_scores(scores, ties, row[None], [ideal_dcg(row.numpy())]).item() for row in gains
    )
    assert tenth == pytest.approx(1 / math.log2(11), abs=1e-7)
    assert eleventh == 0
    assert perfect == 1
    assert ndcg_of_scores(scores, ties, torch.zeros(1, 20), [0.0]).item() == 0


def test_listwise_by_hand():
    scores = torch.tensor([[[1.0, 0.0, -torch.inf], [0.0, 1.0, -torch.inf], [-torch.inf] * 3]])
    mass = listwise_of_scores(scores, torch.tensor([[True, False, False]]), 1.0)
    # e / (e + 1) and 1 / (e + 1); no candidate at all has no mass
    assert mass.tolist()[0] == pytest.approx([0.7310586, 0.2689414, 0.0], abs=1e-6)


def test_listwise_survives_any_temperature():
    scores = torch.tensor([[[1.0, 0.5, -1.0]]])
    relevant = torch.tensor([[True, False, False]])
    assert listwise_of_scores(scores.clone(), relevant, 1e-4).item() == 1
    assert listwise_of_scores(scores.clone(), relevant, 1e6).item() == pytest.approx(1 / 3, 1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_ndcg_of_depths_is_trec_evals_under_ties_and_grades(seed):
    data = Lattice(seed)
    ndcg = alignment_of_depths(data.index, torch.from_numpy(data.queries), data.relevant).ndcg
    expected = [
        [trec_ndcg(scores, data.ids, relevant) for scores in of_query]
        for of_query, relevant in zip(data.scores, data.relevant, strict=True)
    ]
    np.testing.assert_allclose(ndcg.numpy(), expected, atol=1e-6)
    assert 0.05 < ndcg.mean() < 0.95


@pytest.mark.parametrize("seed", range(4))
def test_ndcg_of_candidate_lists_is_trec_evals(seed):
    data = Lattice(seed)
    queries = torch.from_numpy(data.queries)
    ndcg, listwise = alignment_of_depths(data.index, queries, data.relevant, data.lists)
    for row, (listed, relevant) in enumerate(zip(data.lists, data.relevant, strict=True)):
        ids = [data.ids[d] for d in listed]
        grades = dict(zip([data.ids[d] for d in relevant.documents], relevant.grades, strict=True))
        evaluator = pytrec_eval.RelevanceEvaluator(
            {"q": {name: int(grade) for name, grade in grades.items()}}, ["ndcg_cut_10"]
        )
        hit = np.isin(listed, relevant.documents)
        for depth in range(queries.shape[1]):
            scores = data.scores[row, depth, listed]
            run = {"q": dict(zip(ids, map(float, scores), strict=True))}
            got = evaluator.evaluate(run).get("q", {"ndcg_cut_10": 0.0})
            assert ndcg[row, depth].item() == pytest.approx(got["ndcg_cut_10"], abs=1e-6)
            weights = np.exp(scores.astype(np.float64) / 0.05)
            mass = weights[hit].sum() / weights.sum() if len(listed) else 0
            assert listwise[row, depth].item() == pytest.approx(mass, abs=1e-5)


def test_whole_collection_as_candidates_gives_the_same():
    data = Lattice(9)
    queries = torch.from_numpy(data.queries)
    whole = alignment_of_depths(data.index, queries, data.relevant)
    lists = [np.arange(len(data.ids))] * len(queries)
    listed = alignment_of_depths(data.index, queries, data.relevant, lists)
    assert torch.equal(whole.ndcg, listed.ndcg)
    torch.testing.assert_close(whole.listwise, listed.listwise)


def test_block_size_changes_nothing(monkeypatch):
    data = Lattice(3)
    queries = torch.from_numpy(data.queries)
    for lists in (None, data.lists):
        before = alignment_of_depths(data.index, queries, data.relevant, lists)
        with monkeypatch.context() as patch:
            patch.setattr(maw_gym.retrieval.ranking, "BLOCK_BYTES", 4000)
            after = alignment_of_depths(data.index, queries, data.relevant, lists)
        assert torch.equal(before.ndcg, after.ndcg)
        torch.testing.assert_close(before.listwise, after.listwise)


def test_empty_documents_rank_last_and_an_empty_query_ranks_by_id():
    docs = torch.tensor([[0.0, 0.0], [-1.0, 0.0], [-0.0, 0.0], [1.0, 0.0]])
    index = DocumentIndex(["d", "c", "b", "a"], docs)
    queries = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    for lists in (None, [np.arange(4)] * 2):
        scores, documents = rank(index, queries, 4, lists)
        assert documents.tolist() == [[3, 1, 0, 2], [1, 3, 0, 2]]
        assert scores.tolist() == [[1, -1, -2, -2], [0, 0, -2, -2]]
    ndcg, listwise = alignment_of_depths(index, queries[:, None], [judged(d0=1), judged(d3=1)])
    # the empty document is third, the other one second
    assert ndcg[:, 0].tolist() == pytest.approx([0.5, 1 / math.log2(3)])
    assert listwise[:, 0].tolist() == pytest.approx([0, 0.5], abs=1e-6)


def test_relevant_keeps_positive_grades_of_known_documents():
    index = DocumentIndex(["a", "b", "c"], torch.eye(3))
    queries = QuerySet(("q", "r"), ("", ""), ({"c": 2, "a": 0, "x": 1}, {"b": -1}))
    first, second = index.relevant(queries)
    assert first.documents.tolist() == [2]
    assert first.grades.tolist() == [2]
    assert second.documents.tolist() == []
    ndcg, listwise = alignment_of_depths(index, torch.eye(3)[:2, None], [first, second])
    # c ties with b for the second place, and goes first
    assert ndcg[:, 0].tolist() == pytest.approx([1 / math.log2(3), 0])
    assert listwise.tolist()[1] == [0]


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="2 ids for embeddings of shape"):
        DocumentIndex(["a", "b"], torch.eye(3))
    with pytest.raises(ValueError, match="given twice"):
        DocumentIndex(["a", "a"], torch.eye(2))
    with pytest.raises(ValueError, match="document embeddings must be finite"):
        DocumentIndex(["a", "b"], torch.tensor([[1.0], [torch.nan]]))
    index = DocumentIndex(["a", "b"], torch.eye(2))
    with pytest.raises(ValueError, match="query embeddings must be finite"):
        rank(index, torch.full((1, 2), torch.inf), 1)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        rank(index, torch.eye(2), 0)
    with pytest.raises(ValueError, match="1 lists of candidates for 2 queries"):
        rank(index, torch.eye(2), 1, [np.array([0])])
    with pytest.raises(ValueError, match="1 lists of candidates for 2 queries"):
        alignment_of_depths(index, torch.eye(2)[:, None], [judged()] * 2, [np.array([0])])
    with pytest.raises(ValueError, match="0 lists of relevant for 2 queries"):
        alignment_of_depths(index, torch.eye(2)[:, None], [])


def test_no_queries_give_empty_results():
    index = DocumentIndex(["a", "b"], torch.eye(2))
    assert rank(index, torch.zeros(0, 2), 2).documents.shape == (0, 2)
    assert alignment_of_depths(index, torch.zeros(0, 3, 2), []).ndcg.shape == (0, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_gives_the_same():
    data = Lattice(6)
    queries = torch.from_numpy(data.queries)
    index = DocumentIndex(data.ids, torch.from_numpy(data.docs), "cuda")
    for lists in (None, data.lists):
        here = alignment_of_depths(data.index, queries, data.relevant, lists)
        there = alignment_of_depths(index, queries, data.relevant, lists)
        torch.testing.assert_close(there.ndcg.cpu(), here.ndcg)
        torch.testing.assert_close(there.listwise.cpu(), here.listwise)
        expected = rank(data.index, queries[:, 0], 20, lists)
        assert torch.equal(
            rank(index, queries[:, 0], 20, lists).documents.cpu(), expected.documents
        )
