"""Encoders trained over a transformer, frozen or trained along."""

import itertools
from dataclasses import replace

import pytest
import torch

from maw_gym.encoders.embedder import encoder_shape, untrained_embedder
from maw_gym.encoders.files import StoredStates
from maw_gym.encoders.text import WordLlama, load_text_encoder
from maw_gym.encoders.training import selection
from maw_gym.encoders.training.selection import train_encoder, trained_attention, trained_embedder
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.encoders.training.stages import Validation
from maw_gym.errors import InputError
from maw_gym.tables.task import RetrievalTask

SETTINGS = TrainingSettings(
    epochs=2, depth_epochs=1, batch_size=6, query_tokens=64, document_tokens=96
)


pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def rising(monkeypatch):
    """Every epoch is better than the one before."""
    scores = itertools.count()
    monkeypatch.setattr(Validation, "score", lambda *_: float(next(scores)))


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
    texts = []
    build = StoredStates._build
    monkeypatch.setattr(
        StoredStates, "_build", lambda stored: texts.append(stored._different()) or build(stored)
    )
    train_encoder([tiny], "cpu", SETTINGS, encoder_shape(text, depths=3), text=text)
    assert sum(map(len, texts)) == 24 + 30  # the queries of all splits and the documents
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
    assert len(list((home / "states").glob("*.safetensors"))) == 3


def test_a_trained_encoder_is_read_from_the_cache(tiny, text, monkeypatch):
    monkeypatch.setattr(selection, "_candidates", lambda collection: {"own pairs": [collection]})
    first, provenance = trained_embedder(tiny, "cpu", SETTINGS, text)
    again, same = trained_embedder(tiny, "cpu", SETTINGS, text)
    assert provenance == same
    assert first.fingerprint() == again.fingerprint()


# --- trained along ---------------------------------------------------------------------------

TUNED = replace(SETTINGS, train_text_encoder=True, text_learning_rate=1e-3)


@pytest.mark.usefixtures("rising")
def test_the_transformer_is_trained_with_the_first_stage(tiny, text, home):
    embedder, provenance = train_encoder(
        [tiny], "cpu", TUNED, encoder_shape(text, depths=3), text=text
    )
    tuned = embedder.text
    assert tuned.tuned
    assert not tuned.trained
    moved = {
        name
        for name, weight in tuned.weights().items()
        if not torch.equal(weight, text.weights()[name])
    }
    assert "encoder.layer.0.attention.self.query.weight" in moved
    assert not any(name.startswith("pooler.") for name in moved)
    assert provenance["settings"]["train_text_encoder"]
    # Documents are read once, for their index; of queries the states are kept for the depths.
    assert len(list((home / "states").glob("*.safetensors"))) == 1
    # The one that it was made from is as it was.
    assert text.name == tuned.name
    assert not text.tuned


@pytest.mark.usefixtures("rising")
def test_a_trained_transformer_comes_back_from_the_cache_and_takes_its_depths_along(tiny, text):
    shape = encoder_shape(text, depths=3)
    first, provenance = trained_attention([tiny], "cpu", TUNED, shape, text)
    again, same = trained_attention([tiny], "cpu", TUNED, shape, text)
    assert provenance == same
    assert first.fingerprint() == again.fingerprint()
    assert again.text.tuned
    queries = tiny.splits["test"].texts
    assert torch.equal(first.encode_queries(queries), again.encode_queries(queries))


def test_a_stopped_training_of_the_transformer_goes_on(tiny, text, home, monkeypatch):
    # The further a weight has moved, the better.
    start = text.weights()["encoder.layer.0.attention.self.query.weight"]

    def rising(_, embedder):
        weight = embedder.text.weights()["encoder.layer.0.attention.self.query.weight"]
        return (weight - start).abs().sum().item()

    monkeypatch.setattr(Validation, "score", rising)
    whole, provenance = trained_attention([tiny], "cpu", TUNED, text=text)
    assert provenance["attention"]["epoch"] == 2
    monkeypatch.setenv("MAW_GYM_HOME", str(home / "other"))
    scores = []

    def stopped(*arguments):
        if len(scores) == 2:
            raise KeyboardInterrupt
        scores.append(rising(*arguments))
        return scores[-1]

    with monkeypatch.context() as patch:
        patch.setattr(Validation, "score", stopped)
        with pytest.raises(KeyboardInterrupt):
            trained_attention([tiny], "cpu", TUNED, text=text)
    resumed, _ = trained_attention([tiny], "cpu", TUNED, text=text)
    assert resumed.fingerprint() == whole.fingerprint()


@pytest.mark.usefixtures("rising")
def test_recomputing_activations_changes_nothing(tiny, text, home, monkeypatch):
    settings = replace(TUNED, epochs=1)
    plenty, provenance = trained_attention([tiny], "cpu", settings, text=text)
    monkeypatch.setenv("MAW_GYM_HOME", str(home / "other"))
    monkeypatch.setattr("maw_gym.encoders.transformer.free_memory", lambda device: 1)
    little, _ = trained_attention([tiny], "cpu", settings, text=text)
    assert provenance["attention"]["epoch"] == 1
    assert plenty.fingerprint() == little.fingerprint()


@pytest.mark.usefixtures("rising")
def test_token_embeddings_are_trained_along_too(tiny):
    settings = TrainingSettings(epochs=1, batch_size=6, train_text_encoder=True)
    embedder, _ = trained_attention([tiny], "cpu", settings)
    assert not torch.equal(embedder.text.embedding, WordLlama().embedding)


# --- settings that suit ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "device", "expected"),
    [
        ({}, "cpu", (5, 512, 64, 96)),  # the states of texts as long as they are searched
        ({"document_tokens": 50}, "cpu", (5, 512, 64, 50)),
        ({"train_text_encoder": True}, "cpu", (1, 256, 40, 96)),
        ({"train_text_encoder": True}, "cuda", (4, 256, 40, 96)),
        ({"train_text_encoder": True, "epochs": 2, "batch_size": 9}, "cuda", (2, 9, 40, 96)),
    ],
)
def test_what_is_left_open_suits_the_transformer(text, given, device, expected):
    settings = TrainingSettings(**given).suited(text, device)
    found = (
        settings.epochs,
        settings.batch_size,
        settings.query_tokens,
        settings.document_tokens,
    )
    assert found == expected
    assert settings.text_learning_rate == (1e-4 if given.get("train_text_encoder") else 1e-2)
    assert settings.suited(text, device) == settings


def test_static_token_embeddings_keep_the_defaults():
    for settings in (TrainingSettings(), TrainingSettings(train_text_encoder=True)):
        assert settings.suited(WordLlama(), "cuda") == settings


def test_texts_longer_than_the_model_reads_are_refused(tiny, text):
    settings = TrainingSettings(document_tokens=97)
    with pytest.raises(InputError, match=r"^document_tokens 97 is more than the 96 tokens that"):
        trained_embedder(tiny, "cpu", settings, text)
