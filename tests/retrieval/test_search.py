import itertools
import math

import numpy as np
import pytest
import torch
from lattice import Lattice

from maw_gym.retrieval import search
from maw_gym.retrieval.documents import DocumentIndex
from maw_gym.retrieval.search import Ranking, merged, rank


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def random_index(documents, seed=0):
    """A tenth of the documents are equal to others or nearly so, some of them are zero."""
    vectors = unit(documents, 32, seed=seed)
    vectors[::20] = vectors[1]
    vectors[7::40] = vectors[1] + 1e-7
    vectors[13::70] = 0
    ids = np.random.default_rng(seed).permutation(documents)
    return DocumentIndex([str(number) for number in ids], vectors)


def by_definition(index, queries, k):
    """Everything scored in float64, everything sorted."""
    vectors = index.vectors[torch.from_numpy(index.first_of)].double()
    scores = (queries.double() @ vectors.T).float().numpy()
    scores[:, index.empty] = -2
    order = np.stack([np.lexsort((index.tie_of, -row)) for row in scores])[:, :k]
    return Ranking(np.take_along_axis(scores, order, 1), order)


@pytest.mark.parametrize("k", [1, 7, 83, 500])
def test_rank_is_by_score_then_id_descending(k):
    data = Lattice(5)
    queries = torch.from_numpy(data.queries[:, 0])
    scores, documents = rank(data.index, queries, k)
    listed_scores, listed = rank(data.index, queries, k, data.lists)
    width = min(k, 83)
    assert documents.shape == listed.shape == (12, width)
    for row in range(12):
        by_id = sorted(range(83), key=lambda d: data.ids[d], reverse=True)
        order = sorted(by_id, key=lambda d: -data.scores[row, 0, d])
        assert documents[row].tolist() == order[:width]
        assert scores[row].tolist() == [data.scores[row, 0, d] for d in order[:width]]
        inside = [d for d in order if d in data.lists[row]][:width]
        assert listed[row].tolist() == inside + [-1] * (width - len(inside))
        assert listed_scores[row, len(inside) :].tolist() == [-math.inf] * (width - len(inside))


def test_equal_documents_tie_exactly_wherever_they_stand():
    docs = unit(1003, 256)
    equal = torch.arange(3, 1003, 50)
    docs[equal] = docs[3].clone()
    index = DocumentIndex([f"{n:04}" for n in range(1003)], docs)
    query = torch.nn.functional.normalize(docs[3] + 0.01 * unit(7, 256, seed=1), dim=1)
    lists = [np.random.default_rng(row).permutation(1003)[:900] for row in range(7)]
    for candidates, k in ((None, 20), (lists, 10)):
        scores, documents = rank(index, query, k, candidates)
        for row in range(7):
            known = range(1003) if candidates is None else lists[row]
            assert documents[row].tolist() == [d for d in equal.tolist()[::-1] if d in known][:k]
            assert len(set(scores[row].tolist())) == 1


@pytest.mark.parametrize("k", [1, 10, 100, 5000])
def test_blocks_find_what_sorting_everything_finds(k):
    # 5000 documents are several blocks; every 20th ties for the first place of the first query
    index = random_index(5000)
    queries = torch.nn.functional.normalize(index.vectors[[1, 2, 3, 5]] + 0.2, dim=1)
    queries = torch.cat([queries, torch.zeros(1, 32)])  # ties with everything
    found, expected = rank(index, queries, k), by_definition(index, queries, k)
    assert found.documents.tolist() == expected.documents.tolist()
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=1e-6)


def test_parts_merge_to_the_same_ranking_bit_for_bit():
    index = random_index(3000, seed=1)
    queries = torch.nn.functional.normalize(index.vectors[[1, 4, 9]] + 0.1, dim=1)
    whole = rank(index, queries, 120)
    for bounds in ([0, 0, 1, 1500, 3000], [0, 100, 3000], [0, 2999, 3000]):
        parts = [
            rank(index, queries, 120, part=slice(*ends)) for ends in itertools.pairwise(bounds)
        ]
        assert parts[0].documents.shape == (3, min(120, bounds[1]))
        together = merged(parts, index, 120)
        assert together.documents.tolist() == whole.documents.tolist()
        assert together.scores.tolist() == whole.scores.tolist()


def test_merging_by_hand():
    # Document 2 goes before 0, and 0 before 1, where scores are equal.
    index = DocumentIndex(["b", "a", "c", "0"], torch.eye(4))
    one = Ranking(torch.tensor([[0.5, 0.25]]), torch.tensor([[0, 3]]))
    other = Ranking(torch.tensor([[0.75, 0.5, -math.inf]]), torch.tensor([[1, 2, -1]]))
    found = merged([one, other], index, 3)
    assert found.documents.tolist() == [[1, 2, 0]]
    assert found.scores.tolist() == [[0.75, 0.5, 0.5]]
    assert merged([one, other], index, 9).documents.tolist() == [[1, 2, 0, 3, -1]]


def test_the_order_does_not_depend_on_what_is_searched_beside():
    # Nearly equal scores: what a matrix product says of them changes with its shape.
    base = unit(256, seed=2)
    index = DocumentIndex([str(n) for n in range(4000)], base + 3e-5 * unit(4000, 256, seed=3))
    queries = torch.nn.functional.normalize(base + unit(9, 256, seed=4), dim=1)
    together = rank(index, queries, 50)
    assert together.documents.tolist() == by_definition(index, queries, 50).documents.tolist()
    for row in range(9):
        alone = rank(index, queries[row : row + 1], 50)
        assert alone.documents[0].tolist() == together.documents[row].tolist()
        assert alone.scores[0].tolist() == together.scores[row].tolist()


def test_half_precision_is_searched_as_it_is_held():
    vectors, ids = unit(500, 16), [str(n) for n in range(500)]
    half = rank(DocumentIndex(ids, vectors.half()), vectors[:20], 9)
    full = rank(DocumentIndex(ids, vectors.half().float()), vectors[:20], 9)
    assert half.documents.equal(full.documents)
    assert half.scores.equal(full.scores)


def test_no_more_is_held_than_blocks(monkeypatch):
    largest = 0
    multiply = search.linear

    def watched(*matrices):
        nonlocal largest
        made = multiply(*matrices)
        largest = max(largest, made.numel())
        return made

    monkeypatch.setattr(search, "linear", watched)
    rank(random_index(3000), unit(5000, 32), 3)
    assert largest == 1024 * 2048


def test_bad_input_is_refused_and_no_queries_are_no_mistake():
    index = DocumentIndex(["a", "b"], torch.eye(2))
    with pytest.raises(ValueError, match="query embeddings must be finite"):
        rank(index, torch.full((1, 2), torch.inf), 1)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        rank(index, torch.eye(2), 0)
    with pytest.raises(ValueError, match="1 lists of candidates for 2 queries"):
        rank(index, torch.eye(2), 1, [np.array([0])])
    assert rank(index, torch.zeros(0, 2), 2).documents.shape == (0, 2)
    assert rank(index, torch.zeros(0, 2), 2, []).documents.shape == (0, 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_ranks_alike():
    data = Lattice(6)
    index = DocumentIndex(data.ids, torch.from_numpy(data.docs), "cuda")
    queries = torch.from_numpy(data.queries[:, 0])
    for lists in (None, data.lists):
        found = rank(index, queries, 20, lists).documents.cpu()
        assert torch.equal(found, rank(data.index, queries, 20, lists).documents)
