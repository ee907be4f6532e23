import json
import time
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maw_gym.corpora.collection import Collection, QuerySet
from maw_gym.errors import DamagedFileError, InputError
from maw_gym.files import write_manifest
from maw_gym.retrieval import bm25 as bm25_module
from maw_gym.retrieval.bm25 import BM25, KIND, candidate_documents, with_relevant


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


def test_texts_are_read_as_a_stream():
    texts = ["wing", "jet", "wing jet", "tail", "wing"]
    streamed = BM25.of([f"d{row}" for row in range(5)], iter(texts))
    whole = index_of(*texts)
    np.testing.assert_array_equal(streamed.scores("wing jet"), whole.scores("wing jet"))
    with pytest.raises(ValueError, match="2 document ids for 1 texts"):
        BM25.of(["a", "b"], iter(["x"]))


@pytest.mark.parametrize(
    ("texts", "query"),
    [
        (("国際標準化に関する動向を調べる", "日本料理の作り方"), "国際標準化"),
        (("ฉันชอบอาหารไทยมาก", "แมวนอนหลับ"), "อาหารไทย"),
        (("हिन्दी में लिखो", "हिन्दू मंदिर"), "हिन्दी"),
        (("un résumé du café", "un livre"), "re\u0301sume\u0301 cafe\u0301"),
    ],
)
def test_texts_of_the_world_are_found(texts: tuple[str, str], query: str):
    """A script without spaces is not one word, a mark does not cut one, one letter is not two."""
    first, second = index_of(*texts).scores(query)
    assert first > second
    assert first == index_of(*texts).scores(unicodedata.normalize("NFC", query))[0]


@pytest.mark.parametrize("texts", [("wing jet", "Wings wing rudder", "tail"), ("", "the")])
def test_an_index_is_saved_and_read(tmp_path: Path, texts: tuple[str, ...]):
    index = index_of(*texts)
    for _ in range(2):  # over itself, too
        index.save(tmp_path / "words")
        index = BM25.load(tmp_path / "words", [f"d{row}" for row in range(len(texts))])
    np.testing.assert_array_equal(index.scores("wing tail"), index_of(*texts).scores("wing tail"))
    assert index.rank(["wing"], 2).documents.equal(index_of(*texts).rank(["wing"], 2).documents)


def test_damaged_and_foreign_files_are_refused(tmp_path: Path):
    path, ids = tmp_path / "words", ["d0", "d1"]
    with pytest.raises(InputError, match="no BM25 index in"):
        BM25.load(path, ids)
    index_of("wing", "jet").save(path)
    with pytest.raises(DamagedFileError, match="3 document ids for 2 texts"):
        BM25.load(path, ["a", "b", "c"])
    vocabulary = path / "vocab.index.json"
    vocabulary.write_text(vocabulary.read_text().replace("jet", "jot"))
    with pytest.raises(DamagedFileError, match="is damaged: its checksum is another"):
        BM25.load(path, ids)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("indices.csc.index.npy", np.array([0, 2], np.int32)),  # of two
        ("indices.csc.index.npy", np.array([0.0, 1.0])),
        ("indptr.csc.index.npy", np.array([0, 9, 2])),
        ("indptr.csc.index.npy", np.array([0, 1])),
        ("data.csc.index.npy", np.array([1.0, np.nan], np.float32)),
        ("data.csc.index.npy", np.array([[1.0, 1.0]], np.float32)),
        ("data.csc.index.npy", None),
        ("vocab.index.json", {"wing": 0, "jet": 2}),
        ("vocab.index.json", {"wing": "0"}),
        ("vocab.index.json", [1]),
        ("params.index.json", {"num_docs": 2, "corpus": 1, "magic": True}),
        ("params.index.json", [1]),
    ],
)
def test_a_stranger_can_make_checksums_that_fit(tmp_path: Path, name: str, content: Any):
    index_of("wing", "jet").write(tmp_path)
    if content is None:
        (tmp_path / name).write_bytes(b"no array")
    elif isinstance(content, np.ndarray):
        np.save(tmp_path / name, content)
    else:
        (tmp_path / name).write_text(json.dumps(content))
    write_manifest(tmp_path, KIND, {})
    with pytest.raises(DamagedFileError, match="is no BM25 index") as caught:
        BM25.load(tmp_path, ["d0", "d1"])
    assert "\n" not in str(caught.value)


def test_relevant_documents_follow_those_that_words_find(monkeypatch):
    monkeypatch.setattr(bm25_module, "CANDIDATES", 2)
    asked = QuerySet(("a", "b"), ("wing", "jet"), ({"d0": 1, "d3": 2, "d1": 1, "d2": 0}, {"d4": 1}))
    splits = dict.fromkeys(("encoder", "train", "validation", "test"), asked)
    texts = ("tail", "wing", "wing", "rudder", "jet")
    collection = Collection("x", tuple(f"d{row}" for row in range(5)), texts, splits, {})
    bm25 = BM25.of(collection.doc_ids, texts)
    lists = candidate_documents(collection, "train", bm25)
    assert [documents.tolist() for documents in lists] == [[2, 1], [4]]
    joined = with_relevant(lists, collection, "train")
    assert [documents.tolist() for documents in joined] == [[2, 1, 0, 3], [4]]
    assert all(documents.dtype == np.int64 for documents in lists + joined)


def test_bars_are_for_terminals(capfd):
    def slow():
        for text in ("one", "two"):
            time.sleep(1.2)  # a bar appears after two seconds
            yield text

    BM25.of(["a", "b"], slow(), progress=True)
    assert capfd.readouterr() == ("", "")
