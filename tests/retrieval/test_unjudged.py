"""What rankings look like, worked out by hand."""

import math

import numpy as np
import pytest
import torch
from lattice import Lattice

from maw_gym.retrieval.documents import DocumentIndex
from maw_gym.retrieval.ranking import (
    STATISTICS,
    alignment_of_depths,
    ranking_statistics,
    rankings_of_depths,
)


def statistics(scores, documents, of_mean):
    """By name, the values of the D depths of one query."""
    numbers = ranking_statistics(
        torch.tensor([scores]), torch.tensor([documents]), torch.tensor([of_mean])
    )
    depths = len(scores)
    assert numbers.shape == (1, 11 * depths)
    assert numbers.dtype == torch.float32
    return dict(zip(STATISTICS, numbers.view(11, depths).tolist(), strict=True))


def test_twelve_documents_through_two_depths():
    # .9, .8, ..., -.2; and twelve times .5.
    falling = [(9 - row) / 10 for row in range(12)]
    scores = [falling, [0.5] * 12]
    documents = [list(range(12)), list(range(12))[::-1]]
    found = statistics(scores, documents, [0, 11, 2, 3, 4, 5, 6, 7, 20, 21])
    assert found["first"] == pytest.approx([0.9, 0.5])
    assert found["gap to the second"] == pytest.approx([0.1, 0], abs=1e-7)
    assert found["gap to the tenth"] == pytest.approx([0.9, 0], abs=1e-7)
    # Of .9 to 0 the mean is .45 and the variance .0825; of .9 to -.2 they are .35 and 1.43 / 12.
    assert found["mean of ten"] == pytest.approx([0.45, 0.5])
    assert found["spread of ten"] == pytest.approx([math.sqrt(0.0825), 0], abs=1e-6)
    assert found["mean of fifty"] == pytest.approx([0.35, 0.5])
    assert found["spread of fifty"] == pytest.approx([math.sqrt(1.43 / 12), 0], abs=1e-6)
    # Weights exp(-2 r): a geometric distribution, nearly. All equal: as many as there are.
    weights = [math.exp(-2 * row) for row in range(12)]
    for name, count in (("entropy of ten", 10), ("entropy of fifty", 12)):
        shares = [weight / sum(weights[:count]) for weight in weights[:count]]
        entropy = -sum(share * math.log(share) for share in shares) / math.log(count)
        assert found[name] == pytest.approx([entropy, 1], abs=1e-6)
    # Of 0..9 the mean has 0, 2, 3, 4, 5, 6, 7; of 11..2 it has 11, 2, 3, 4, 5, 6, 7.
    assert found["overlap with the mean"] == pytest.approx([0.7, 0.7])
    assert found["same first"] == [0.5, 0.5]


def test_the_share_of_depths_with_the_same_first():
    found = statistics([[0.5], [0.4], [0.3]], [[7], [8], [7]], [7])
    assert found["same first"] == pytest.approx([2 / 3, 1 / 3, 2 / 3])
    assert found["overlap with the mean"] == [1, 0, 1]


def test_few_documents_and_none():
    # Two documents, then places of none, as candidate lists and empty documents leave them.
    absent = [-2.0, -math.inf]
    found = statistics([[0.8, 0.2, *absent], [*absent, *absent]], [[3, 1, 0, 2]] * 2, [1, 3, 0, 2])
    assert found["first"] == pytest.approx([0.8, 0])
    assert found["gap to the second"] == pytest.approx([0.6, 0])
    assert found["gap to the tenth"] == pytest.approx([0.6, 0])
    assert found["mean of ten"] == pytest.approx([0.5, 0])
    assert found["spread of ten"] == pytest.approx([0.3, 0])
    second = 1 / (1 + math.exp(12))  # .6 / .05
    entropy = -(second * math.log(second) + (1 - second) * math.log(1 - second)) / math.log(2)
    assert found["entropy of ten"] == pytest.approx([entropy, 0], abs=1e-7)
    assert found["overlap with the mean"] == [1, 0]
    assert found["same first"] == [1, 0]
    alone = statistics([[0.4]], [[5]], [5])
    names = ("gap to the second", "gap to the tenth", "spread of ten", "entropy of fifty")
    assert [alone[name] for name in names] == [[0]] * 4


def test_everything_lies_in_its_range_whatever_rounding_does():
    edge = 1 + 2e-7
    found = statistics([[edge, edge], [edge, -edge]], [[0, 1], [1, 0]], [0, 1])
    for name, (low, high) in STATISTICS.items():
        assert all(low <= value <= high for value in found[name]), name
    assert found["gap to the second"] == [0, 2]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("whole", [True, False])
def test_beside_the_alignment_that_it_leaves_alone(seed, whole):
    """Against sorting all scores, with their many ties; the alignment is the same to the bit."""
    data = Lattice(seed)
    queries = torch.from_numpy(data.queries)
    lists = None if whole else data.lists
    alignment = alignment_of_depths(data.index, queries, data.relevant, lists)
    again, observed = rankings_of_depths(data.index, queries, data.relevant, lists)
    assert torch.equal(alignment.ndcg, again.ndcg)
    assert torch.equal(alignment.listwise, again.listwise)
    depths = queries.shape[1]
    for row in range(len(queries)):
        listed = np.arange(len(data.ids)) if whole else np.unique(data.lists[row])
        tops, firsts = [], []
        for depth in range(depths):
            scores = data.scores[row, depth, listed]
            order = np.lexsort((data.index.tie_of[listed], -scores))
            order = order[scores[order] >= -1.001]
            tops.append(np.sort(scores[order])[::-1][:50])
            firsts.append(listed[order[0]] if len(order) else -1)
        numbers = observed[row].view(11, depths).numpy()
        for depth, top in enumerate(tops):
            if not len(top):
                assert not numbers[:, depth].any()
                continue
            assert numbers[0, depth] == pytest.approx(top[0], abs=1e-6)
            assert numbers[6, depth] == pytest.approx(top.mean(), abs=1e-5)
            assert numbers[10, depth] == pytest.approx(np.mean(np.array(firsts) == firsts[depth]))


def test_what_a_judgment_has_put_there_is_not_looked_at():
    index = DocumentIndex(["a", "b", "c"], torch.eye(3))
    queries = torch.tensor([[[0.6, 0.8, 0.0]]])
    relevant = index.relevant(_judged({"b": 1}))
    ranked, found = [np.array([0, 2, 1])], [np.array([0, 2])]
    alignment, observed = rankings_of_depths(index, queries, relevant, ranked, found)
    assert alignment.ndcg.tolist() == [[1.0]]
    assert observed[0, :2].tolist() == pytest.approx([0.6, 0.6])
    _, observed = rankings_of_depths(index, queries, relevant, ranked)
    assert observed[0, :2].tolist() == pytest.approx([0.8, 0.2])


def _judged(grades):
    from maw_gym.corpora.collection import QuerySet

    return QuerySet(("q",), ("",), (grades,))
