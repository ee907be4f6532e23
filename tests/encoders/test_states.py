"""Hidden states on disk: computed once, and the same numbers as without."""

import logging

import numpy as np
import pytest
import torch

from maw_gym.encoders import files
from maw_gym.encoders.embedder import encoder_shape, untrained_embedder
from maw_gym.encoders.files import StoredStates, with_document_states, with_query_states
from maw_gym.encoders.text import load_text_encoder, padded
from maw_gym.encoders.transformer import Transformer

CPU = torch.device("cpu")
TEXTS = ["how bees make honey", "bread", "", "the moon", "bread", "a tide of honey"]


@pytest.fixture(scope="module")
def text(tiny_transformer):
    return load_text_encoder(str(tiny_transformer))


def stored(text, texts=TEXTS, about="some"):
    return StoredStates(text, {"texts": about}, lambda: text.tokenize(texts), CPU, "states")


def find(known, one):
    (ids,) = known.text.tokenize([one])
    return known.find(np.array(ids))


def test_each_text_is_computed_once_in_batches_of_similar_length(home, text, monkeypatch):
    computed, hidden = [], Transformer.hidden  # the lengths of texts, batch by batch

    def noted(text, ids, mask=None):
        if mask is not None:
            computed.append(mask.sum(1).tolist())
        return hidden(text, ids, mask)

    monkeypatch.setattr(Transformer, "hidden", noted)
    monkeypatch.setattr(files, "STATES_TOKENS", 12)
    known = stored(text)
    found = {one: find(known, one) for one in filter(None, TEXTS)}
    # Of the equal texts only one, and none of the empty text.
    assert computed == [[3, 4], [6, 6]]
    for one, states in found.items():
        expected = text.hidden(torch.tensor(text.tokenize([one])))[0]
        assert states.dtype == torch.float16
        assert (states - expected).abs().max() < 2e-3  # 11 bits of numbers below 4
    assert find(known, "honey") is None
    assert find(stored(text, [""], "none"), "bread") is None
    # Another process reads the file; other texts and other weights are other files.
    again = StoredStates(text, {"texts": "some"}, pytest.fail, CPU, "states")
    assert (find(again, "bread") == found["bread"]).all()
    find(stored(text, about="others"), "bread")
    changed = text.trainable(1, CPU)
    changed.model.requires_grad_(False)
    changed.weights()["encoder.layer.1.output.dense.bias"][0] += 1
    assert (find(stored(changed), "bread") != found["bread"]).any()
    assert len(list((home / "states").glob("*.safetensors"))) == 4


def test_states_that_would_take_too_much_are_not_kept(home, text, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(files, "LARGEST_STATES", 2 * 24 * 18)
    assert find(stored(text), "bread") is None
    assert "states would take 0 MB and are not cached" in caplog.messages
    assert not list(home.rglob("*.safetensors"))


def test_an_embedder_reads_the_states_of_a_collection(home, text, tiny):
    plain = untrained_embedder(tiny.doc_texts, encoder_shape(text, depths=3), text)
    embedder = with_document_states(with_query_states(plain, tiny), tiny)
    queries = tiny.splits["test"].texts
    depths = torch.arange(len(queries)) % 3
    for encode in (
        lambda one: one.encode_documents(tiny.doc_texts),
        lambda one: one.encode_queries(queries, depths),
        lambda one: one.encode_queries([queries[0], "a bread of moon"]),  # one is computed
    ):
        assert torch.allclose(encode(embedder), encode(plain), atol=1e-3)
    ids, mask = padded(text.tokenize(["a bread of moon"]))
    assert torch.equal(embedder.text.hidden(ids, mask), text.hidden(ids, mask))


def test_nothing_is_kept_of_static_states_and_of_weights_in_training(text, tiny):
    trained = text.trainable(1, CPU)
    for embedder in (untrained_embedder([]), untrained_embedder([], None, trained)):
        assert with_query_states(embedder, tiny) is embedder
        assert with_document_states(embedder, tiny) is embedder
