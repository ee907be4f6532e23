from types import SimpleNamespace

import numpy as np
import pytest
import torch

from maw_gym.errors import InputError
from maw_gym.retrieval.documents import (
    LINED_ROWS,
    DocumentIndex,
    first_of_equals,
    first_of_same,
)


def test_near_rows_are_equal_to_the_first_of_them():
    rows = [[1, 0], [0, 1], [1, 0], [0, 1 + 2**-23], [0, 0], [1, 1e-4], [-0.0, 0], [0, 1]]
    first, empty = first_of_equals(torch.tensor(rows), 1e-6)
    assert first.tolist() == [0, 1, 0, 1, 4, 5, 4, 1]
    assert empty.tolist() == [4, 6]


def test_rows_near_the_same_row_are_equal():
    # 0, 8e-7 and 16e-7 apart; the first and the last are not near each other
    rows = torch.tensor([[1, 16e-7], [1, 0], [1, 8e-7], [1, 1]], dtype=torch.float64)
    assert first_of_equals(rows.float(), 1e-6)[0].tolist() == [0, 0, 0, 3]


def test_blocks_and_many_copies_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(300, 8, generator=generator)
    rows[50:200] = rows[7].clone()
    rows[60:80] += 1e-8
    rows[250] = 0
    expected = list(range(300))
    expected[50:200] = [7] * 150
    for size in (16_384, 7):
        monkeypatch.setattr("maw_gym.retrieval.documents.BLOCK_ROWS", size)
        monkeypatch.setitem(LINED_ROWS, "cpu", size)
        first, empty = first_of_equals(rows, 1e-6)
        assert first.tolist() == expected
        assert empty.tolist() == [250]


def test_equal_places_on_one_line_make_no_row_another(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 3, generator=generator)
    rows[5:35:2] = rows[4].clone()
    drawn = np.array([[1.0, 0.2, 0.3], [0.1, 1.0, 0.5], [0.0, 0.0, 1.0]])
    rows[6:36:2, 2] = rows[4, 2]  # equal on the last line, which is the last axis, and only there
    monkeypatch.setattr(np.random, "default_rng", lambda seed: SimpleNamespace(
        standard_normal=lambda shape: drawn.copy()
    ))  # fmt: skip
    expected = list(range(40))
    expected[5:35:2] = [4] * 15
    assert first_of_equals(rows, 1e-6)[0].tolist() == expected


def test_columns_are_the_same_by_all_keys():
    keys = torch.tensor([[7, 7, 5, 7, 5, 7], [1, 2, 1, 1, 1, 2]])
    assert first_of_same(keys).tolist() == [0, 1, 2, 0, 2, 1]
    assert first_of_same(keys[:, :1]).tolist() == [0]
    extreme = torch.tensor([[2**63 - 1, -(2**63), 2**63 - 1]])
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
    vectors = torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.8, 0.6], [0.6, 0.8 + 5e-7]])
    index = DocumentIndex(["a", "b", "c", "d"], vectors)
    documents = np.array([[3, 1, 0], [2, -1, -1]])
    scores = index.exact_scores(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), documents)
    of_a = float(np.float32(0.8))  # d is the same vector
    assert scores.tolist() == [
        [of_a, -2, of_a],
        [float(np.float32(0.8)), -torch.inf, -torch.inf],
    ]
