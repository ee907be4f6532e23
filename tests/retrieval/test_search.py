import itertools

import numpy as np
import pytest
import torch
from lattice import Lattice

from maw_gym.corpora.collection import QuerySet
from maw_gym.errors import InputError
from maw_gym.retrieval import search
from maw_gym.retrieval.documents import DocumentIndex, equal_documents, top
from maw_gym.retrieval.search import Ranking, merged, rank


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def lattice():
    """Exact scores, most of them tied."""
    data = Lattice(5)
    return data.index, torch.from_numpy(data.queries[:, 0])


def copies(documents=5000):
    """Several blocks. A tenth of the documents are equal to others or nearly so, some are zero."""
    vectors = unit(documents, 32)
    vectors[::20] = vectors[1]
    vectors[7::40] = vectors[1] + 1e-7
    vectors[13::70] = 0
    ids = np.random.default_rng(0).permutation(documents)
    queries = torch.nn.functional.normalize(vectors[[1, 2, 3, 5]] + 0.2, dim=1)
    queries = torch.cat([queries, torch.zeros(1, 32)])  # ties with everything
    return DocumentIndex([str(number) for number in ids], vectors), queries


def alike():
    """Nearly equal scores: what a matrix product says of them changes with its shape."""
    base = unit(256, seed=2)
    index = DocumentIndex([str(n) for n in range(2500)], base + 3e-5 * unit(2500, 256, seed=3))
    return index, torch.nn.functional.normalize(base + unit(4, 256, seed=4), dim=1)


def assert_equal(one, other):
    assert one.documents.tolist() == other.documents.tolist()
    assert one.scores.tolist() == other.scores.tolist()


@pytest.mark.parametrize("k", [1, 7, 100, 5000])
@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("make", [lattice, copies, alike])
def test_ranks_are_by_score_in_float64_then_by_id_descending(make, listed, k):
    index, queries = make()
    vectors = index.vectors[torch.from_numpy(index.first_of)].double()
    expected = (queries.double() @ vectors.T).float().numpy()
    expected[:, index.empty] = -2
    draw = np.random.default_rng(0)
    lists = [draw.choice(len(index), size, replace=False) for size in range(len(queries))]
    by_id = sorted(range(len(index)), key=lambda d: index.doc_ids[d].encode(), reverse=True)
    ties = np.argsort(by_id)
    found = rank(index, queries, k, lists if listed else None)
    assert found.documents.shape == (len(queries), min(k, len(index)))
    for row, of_query in enumerate(expected):
        order = np.lexsort((ties, -of_query))
        order = (order[np.isin(order, lists[row])] if listed else order)[:k].tolist()
        nothing = [-1] * (len(found.documents[row]) - len(order))
        assert found.documents[row].tolist() == order + nothing
        scores = [*of_query[order], *[-np.inf] * len(nothing)]
        np.testing.assert_allclose(found.scores[row], scores, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("make", "k"), [(copies, 120), (alike, 50)])
def test_what_is_searched_beside_or_apart_changes_no_bit(make, k):
    index, queries = make()
    whole = rank(index, queries, k)
    for row in range(len(queries)):
        some = slice(row, row + 1)
        assert_equal(rank(index, queries[some], k), Ranking(*(one[some] for one in whole)))
    last = len(index)
    for bounds in ([0, 0, 1, 1500, last], [0, 100, last], [0, last - 1, last]):
        ends = itertools.pairwise(bounds)
        parts = [rank(index, queries, k, part=slice(*two)) for two in ends]
        assert parts[0].documents.shape == (len(queries), min(k, bounds[1]))
        assert_equal(merged(parts, index, k), whole)


def test_half_precision_is_searched_as_it_is_held():
    vectors, ids = unit(500, 16), [str(n) for n in range(500)]
    half = rank(DocumentIndex(ids, vectors.half()), vectors[:20], 9)
    assert_equal(half, rank(DocumentIndex(ids, vectors.half().float()), vectors[:20], 9))


def test_diverged_queries_are_refused_and_none_are_no_mistake():
    index = DocumentIndex(["a", "b"], torch.eye(2))
    with pytest.raises(InputError, match="query embeddings must be finite"):
        rank(index, torch.full((1, 2), torch.inf), 1)
    for lists in (None, []):
        assert rank(index, torch.zeros(0, 2), 2, lists).documents.shape == (0, 2)


def test_no_more_is_held_than_blocks(monkeypatch):
    made, multiply = [], search.linear

    def watched(*matrices):
        made.append(multiply(*matrices))
        return made[-1]

    monkeypatch.setattr(search, "linear", watched)
    rank(copies(3000)[0], unit(5000, 32), 3)
    assert max(block.numel() for block in made) == 1024 * 2048


def test_top_breaks_ties_inside_and_across_the_cut():
    scores = torch.tensor([[1.0, 3.0, 1.0, 1.0, 2.0], [0.0, -0.0, 0.0, 0.0, 0.0]])
    ties = torch.tensor([4, 0, 3, 1, 2])
    values, columns = top(scores, ties, 3)
    assert values.tolist() == [[3, 2, 1], [0, 0, 0]]
    assert columns.tolist() == [[1, 4, 3], [1, 3, 4]]
    of_rows = torch.stack([ties, -ties])
    assert top(scores[1:].expand(2, -1), of_rows, 2)[1].tolist() == [[1, 3], [0, 2]]


def test_equal_rows_are_equal_to_the_first_of_them_and_near_ones_are_not():
    rows = [[1, 0], [0, 1], [1, 0], [0, 1 + 2**-23], [0, 0], [1, 1e-4], [-0.0, 0], [0, 1]]
    first, empty = equal_documents(torch.tensor(rows))
    assert (first.tolist(), empty.tolist()) == ([0, 1, 0, 3, 4, 5, 4, 1], [4, 6])
    rows = torch.randn(3000, 8, generator=torch.Generator().manual_seed(0))  # several blocks
    rows[500:2500] = rows[7].clone()
    rows[2900] = 0
    first, empty = equal_documents(rows)
    assert first.tolist() == [*range(500), *[7] * 2000, *range(2500, 3000)]
    assert empty.tolist() == [2900]


def test_embeddings_are_held_once_and_ids_ordered_by_their_bytes():
    embeddings = torch.eye(6, dtype=torch.float16)
    index = DocumentIndex(["d1", "Z", "d10", "é", "d2", "d"], embeddings)
    assert index.vectors.data_ptr() == embeddings.data_ptr()
    assert index.tie_order.tolist() == [3, 4, 2, 0, 5, 1]  # descending


def test_relevant_keeps_positive_grades_of_known_documents():
    index = DocumentIndex(["a", "b", "c"], torch.eye(3))
    queries = QuerySet(("q", "r"), ("", ""), ({"c": 2, "a": 0, "x": 1}, {"b": -1}))
    first, second = index.relevant(queries)
    assert (first.documents.tolist(), first.grades.tolist(), first.own) == ([2], [2], -1)
    assert (second.documents.tolist(), second.own) == ([], 1)
