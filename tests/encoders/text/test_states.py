"""Hidden states on disk: computed once, and the same numbers as without."""

import json
import logging

import numpy as np
import pytest
import torch

from maw_gym.encoders.collection_states import with_document_states, with_query_states
from maw_gym.encoders.encoder_files import encoder_shape, untrained_embedder
from maw_gym.encoders.text import load_text_encoder, padded, states
from maw_gym.encoders.text.states import StoredStates

CPU = torch.device("cpu")
TEXTS = ["how bees make honey", "bread", "", "the moon", "bread", "a tide of honey"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MAW_GYM_HOME", str(tmp_path))
    return tmp_path / "states"


@pytest.fixture(scope="module")
def text(tiny_transformer):
    return load_text_encoder(str(tiny_transformer))


class Noted:
    """The computation of states, noted, and cut short after `batches`."""

    def __init__(self, monkeypatch, batches=100):
        self.batches = batches
        self.rows = []
        computed = StoredStates._computed

        def noted(stored, rows):
            if len(self.rows) == self.batches:
                raise KeyboardInterrupt
            self.rows.append([len(row) for row in rows])
            return computed(stored, rows)

        monkeypatch.setattr(StoredStates, "_computed", noted)


def stored(text, texts=TEXTS, about="some"):
    return StoredStates(text, {"texts": about}, lambda: text.tokenize(texts), CPU, "states")


def find(known, one):
    (ids,) = known.text.tokenize([one])
    return known.find(np.array(ids))


def test_states_are_the_computed_ones_in_half_precision(home, text):
    known = stored(text)
    for one in filter(None, TEXTS):
        expected = text.hidden(torch.tensor(text.tokenize([one])))[0]
        found = find(known, one)
        assert found.dtype == np.float16
        assert np.abs(found - expected.numpy()).max() < 2e-3  # 11 bits of numbers below 4
    assert find(known, "honey") is None


def test_each_text_is_computed_once_in_batches_of_similar_length(home, text, monkeypatch):
    noted = Noted(monkeypatch)
    monkeypatch.setattr(states, "BATCH_TOKENS", 12)
    find(stored(text), "bread")
    # Of the equal texts only one, and none of the empty text.
    assert noted.rows == [[3, 4], [6, 6]]
    numbers = np.load(next(home.glob("*.npy")))
    assert (numbers.dtype, numbers.shape) == (np.float16, (19, 24))


def test_another_process_reads_the_file(home, text, monkeypatch):
    first = find(stored(text), "bread").copy()
    noted = Noted(monkeypatch)
    again = StoredStates(text, {"texts": "some"}, pytest.fail, CPU, "states")
    assert (find(again, "bread") == first).all()
    assert noted.rows == []
    # Other texts, other weights: other files.
    find(stored(text, about="others"), "bread")
    assert len(noted.rows) == 1
    changed = text.trainable(1, CPU)
    changed.model.requires_grad_(False)
    changed.weights()["encoder.layer.1.output.dense.bias"][0] += 1
    assert (find(stored(changed), "bread") != first).any()
    assert len(noted.rows) == 2


def test_a_stopped_computation_goes_on(home, text, monkeypatch):
    monkeypatch.setattr(states, "BATCH_TOKENS", 6)
    monkeypatch.setattr(states, "SAVED_TOKENS", 5)
    with monkeypatch.context() as patch:
        Noted(patch, batches=2)
        with pytest.raises(KeyboardInterrupt):
            find(stored(text), "bread")
    assert not list(home.glob("*.json"))
    noted = Noted(monkeypatch)
    known = stored(text)
    found = find(known, "how bees make honey")
    assert sum(len(rows) for rows in noted.rows) == 2
    assert not list(home.glob("*.progress"))
    monkeypatch.setenv("MAW_GYM_HOME", str(home / "elsewhere"))
    assert (find(stored(text), "how bees make honey") == found).all()
    assert (known._states == np.load(next((home / "elsewhere" / "states").glob("*.npy")))).all()


@pytest.mark.parametrize("what", ["number", "texts", "gone", "another file"])
def test_damaged_files_are_made_anew(home, text, what, caplog):
    before = find(stored(text), "bread").copy()
    numbers, about = next(home.glob("*.npy")), next(home.glob("*.json"))
    if what == "number":
        data = bytearray(numbers.read_bytes())
        data[-1] ^= 64
        numbers.write_bytes(data)
    elif what == "texts":
        about.write_text(json.dumps({"texts": [["00", 3]], "crc32": 0}))
    elif what == "gone":
        numbers.unlink()
    else:
        np.save(numbers, np.zeros((3, 24), np.float32))
    caplog.set_level(logging.WARNING)
    assert (find(stored(text), "bread") == before).all()
    assert "does not hold hidden states" in caplog.text
    assert (find(stored(text), "bread") == before).all()


def test_states_that_would_take_too_much_are_not_kept(home, text, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(states, "LARGEST", 2 * 24 * 18)
    assert find(stored(text), "bread") is None
    assert "states would take 0 MB and are not kept" in caplog.messages
    assert not list(home.glob("*.npy"))


def test_no_text(home, text):
    assert find(stored(text, [""]), "bread") is None
    assert find(stored(text, [""]), "bread") is None


# --- behind an embedder ----------------------------------------------------------------------


def test_an_embedder_reads_the_states_of_a_collection(home, text, tiny, monkeypatch):
    plain = untrained_embedder(tiny.doc_texts, encoder_shape(text, depths=3), text)
    embedder = with_document_states(with_query_states(plain, tiny), tiny)
    queries = tiny.splits["test"].texts
    depths = torch.arange(len(queries)) % 3
    for encode in (
        lambda with_states: with_states.encode_documents(tiny.doc_texts),
        lambda with_states: with_states.encode_queries(queries, depths),
    ):
        assert torch.allclose(encode(embedder), encode(plain), atol=1e-3)
    noted = Noted(monkeypatch)
    monkeypatch.setattr(text.model, "forward", lambda **_: pytest.fail("computed"))
    again = with_query_states(with_document_states(plain, tiny), tiny)
    assert again.encode_documents([*tiny.doc_texts, "", *queries]).shape == (38, 24)
    assert noted.rows == []


def test_unknown_texts_are_computed(home, text, tiny):
    plain = untrained_embedder([], None, text)
    embedder = with_query_states(plain, tiny)
    texts = [*tiny.splits["test"].texts[:2], "a bread of moon"]
    assert torch.allclose(embedder.encode_queries(texts), plain.encode_queries(texts), atol=1e-6)
    ids, mask = padded(text.tokenize(["a bread of moon"]))
    assert torch.equal(embedder.text.hidden(ids, mask), text.hidden(ids, mask))


def test_nothing_is_kept_of_static_states_and_of_weights_in_training(text, tiny):
    trained = text.trainable(1, CPU)
    for embedder in (untrained_embedder([]), untrained_embedder([], None, trained)):
        assert with_query_states(embedder, tiny) is embedder
        assert with_document_states(embedder, tiny) is embedder
