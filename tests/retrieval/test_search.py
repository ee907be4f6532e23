import itertools
import math

import numpy as np
import pytest
import torch
from lattice import Lattice

from maw_gym.retrieval import search
from maw_gym.retrieval.documents import DocumentIndex
from maw_gym.retrieval.search import Ranking, merged, rank


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
    generator = torch.Generator().manual_seed(0)
    docs = torch.nn.functional.normalize(torch.randn(1003, 256, generator=generator), dim=1)
    equal = torch.arange(3, 1003, 50)
    docs[equal] = docs[3].clone()
    index = DocumentIndex([f"{n:04}" for n in range(1003)], docs)
    assert len(np.unique(index.first_of)) == 1003 - 19
    query = torch.nn.functional.normalize(docs[3] + 0.01 * torch.randn(7, 256), dim=1)
    scores, documents = rank(index, query, 20)
    for row in range(7):
        assert documents[row].tolist() == equal.tolist()[::-1]
        assert len(set(scores[row].tolist())) == 1
    lists = [np.random.default_rng(row).permutation(1003)[:900] for row in range(7)]
    scores, documents = rank(index, query, 10, lists)
    for row in range(7):
        expected = [d for d in equal.tolist()[::-1] if d in lists[row]][:10]
        assert documents[row].tolist() == expected
        assert len(set(scores[row].tolist())) == 1


def random_index(documents: int, width: int = 32, seed: int = 0) -> DocumentIndex:
    """Unit vectors, a tenth of them equal to others or nearly so, some of them zero."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.nn.functional.normalize(
        torch.randn(documents, width, generator=generator), dim=1
    )
    vectors[::20] = vectors[1]
    vectors[7::40] = vectors[1] + 1e-7
    vectors[13::70] = 0
    ids = torch.randperm(documents, generator=generator).tolist()
    return DocumentIndex([str(number) for number in ids], vectors)


def by_definition(index: DocumentIndex, queries: torch.Tensor, k: int) -> Ranking:
    """Everything scored in float64, everything sorted."""
    vectors = index.vectors[torch.from_numpy(index.first_of)].double()
    scores = (queries.double() @ vectors.T).float().numpy()
    scores[:, index.empty] = -2
    order = np.stack([np.lexsort((index.tie_of, -row)) for row in scores])[:, :k]
    best = np.take_along_axis(scores, order, 1)
    return Ranking(torch.from_numpy(best), torch.from_numpy(order))


@pytest.mark.parametrize("k", [1, 10, 100, 5000])
def test_blocks_find_what_sorting_everything_finds(k):
    # 5000 documents are several blocks; every 20th ties for the first place of the first query
    index = random_index(5000)
    queries = torch.nn.functional.normalize(index.vectors[[1, 2, 3, 5]] + 0.2, dim=1)
    queries = torch.cat([queries, torch.zeros(1, 32)])  # ties with everything
    found, expected = rank(index, queries, k), by_definition(index, queries, k)
    assert found.documents.tolist() == expected.documents.tolist()
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-6)


def test_parts_merge_to_the_same_ranking_bit_for_bit():
    index = random_index(3000, seed=1)
    queries = torch.nn.functional.normalize(index.vectors[[1, 4, 9]] + 0.1, dim=1)
    whole = rank(index, queries, 120)
    for bounds in ([0, 1, 1500, 3000], [0, 100, 3000], [0, 2999, 3000]):
        parts = [
            rank(index, queries, 120, part=slice(*ends)) for ends in itertools.pairwise(bounds)
        ]
        assert parts[0].documents.shape == (3, min(120, bounds[1]))
        together = merged(parts, index.tie_rank, 120)
        assert together.documents.tolist() == whole.documents.tolist()
        assert together.scores.tolist() == whole.scores.tolist()


def test_merging_by_hand():
    # Document 2 goes before 0, and 0 before 1, where scores are equal.
    one = Ranking(torch.tensor([[0.5, 0.25]]), torch.tensor([[0, 3]]))
    other = Ranking(torch.tensor([[0.75, 0.5, -math.inf]]), torch.tensor([[1, 2, -1]]))
    found = merged([one, other], torch.tensor([1, 2, 0, 3]), 3)
    assert found.documents.tolist() == [[1, 2, 0]]
    assert found.scores.tolist() == [[0.75, 0.5, 0.5]]
    assert merged([one, other], torch.tensor([1, 2, 0, 3]), 9).documents.tolist() == [
        [1, 2, 0, 3, -1]
    ]


def test_the_order_does_not_depend_on_what_is_searched_beside():
    # Nearly equal scores: what a matrix product says of them changes with its shape.
    generator = torch.Generator().manual_seed(2)
    base = torch.nn.functional.normalize(torch.randn(256, generator=generator), dim=0)
    spread = 3e-6 * torch.randn(4000, 256, generator=generator)
    index = DocumentIndex([str(n) for n in range(4000)], base + spread)
    queries = torch.nn.functional.normalize(base + 0.1 * torch.randn(9, 256), dim=1)
    together = rank(index, queries, 50)
    assert together.documents.tolist() == by_definition(index, queries, 50).documents.tolist()
    for row in range(9):
        alone = rank(index, queries[row : row + 1], 50)
        assert alone.documents[0].tolist() == together.documents[row].tolist()
        assert alone.scores[0].tolist() == together.scores[row].tolist()


def test_half_precision_is_searched_as_it_is_held():
    generator = torch.Generator().manual_seed(3)
    vectors = torch.nn.functional.normalize(torch.randn(500, 16, generator=generator), dim=1)
    ids = [str(n) for n in range(500)]
    half = DocumentIndex(ids, vectors.half())
    full = DocumentIndex(ids, vectors.half().float())
    queries = vectors[:20] * 1.0
    assert rank(half, queries, 9).documents.equal(rank(full, queries, 9).documents)
    assert rank(half, queries, 9).scores.equal(rank(full, queries, 9).scores)


def test_no_more_is_held_than_blocks(monkeypatch):
    index = random_index(3000)
    largest = 0
    multiply = search.linear

    def watched(*matrices):
        nonlocal largest
        made = multiply(*matrices)
        largest = max(largest, made.numel())
        return made

    monkeypatch.setattr(search, "linear", watched)
    rank(index, torch.nn.functional.normalize(torch.randn(5000, 32), dim=1), 3)
    assert largest == 1024 * 2048


def test_a_part_without_documents_gives_an_empty_ranking():
    index = random_index(10)
    assert rank(index, torch.ones(2, 32), 3, part=slice(4, 4)).documents.shape == (2, 0)
