from dataclasses import replace

import pytest
import torch

from maw_gym.encoders.documents import document_embeddings
from maw_gym.encoders.encoder_files import untrained_embedder
from maw_gym.encoders.encoder_settings import EncoderSettings


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The files in an empty cache folder."""
    monkeypatch.setenv("MAW_GYM_HOME", str(tmp_path))
    return lambda: sorted((tmp_path / "documents").glob("*.safetensors"))


def test_documents_are_encoded_once_and_then_read(tiny, kept, monkeypatch):
    embedder = untrained_embedder(tiny.doc_texts, EncoderSettings(depths=2))
    found = document_embeddings(tiny, embedder)
    assert torch.equal(found, embedder.encode_documents(tiny.doc_texts))
    assert len(kept()) == 1
    # Whatever its depths, an encoder of the same standard attention shares them.
    other = untrained_embedder(tiny.doc_texts, EncoderSettings(depths=3))
    monkeypatch.setattr("maw_gym.encoders.embedder.Embedder.encode_documents", None)
    assert torch.equal(document_embeddings(tiny, other), found)
    plain = untrained_embedder(tiny.doc_texts, EncoderSettings(depths=0))
    assert torch.equal(document_embeddings(tiny, plain), found)


def test_what_changes_an_embedding_is_another_file(tiny, kept):
    embedder = untrained_embedder(tiny.doc_texts, EncoderSettings(depths=0))
    first = document_embeddings(tiny, embedder)
    shorter = document_embeddings(tiny, replace(embedder, document_tokens=3))
    heads = untrained_embedder(tiny.doc_texts, EncoderSettings(depths=0, heads=4))
    fewer = document_embeddings(tiny, heads)
    with torch.no_grad():
        embedder.encoder.token_weight.zero_()
    even = document_embeddings(tiny, embedder)
    others = tiny._replace(provenance={**tiny.provenance, "content": "others"})
    document_embeddings(others, embedder)
    assert len(kept()) == 5
    assert not any(torch.equal(first, found) for found in (shorter, fewer, even))


def test_a_damaged_file_is_made_anew(tiny, kept, caplog):
    embedder = untrained_embedder(tiny.doc_texts, EncoderSettings(depths=0))
    found = document_embeddings(tiny, embedder)
    (path,) = kept()
    path.write_bytes(path.read_bytes()[:-4])
    assert torch.equal(document_embeddings(tiny, embedder), found)
    assert "it is made anew" in caplog.text
