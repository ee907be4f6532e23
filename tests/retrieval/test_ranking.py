"""How good rankings through depths are, and what they look like, worked out by hand."""

import math

import numpy as np
import pytest
import pytrec_eval
import torch
from lattice import Lattice

from maw_gym.errors import InputError
from maw_gym.retrieval import ranking
from maw_gym.retrieval.documents import DocumentIndex, Relevant
from maw_gym.retrieval.ranking import STATISTICS, ranking_statistics, rankings_of_depths
from maw_gym.retrieval.search import rank


def judged(**grades):
    documents = np.array([int(name[1:]) for name in grades], int)
    return Relevant(documents, np.array(list(grades.values()), np.float32))


def axes(*ids):
    """Documents whose cosines with a query are the query's numbers."""
    return DocumentIndex(ids, torch.eye(len(ids)))


def trec_ndcg(scores, doc_ids, relevant, ids):
    """nDCG@10 of one ranking, from raw scores, by trec_eval itself."""
    grades = {ids[d]: int(g) for d, g in zip(relevant.documents, relevant.grades, strict=True)}
    evaluator = pytrec_eval.RelevanceEvaluator({"q": grades}, ["ndcg_cut_10"])
    run = {"q": dict(zip(doc_ids, map(float, scores), strict=True))}
    return evaluator.evaluate(run).get("q", {"ndcg_cut_10": 0.0})["ndcg_cut_10"]


def test_ndcg_by_hand():
    # The last depth has ties, of which the larger id goes first: 0, 1, 2, 3.
    depths = [[0.9, 0.8, 0.7, 0.6], [0.6, 0.7, 0.8, 0.9], [0.9, 0.9, 0.1, 0.1]]
    index, relevant = axes("d", "c", "b", "a"), [judged(d1=2, d3=1)]
    # The ideal is 2 + 1 / log2(3) = 2.63093. Grade 2 at rank 2 and 1 at rank 4:
    # (2 / log2(3) + 1 / log2(5)) / 2.63093; then 1 at rank 1 and 2 at rank 3: 2 / 2.63093.
    ndcg = rankings_of_depths(index, torch.tensor([depths]), relevant).ndcg
    assert ndcg.tolist()[0] == pytest.approx([0.64332, 0.76019, 0.64332], abs=1e-5)
    # The ideal counts relevant documents that are no candidates: only the second is found.
    ndcg = rankings_of_depths(index, torch.tensor([depths]), relevant, [np.array([3, 0])]).ndcg
    first, second = 1 / 2.63093, 1 / math.log2(3) / 2.63093
    assert ndcg.tolist()[0] == pytest.approx([second, first, second], abs=1e-5)
    # The first ten count alone, and a perfect ranking is exactly 1.
    index = axes(*(f"{n:02}" for n in range(20)))
    queries = torch.arange(20, 0, -1.0).expand(4, 1, 20)
    relevant = [judged(d9=1), judged(d10=1), judged(d0=1, d1=1, d2=1), judged()]
    found = rankings_of_depths(index, queries, relevant).ndcg[:, 0].tolist()
    assert found == [pytest.approx(1 / math.log2(11), abs=1e-7), 0, 1, 0]
    assert rankings_of_depths(index, torch.zeros(0, 3, 20), []).ndcg.shape == (0, 3)
    with pytest.raises(InputError, match="query embeddings must be finite"):
        rankings_of_depths(index, queries * math.nan, relevant)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("whole", [True, False])
def test_alignment_is_trec_evals_under_ties_and_grades(seed, whole):
    data = Lattice(seed)
    queries = torch.from_numpy(data.queries)
    lists = None if whole else data.lists
    ndcg, listwise, _ = rankings_of_depths(data.index, queries, data.relevant, lists)
    alone = rankings_of_depths(data.index, queries, data.relevant, lists, observe=False)
    assert torch.equal(alone.ndcg, ndcg)
    assert torch.equal(alone.listwise, listwise)
    assert alone.statistics.shape == (12, 0)
    for row, relevant in enumerate(data.relevant):
        listed = np.arange(83) if whole else data.lists[row]
        ids = [data.ids[d] for d in listed]
        hit = np.isin(listed, relevant.documents)
        for depth in range(queries.shape[1]):
            scores = data.scores[row, depth, listed]
            expected = trec_ndcg(scores, ids, relevant, data.ids)
            assert ndcg[row, depth].item() == pytest.approx(expected, abs=1e-6)
            weights = np.exp(scores.astype(np.float64) / 0.05)
            mass = weights[hit].sum() / weights.sum() if len(listed) else 0
            assert listwise[row, depth].item() == pytest.approx(mass, abs=1e-5)
    assert 0.05 < ndcg.mean() < 0.95


@pytest.mark.parametrize(("levels", "apart"), [(0.5, 0.5), (100, 0.0), (100, 10.0), (10**6, 0.1)])
def test_the_shared_look_at_all_depths_finds_what_looking_at_each_does(levels, apart, monkeypatch):
    """Depths that are the same, alike and quite different; with many ties, some and hardly any."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(70, 1, 1100, generator=generator).expand(-1, 32, -1)  # several blocks
    queries = queries + apart * torch.randn(70, 32, 1100, generator=generator)
    queries = (queries * levels).round() / (levels * 100 * (1 + apart))  # cosines below 1
    index = axes(*map(str, torch.randperm(1100, generator=generator).tolist()))
    relevant = [judged(**{f"d{d}": 1 for d in range(row, 1100, 9)}) for row in range(70)]
    found = rankings_of_depths(index, queries, relevant)
    # All documents as candidates are the whole collection.
    listed = rankings_of_depths(index, queries[:3], relevant[:3], [np.arange(1100)] * 3)
    monkeypatch.setattr(ranking, "SHARED", 1100)
    each = rankings_of_depths(index, queries, relevant)
    for one, other, candidates in zip(found, each, listed, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(candidates, one[:3], rtol=1e-5, atol=1e-5)


FALLING, TWELVE = [(9 - row) / 10 for row in range(12)], list(range(12))  # .9, .8, ..., -.2


def entropy(weights):
    shares = [weight / sum(weights) for weight in weights]
    return -sum(share * math.log(share) for share in shares) / math.log(len(shares))


def falling_weights(count):
    return [math.exp(-2 * row) for row in range(count)]  # of cosines .1 apart, over .05


ALONE, TWO = [0.5, 0.4, 0.3], entropy([1, math.exp(-12)])


@pytest.mark.parametrize(
    ("scores", "documents", "of_mean", "expected"),
    [
        (  # twelve documents through two depths
            [FALLING, [0.5] * 12],
            [TWELVE, TWELVE[::-1]],
            [0, 11, 2, 3, 4, 5, 6, 7, 20, 21],
            [
                *([0.9, 0.5], [0.1, 0], [0.9, 0]),
                # Of .9 to 0 mean .45 and variance .0825; of .9 to -.2 they are .35, 1.43 / 12.
                *([0.45, 0.5], [math.sqrt(0.0825), 0], [entropy(falling_weights(10)), 1]),
                *([0.35, 0.5], [math.sqrt(1.43 / 12), 0], [entropy(falling_weights(12)), 1]),
                # Of 0..9 the mean has 0, 2, 3, 4, 5, 6, 7; of 11..2 it has 11, 2, 3, 4, 5, 6, 7.
                *([0.7, 0.7], [0.5, 0.5]),
            ],
        ),
        (  # one document through three
            *([[0.5], [0.4], [0.3]], [[7], [8], [7]], [7]),
            [ALONE, 0, 0, ALONE, 0, 0, ALONE, 0, 0, [1, 0, 1], [2 / 3, 1 / 3, 2 / 3]],
        ),
        (  # two documents, or none, then places as candidate lists and empty documents leave them
            [[0.8, 0.2, -2.0, -math.inf], [-2.0, -math.inf, -2.0, -math.inf]],
            *([[3, 1, 0, 2]] * 2, [1, 3, 0, 2]),
            np.outer([0.8, 0.6, 0.6, 0.5, 0.3, TWO, 0.5, 0.3, TWO, 1, 1], [1, 0]),
        ),
    ],
)
def test_statistics_by_hand(scores, documents, of_mean, expected):
    numbers = ranking_statistics(*(torch.tensor([one]) for one in (scores, documents, of_mean)))
    assert numbers.dtype == torch.float32
    found = numbers.view(11, len(scores)).tolist()
    for name, values, one in zip(STATISTICS, found, expected, strict=True):
        assert values == pytest.approx(np.broadcast_to(one, len(scores)), abs=1e-6), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_gives_the_same():
    data = Lattice(6)
    queries = torch.from_numpy(data.queries)
    index = DocumentIndex(data.ids, torch.from_numpy(data.docs), "cuda")
    for lists in (None, data.lists):
        here = rankings_of_depths(data.index, queries, data.relevant, lists)
        there = rankings_of_depths(index, queries, data.relevant, lists)
        torch.testing.assert_close(there.ndcg.cpu(), here.ndcg)
        torch.testing.assert_close(there.listwise.cpu(), here.listwise)
        ranked = [rank(one, queries[:, 0], 20, lists).documents for one in (data.index, index)]
        assert torch.equal(ranked[0], ranked[1].cpu())
