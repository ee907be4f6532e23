from dataclasses import replace

import pytest
import torch

from maw_gym.encoders.embedder import Embedder, encoded_documents, untrained_embedder
from maw_gym.encoders.files import document_embeddings
from maw_gym.encoders.maw import EncoderSettings
from maw_gym.errors import InputError


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
    found = document_embeddings(tiny, embedder).clone()
    (path,) = kept()
    path.write_bytes(path.read_bytes()[:-4])
    assert torch.equal(document_embeddings(tiny, embedder), found)
    assert "it is made anew" in caplog.text


# --- documents of a stream -------------------------------------------------------------------

TEXTS = ["bees", "ice", "bees", "", "  bees", "honey", "ice"]  # white space makes no other tokens
IDS = [f"d{row}" for row in range(len(TEXTS))]


@pytest.fixture(scope="module")
def plain(tiny):
    return untrained_embedder(tiny.doc_texts, EncoderSettings(depths=0))


@pytest.mark.parametrize("portion", [2, 100])
def test_a_stream_is_read_once_in_portions(plain, monkeypatch, portion):
    monkeypatch.setattr("maw_gym.encoders.embedder.PORTION", portion)
    seen = []
    ids, vectors = encoded_documents(plain, iter(IDS), iter(TEXTS), torch.float16, seen.append)
    assert ids == IDS
    assert [len(some) for some in seen] == ([7] if portion == 100 else [2, 2, 2, 1])
    assert [text for some in seen for text in some] == TEXTS
    assert vectors.dtype == torch.float16
    expected = plain.encode_documents(TEXTS)
    torch.testing.assert_close(vectors.float(), expected, rtol=0, atol=1e-3)


def test_equal_texts_have_one_vector_whichever_portion_they_came_in(plain, monkeypatch):
    monkeypatch.setattr("maw_gym.encoders.embedder.PORTION", 2)
    encode_ids = Embedder.encode_ids

    def differing(embedder, ids):  # as by rounding
        return encode_ids(embedder, ids) + torch.rand(1) * 1e-6

    monkeypatch.setattr(Embedder, "encode_ids", differing)
    _, vectors = encoded_documents(plain, IDS, TEXTS)
    assert vectors[[2, 4, 6]].equal(vectors[[0, 0, 1]])
    assert len(vectors.unique(dim=0)) == 4


@pytest.mark.parametrize(
    ("ids", "texts", "message"),
    [
        (["a"], ["x", "y"], "1 document ids for 2 texts; give one each"),
        (["a", "b", "c"], ["x", "y"], "3 document ids for 2 texts; give one each"),
        (["a"], [3], "texts must be strings; number 0 is 3 of type int"),
        ([None], ["x"], "document ids must be strings; number 0 is None of type NoneType"),
        ("a", ["x"], "give a list of document ids, not the single text 'a'"),
        (["a"], None, "give a list of texts, not None"),
    ],
)
def test_streams_that_are_no_documents(plain, ids, texts, message):
    with pytest.raises(InputError) as caught:
        encoded_documents(plain, ids, texts)
    assert str(caught.value) == message


def test_no_document(plain):
    ids, vectors = encoded_documents(plain, [], [])
    assert (ids, vectors.shape) == ([], (0, 256))
