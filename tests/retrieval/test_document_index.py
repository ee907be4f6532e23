import pytest
import torch

from maw_gym.corpora.collection import QuerySet
from maw_gym.errors import InputError
from maw_gym.retrieval.documents import DocumentIndex, equal_documents, top


def test_top_breaks_ties_inside_and_across_the_cut():
    scores = torch.tensor([[1.0, 3.0, 1.0, 1.0, 2.0], [0.0, -0.0] + [0.0] * 3])
    tie_rank = torch.tensor([4, 0, 3, 1, 2])
    values, columns = top(scores, tie_rank, 3)
    assert values.tolist() == [[3, 2, 1], [0, 0, 0]]
    assert columns.tolist() == [[1, 4, 3], [1, 3, 4]]
    assert top(-scores, tie_rank, 3)[1].tolist() == [[3, 2, 0], [1, 3, 4]]
    assert top(scores, tie_rank, 9)[1].tolist() == [[1, 4, 3, 2, 0], [1, 3, 4, 2, 0]]
    # Each row with ties of its own.
    ties = torch.stack([tie_rank, -tie_rank])
    assert top(scores[1:].expand(2, -1), ties, 2)[1].tolist() == [[1, 3], [0, 2]]


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
