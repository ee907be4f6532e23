import torch

from maw_gym.corpora.collection import QuerySet
from maw_gym.retrieval.documents import DocumentIndex, equal_documents


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
