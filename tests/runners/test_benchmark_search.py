"""The benchmark of search: its texts, its rows, and that they search what they say."""

import pytest

from maw_gym.encoders.encoder_files import untrained_embedder
from runners.benchmarks.search import faiss_rows, size_rows, synthetic_texts


def test_synthetic_texts_have_the_length_and_the_law_asked_for() -> None:
    texts = list(synthetic_texts(untrained_embedder(()), 500, (3, 5), seed=0))
    assert len(texts) == 500
    assert {len(text.split()) for text in texts} == {3, 4, 5}
    words = [word for text in texts for word in text.split()]
    counts = sorted((words.count(word) for word in set(words)), reverse=True)
    # 1 / r of some 15,000 words: the first has 1 / (ln 15,000 + .58) = .098 of all
    assert counts[0] / len(words) == pytest.approx(0.098, abs=0.03)
    assert texts == list(synthetic_texts(untrained_embedder(()), 500, (3, 5), seed=0))


def test_every_size_is_measured_in_a_process_of_its_own() -> None:
    rows = size_rows(sizes=(40, 80), queries=5, hybrid=True)
    assert [(one.case, one.name) for one in rows] == [
        ("40 documents", "encode and index"),
        ("40 documents", "search of 5"),
        ("80 documents", "encode and index"),
        ("80 documents", "search of 5"),
    ]
    for one in rows:
        assert one.per_second is not None
        assert one.per_second * one.seconds == pytest.approx(
            int(one.case.split()[0]) if one.unit == "documents/s" else 5
        )
        # torch and the encoder alone take some hundred megabytes
        assert one.memory is not None
        assert 100e6 < one.memory < 4e9


def test_recall_is_of_what_exact_search_finds() -> None:
    pytest.importorskip("faiss")
    rows = {
        one.name: one
        for one in faiss_rows(300, 20, width=16, rounds=2, approximate=("Flat", "HNSW8"))
    }
    assert rows["FAISS IndexFlatIP"].ratio == 1
    assert rows["search"].ratio > 0
    assert rows["faiss:Flat"].more["% recall"] == 100
    assert 50 < rows["faiss:HNSW8"].more["% recall"] <= 100
