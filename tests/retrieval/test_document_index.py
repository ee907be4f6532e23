import numpy as np
import pytest
import torch

from maw_gym.corpora.collection import QuerySet
from maw_gym.errors import InputError
from maw_gym.retrieval.documents import (
    DocumentIndex,
    equal_documents,
    first_of_same,
    padded,
    top,
    trec_order,
)


def test_trec_order_is_descending_by_utf8_bytes():
    assert trec_order(["d1", "Z", "d10", "é", "d2", "d"]).tolist() == [3, 4, 2, 0, 5, 1]


def test_top_breaks_ties_inside_and_across_the_cut():
    scores = torch.tensor(
        [[1.0, 3.0, 1.0, 1.0, 2.0], [5.0, 4.0, 3.0, 2.0, 1.0], [0.0, -0.0] + [0.0] * 3]
    )
    tie_rank = torch.tensor([4, 0, 3, 1, 2])
    values, columns = top(scores, tie_rank, 3)
    assert values.tolist() == [[3, 2, 1], [5, 4, 3], [0, 0, 0]]
    assert columns.tolist() == [[1, 4, 3], [0, 1, 2], [1, 3, 4]]
    assert top(-scores, tie_rank, 3)[1].tolist() == [[3, 2, 0], [4, 3, 2], [1, 3, 4]]
    every = [[1, 4, 3, 2, 0], [0, 1, 2, 3, 4], [1, 3, 4, 2, 0]]
    assert top(scores, tie_rank, 9)[1].tolist() == every
    # Each row with ties of its own.
    assert top(scores[2:].expand(2, -1), torch.stack([tie_rank, -tie_rank]), 2)[1].tolist() == [
        [1, 3],
        [0, 2],
    ]


def test_equal_rows_are_equal_to_the_first_of_them_and_near_ones_are_not():
    rows = [[1, 0], [0, 1], [1, 0], [0, 1 + 2**-23], [0, 0], [1, 1e-4], [-0.0, 0], [0, 1]]
    first, empty = equal_documents(torch.tensor(rows))
    assert first.tolist() == [0, 1, 0, 3, 4, 5, 4, 1]
    assert empty.tolist() == [4, 6]


def test_many_rows_with_many_copies():
    rows = torch.randn(3000, 8, generator=torch.Generator().manual_seed(0))  # several blocks
    rows[500:2500] = rows[7].clone()
    rows[2900] = 0
    first, empty = equal_documents(rows)
    assert first.tolist() == [*range(500), *[7] * 2000, *range(2500, 3000)]
    assert empty.tolist() == [2900]


def test_columns_are_the_same_by_all_keys():
    keys = np.array([[7, 7, 5, 7, 5, 7], [1, 2, 1, 1, 1, 2]])
    assert first_of_same(keys).tolist() == [0, 1, 2, 0, 2, 1]
    assert first_of_same(keys[:, :1]).tolist() == [0]
    assert first_of_same(np.array([[2**63 - 1, -(2**63), 2**63 - 1]])).tolist() == [0, 1, 0]


def test_lists_as_rows():
    lists = [np.array([3]), np.array([], int), np.array([1, 2])]
    assert padded(lists).tolist() == [[3, -1], [-1, -1], [1, 2]]
    assert padded(lists[:1], -np.inf, 3).tolist() == [[3, -np.inf, -np.inf]]
    assert padded([]).shape == (0, 0)


def test_embeddings_are_held_once_as_they_are_given():
    embeddings = torch.eye(3, dtype=torch.float16)
    index = DocumentIndex(["a", "b", "c"], embeddings)
    assert index.vectors.data_ptr() == embeddings.data_ptr()
    assert index.scores(torch.tensor([[0.5, 0.25, 0.0]])).tolist() == [[0.5, 0.25, 0.0]]


def test_exact_scores_of_listed_documents():
    vectors = torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
    index = DocumentIndex(["a", "b", "c", "d"], vectors)
    documents = np.array([[3, 1, 0], [2, -1, -1]])
    scores = index.exact_scores(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), documents)
    eight = float(np.float32(0.8))
    assert scores.tolist() == [[eight, -2, eight], [eight, -torch.inf, -torch.inf]]
    assert index.in_tie_order(np.array([0, 2, 0, 3])).tolist() == [3, 2, 0]


def test_relevant_keeps_positive_grades_of_known_documents():
    index = DocumentIndex(["a", "b", "c"], torch.eye(3))
    queries = QuerySet(("q", "r"), ("", ""), ({"c": 2, "a": 0, "x": 1}, {"b": -1}))
    first, second = index.relevant(queries)
    assert (first.documents.tolist(), first.grades.tolist(), first.own) == ([2], [2], -1)
    assert (second.documents.tolist(), second.own) == ([], 1)


@pytest.mark.parametrize(
    ("ids", "vectors", "message"),
    [
        (["a", "b"], torch.eye(3), "2 ids for embeddings of shape"),
        (["a", "a"], torch.eye(2), "document ids must differ; 'a' is given 2 times"),
        ([], torch.zeros(0, 2), "0 document ids"),
        (["a", "b"], torch.tensor([[1.0], [torch.nan]]), "document embeddings must be finite"),
        (["a", "b"], torch.tensor([[1.0], [-torch.inf]]), "document embeddings must be finite"),
    ],
)
def test_what_is_no_index_is_refused(ids, vectors, message):
    with pytest.raises(InputError if "must" in message or "0 doc" in message else ValueError) as e:
        DocumentIndex(ids, vectors)
    assert message in str(e.value)
