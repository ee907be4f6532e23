import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from maw_gym import files
from maw_gym.errors import InputError
from maw_gym.retrieval.bm25 import BM25


def index_of(*texts: str) -> BM25:
    return BM25.of([f"d{row}" for row in range(len(texts))], texts)


def test_scores_are_lucenes():
    index = index_of("wing jet", "Wings wing rudder", "tail")
    # idf = ln(1 + (3 - 2 + .5) / (2 + .5)) = ln 1.6 = .470; mean length 2; k1 1.2, b .75:
    # tf 2, length 3: 2 / (2 + 1.2 (.25 + .75 * 1.5)) = .5479; tf 1, length 2: 1 / 2.2 = .4545
    expected = [0.470004 * 0.454545, 0.470004 * 0.547945, 0]
    assert index.scores("wing") == pytest.approx(expected, abs=1e-5)
    assert index.scores("wing").dtype == np.float32
    ranking = index.rank(["wing"], 10)
    assert ranking.documents.tolist() == [[1, 0, -1]]
    assert ranking.documents.dtype == torch.int64
    assert ranking.scores[0].tolist() == pytest.approx([expected[1], expected[0], -np.inf])


def test_a_word_counts_as_often_as_the_query_has_it():
    index = index_of("wing jet", "rudder", "tail fin")
    assert index.scores("wing wings") == pytest.approx(2 * index.scores("wing"))
    assert index.scores("jet wing") == pytest.approx(index.scores("jet") + index.scores("wing"))


def test_equal_scores_take_trec_evals_order_at_the_cut_too():
    ranking = index_of("jet", *["wing"] * 6, "wing wing").rank(["wing"], 4)
    assert ranking.documents.tolist() == [[7, 6, 5, 4]]  # ids descending


def test_queries_without_a_match_have_an_empty_ranking():
    ranking = index_of("wing", "", "the").rank(["", "the", "jet", "wing"], 5)
    assert ranking.documents.tolist() == [[-1] * 3, [-1] * 3, [-1] * 3, [0, -1, -1]]
    assert index_of("", "the").rank(["wing"], 5).documents.tolist() == [[-1, -1]]
    assert index_of().rank(["wing"], 5).documents.shape == (1, 0)


def test_texts_are_read_as_a_stream(monkeypatch):
    monkeypatch.setattr("maw_gym.retrieval.bm25.CHUNK", 2)
    texts = ["wing", "jet", "wing jet", "tail", "wing"]
    streamed = BM25.of([f"d{row}" for row in range(5)], iter(texts))
    whole = index_of(*texts)
    np.testing.assert_array_equal(streamed.scores("wing jet"), whole.scores("wing jet"))
    with pytest.raises(ValueError, match="2 document ids for 1 texts"):
        BM25.of(["a", "b"], iter(["x"]))


@pytest.mark.parametrize("texts", [("wing jet", "Wings wing rudder", "tail"), ("", "the")])
def test_an_index_is_saved_and_read(tmp_path: Path, texts: tuple[str, ...]):
    index = index_of(*texts)
    index.save(tmp_path / "words.safetensors")
    read = BM25.load(tmp_path / "words.safetensors", [f"d{row}" for row in range(len(texts))])
    np.testing.assert_array_equal(read.scores("wing tail"), index.scores("wing tail"))
    assert read.rank(["wing"], 2).documents.equal(index.rank(["wing"], 2).documents)


def test_damaged_and_foreign_files_are_refused(tmp_path: Path):
    path, ids = tmp_path / "words.safetensors", ["d0", "d1"]
    with pytest.raises(InputError, match="no BM25 index file"):
        BM25.load(path, ids)
    index_of("wing", "jet").save(path)
    with pytest.raises(InputError, match="is of other documents than these 3"):
        BM25.load(path, ["a", "b", "c"])
    tensors = load_file(path)
    settings = {"documents": 2, "words": ["wing", "jet"]}
    for name, value in (
        ("documents", torch.tensor([0, 2], dtype=torch.int32)),  # of two
        ("documents", torch.tensor([0.0, 1.0])),
        ("starts", torch.tensor([0, 9, 2])),
        ("starts", torch.tensor([0, 1])),
        ("weights", torch.tensor([1.0, torch.nan])),
        ("weights", torch.tensor([[1.0, 1.0]])),
        ("more", torch.zeros(1)),
    ):
        files.write(path, tensors | {name: value}, "BM25 index", settings)
        with pytest.raises(InputError, match="is damaged: it is not a whole BM25 index"):
            BM25.load(path, ids)
    files.write(path, tensors, "encoder", settings)
    with pytest.raises(InputError, match="holds a 'encoder', not a 'BM25 index'"):
        BM25.load(path, ids)


def test_bars_are_for_terminals(capfd):
    def slow():
        for text in ("one", "two"):
            time.sleep(1.2)  # a bar appears after two seconds
            yield text

    BM25.of(["a", "b"], slow(), progress=True)
    assert capfd.readouterr() == ("", "")
