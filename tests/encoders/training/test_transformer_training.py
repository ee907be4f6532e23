"""Encoders trained over a transformer, frozen or trained along."""

from dataclasses import replace

import pytest
import torch

from maw_gym.encoders.encoder_files import encoder_shape, untrained_embedder
from maw_gym.encoders.text import load_text_encoder
from maw_gym.encoders.text.states import StoredStates
from maw_gym.encoders.training import selection
from maw_gym.encoders.training.selection import train_encoder, trained_attention, trained_embedder
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.tables.task import RetrievalTask

SETTINGS = TrainingSettings(
    epochs=2, depth_epochs=1, batch_size=6, query_tokens=64, document_tokens=96
)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("MAW_GYM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def text(tiny_transformer):
    return load_text_encoder(str(tiny_transformer))


def test_the_attention_over_a_frozen_transformer_learns(tiny, text):
    settings = replace(SETTINGS, epochs=8)
    embedder, provenance = trained_attention([tiny], "cpu", settings, text=text)
    assert embedder.text.name == text.name
    assert embedder.encoder.settings == encoder_shape(text, depths=0)
    assert provenance["attention"]["epoch"] > 0
    for name, weight in embedder.text.weights().items():
        assert torch.equal(weight, text.weights()[name])


def test_its_states_are_computed_once(tiny, text, home, monkeypatch):
    batches = []
    computed = StoredStates._computed
    monkeypatch.setattr(
        StoredStates,
        "_computed",
        lambda stored, rows: batches.append(len(rows)) or computed(stored, rows),
    )
    train_encoder([tiny], "cpu", SETTINGS, encoder_shape(text, depths=3), text=text)
    assert sum(batches) == 24 + 30  # the queries of all splits and the documents
    monkeypatch.setattr(text.model, "forward", lambda **_: pytest.fail("computed again"))
    embedder = untrained_embedder(tiny.doc_texts, encoder_shape(text, depths=2), text)
    for split in ("train", "test"):
        RetrievalTask(tiny, embedder).table(split)
    other = replace(SETTINGS, seed=1)
    train_encoder([tiny], "cpu", other, encoder_shape(text, depths=3), text=text)


def test_other_cuts_have_other_states(tiny, text, home):
    short = replace(SETTINGS, epochs=1, query_tokens=4, document_tokens=8)
    embedder, _ = trained_attention([tiny], "cpu", short, text=text)
    assert (embedder.query_tokens, embedder.document_tokens) == (64, 96)
    # Pairs are cut at 4 and 8, queries of validation at 64.
    assert len(list((home / "states").glob("*.npy"))) == 3


def test_a_trained_encoder_is_read_from_the_cache(tiny, text, monkeypatch):
    monkeypatch.setattr(selection, "_candidates", lambda collection: {"own pairs": [collection]})
    first, provenance = trained_embedder(tiny, "cpu", SETTINGS, text)
    again, same = trained_embedder(tiny, "cpu", SETTINGS, text)
    assert provenance == same
    assert first.fingerprint() == again.fingerprint()
