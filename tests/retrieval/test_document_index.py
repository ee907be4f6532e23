import numpy as np
import pytest
import torch

from maw_gym.errors import InputError
from maw_gym.retrieval.documents import (
    LINED_ROWS,
    DocumentIndex,
    equal_documents,
    first_of_same,
)


def test_equal_rows_are_equal_to_the_first_of_them_and_near_ones_are_not():
    rows = [[1, 0], [0, 1], [1, 0], [0, 1 + 2**-23], [0, 0], [1, 1e-4], [-0.0, 0], [0, 1]]
    first, empty = equal_documents(torch.tensor(rows))
    assert first.tolist() == [0, 1, 0, 3, 4, 5, 4, 1]
    assert empty.tolist() == [4, 6]


@pytest.mark.parametrize("block", [16_384, 7])
def test_blocks_and_many_copies_change_nothing(monkeypatch, block):
    rows = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    rows[50:200] = rows[7].clone()
    rows[250] = 0
    expected = list(range(300))
    expected[50:200] = [7] * 150
    monkeypatch.setitem(LINED_ROWS, "cpu", block)
    first, empty = equal_documents(rows)
    assert first.tolist() == expected
    assert empty.tolist() == [250]


def test_columns_are_the_same_by_all_keys():
    keys = np.array([[7, 7, 5, 7, 5, 7], [1, 2, 1, 1, 1, 2]])
    assert first_of_same(keys).tolist() == [0, 1, 2, 0, 2, 1]
    assert first_of_same(keys[:, :1]).tolist() == [0]
    extreme = np.array([[2**63 - 1, -(2**63), 2**63 - 1]])
    assert first_of_same(extreme).tolist() == [0, 1, 0]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_embeddings_that_are_not_finite_are_refused(value):
    vectors = torch.eye(4)
    vectors[2, 1] = value
    with pytest.raises(InputError, match="document embeddings must be finite"):
        DocumentIndex(["a", "b", "c", "d"], vectors)


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
