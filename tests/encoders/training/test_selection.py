"""Which encoder a collection gets, over static token embeddings and over a transformer."""

import itertools
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from maw_gym.corpora.collection import NO_QUERIES, Groups
from maw_gym.encoders.embedder import encoder_shape, untrained_embedder
from maw_gym.encoders.maw import EncoderSettings, NonMAWEncoder
from maw_gym.encoders.text import WordLlama, load_text_encoder
from maw_gym.encoders.training import selection, stages
from maw_gym.encoders.training.selection import (
    choose,
    judges,
    train_encoder,
    trained_attention,
    trained_embedder,
)
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.encoders.training.stages import Validation
from maw_gym.errors import InputError
from maw_gym.files import fingerprint
from maw_gym.tables.task import RetrievalTask

QUICK = TrainingSettings(epochs=1, depth_epochs=1, batch_size=4)
SETTINGS = TrainingSettings(
    epochs=2, depth_epochs=1, batch_size=6, query_tokens=64, document_tokens=96
)
TUNED = replace(SETTINGS, train_text_encoder=True, text_learning_rate=1e-3)
QUERY = "encoder.layer.0.attention.self.query.weight"

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture(scope="module")
def text(tiny_transformer):
    return load_text_encoder(str(tiny_transformer))


@pytest.fixture
def steps(monkeypatch):
    """Counts the batches of the first stage."""
    done = []
    original = stages.batch_loss
    monkeypatch.setattr(stages, "batch_loss", lambda *given: done.append(1) or original(*given))
    return done


@pytest.fixture
def rising(monkeypatch):
    """Every epoch is better than the one before."""
    scores = itertools.count()
    monkeypatch.setattr(Validation, "score", lambda *_: float(next(scores)))


@pytest.fixture
def own_pairs(monkeypatch):
    """Candidates without pydocs, which takes long to train on."""
    monkeypatch.setattr(selection, "_candidates", lambda one, text: {"own pairs": [one]})


def preferring(monkeypatch, name):
    """One candidate finds everything and the others nothing."""

    def scores(collection, untrained, candidates, *given):
        return {one: np.full(2, float(one == name)) for one in (*untrained, *candidates)}

    monkeypatch.setattr(selection, "_scores", scores)


def files(home, kind, folder="encoders"):
    return sorted(path.name for path in (home / folder).glob(f"{kind}*.safetensors"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("batch_size", 0), ("query_tokens", 2.5), ("document_tokens", -1), ("epochs", True)),
        *(("depth_epochs", -1), ("learning_rate", math.nan), ("token_learning_rate", math.inf)),
        *(("depth_learning_rate", 0.0), ("depth_own_learning_rate", -1.0), ("temperature", 0.0)),
        *(("text_learning_rate", "fast"), ("depth_negatives", 0), ("balance", 1.5)),
        *(("balance", -0.1), ("weight_decay", math.inf), ("seed", -1), ("seed", 2**63)),
    ],
)
def test_wrong_settings_are_refused_in_one_line_that_shows_the_value(name, value):
    with pytest.raises(InputError) as caught:
        TrainingSettings(**{name: value})
    assert re.fullmatch(f"{name} must be .*, got {re.escape(repr(value))}", str(caught.value))


def test_settings_and_what_depends_on_them():
    whole, first = TrainingSettings().to_json(), TrainingSettings().of_attention()
    depths = ("depth_epochs", "depth_learning_rate", "depth_own_learning_rate", "depth_negatives")
    assert set(whole) - set(first) == set(depths)
    # Encoders from before there was a balance keep their key.
    assert "balance" not in whole
    assert TrainingSettings(**whole) == TrainingSettings()
    assert TrainingSettings(balance=0.5).of_attention()["balance"] == 0.5


@pytest.mark.parametrize(
    ("given", "device", "expected"),
    [
        ({}, "cpu", (5, 512, 64, 96, 1e-2)),  # the states of texts as long as they are searched
        ({"document_tokens": 50}, "cpu", (5, 512, 64, 50, 1e-2)),
        ({"train_text_encoder": True}, "cpu", (1, 256, 40, 96, 1e-4)),
        ({"train_text_encoder": True}, "cuda", (4, 256, 40, 96, 1e-4)),
        ({"train_text_encoder": True, "epochs": 2, "batch_size": 9}, "cuda", (2, 9, 40, 96, 1e-4)),
    ],
)
def test_what_is_left_open_suits_the_transformer(text, given, device, expected):
    settings = TrainingSettings(**given).suited(text, device)
    names = ("epochs", "batch_size", "query_tokens", "document_tokens", "text_learning_rate")
    assert tuple(getattr(settings, name) for name in names) == expected
    assert settings.suited(text, device) == settings
    # Static token embeddings keep the defaults.
    assert TrainingSettings(**given).suited(WordLlama(), device) == TrainingSettings(**given)


def test_a_clear_advantage_wins():
    before, after = np.array([0.0, 0.2, 0.1, 0.3]), np.array([0.5, 0.6, 0.7, 0.6])
    choice = choose({"untrained": before, "a": after})
    # Differences .5, .4, .6, .3: mean .45, standard deviation .129099, of 4 queries.
    assert (choice["chosen"], choice["queries"]) == ("a", 4)
    assert choice["candidates"] == {
        "a": pytest.approx({"nDCG@10": 0.6, "advantage": 0.45, "standard error": 0.0645497}),
        "untrained": pytest.approx({"nDCG@10": 0.15, "advantage": 0.0, "standard error": 0.0}),
    }


@pytest.mark.parametrize(
    ("others", "chosen"),
    [
        ({"lucky": [1.0, 0.0, 0.0, 0.0]}, "untrained"),  # mean .25, standard error .25
        ({"a": [1.0, 1.0, 0.0, 0.0]}, "a"),  # mean .5, standard error .288675
        # Mean .3 and standard error .3; .2 and 0; .25 and .028868.
        ({"lucky": [1.2, 0, 0, 0], "steady": [0.2] * 4, "better": [0.3, 0.2, 0.3, 0.2]}, "better"),
        ({"first": [0.3, 0.2, 0.3, 0.2], "equal": [0.3, 0.2, 0.3, 0.2]}, "first"),
        ({"same": [0.0] * 4}, "untrained"),
        ({"of one query": [1.0]}, "untrained"),
        ({"of none": []}, "untrained"),
    ],
)
def test_of_those_beyond_their_standard_error_the_largest_mean_wins(others, chosen):
    scores = {name: np.array(values) for name, values in others.items()}
    count = len(next(iter(scores.values())))
    choice = choose({"untrained": np.zeros(count), **scores})
    assert (choice["chosen"], choice["queries"]) == (chosen, count)
    errors = [one["standard error"] is None for one in choice["candidates"].values()]
    assert errors == [count < 2] * len(errors)


def test_judges_have_been_learned_from_by_nobody(tiny, monkeypatch):
    ids = {name: queries.ids for name, queries in tiny.splits.items()}
    assert judges(tiny, True).ids == (*ids["validation"], *ids["train"])
    everyone = judges(tiny, False)
    assert everyone.ids == (*ids["validation"], *ids["train"], *ids["encoder"])
    assert len(everyone.texts) == len(everyone.relevance) == len(everyone.ids)
    monkeypatch.setattr(selection, "JUDGES", 3)
    assert judges(tiny, True).ids == (*ids["validation"], *ids["train"])[:3]


@pytest.fixture
def pydocs(tiny, monkeypatch):
    """Stands for pydocs."""
    about = {**tiny.provenance, "collection": {"versions": {}}, "content": "pydocs"}
    found = tiny._replace(name="pydocs", provenance=about)
    monkeypatch.setattr(selection, "load_collection", {"pydocs": found}.get)
    return found


def candidates(collection, **given):
    _, about = trained_embedder(collection, "cpu", replace(QUICK, depth_epochs=0), **given)
    return set(about["candidates"]) - {"untrained", "mean pooling"}, about["queries"]


def test_candidates_and_their_judges(tiny, pydocs, text, steps, monkeypatch):
    def unlearned(content, *splits):
        """The tiny collection without queries to train encoders on."""
        without = dict.fromkeys(("encoder", *splits), NO_QUERIES)
        provenance = {**tiny.provenance, "content": content}
        return tiny._replace(splits=tiny.splits | without, provenance=provenance)

    judging = sum(len(tiny.splits[split].ids) for split in ("train", "validation"))
    # Where no query is outside test, and where few would train a transformer, nothing is trained.
    assert candidates(unlearned("none", "train", "validation")) == (set(), 0)
    assert candidates(unlearned("few"), text=text) == (set(), judging)
    assert steps == []
    assert candidates(unlearned("small")) == ({"pydocs"}, judging)
    assert candidates(tiny) == ({"own pairs", "own pairs and pydocs"}, judging)
    assert candidates(pydocs) == ({"own pairs"}, judging)
    monkeypatch.setattr(selection, "JUDGES_OF_TRANSFORMERS", 7)
    assert candidates(unlearned("enough"), text=text) == ({"pydocs"}, judging)


@pytest.mark.usefixtures("own_pairs")
@pytest.mark.parametrize("other", [True, False], ids=["another text encoder", "mean pooling"])
def test_candidates_without_training_may_win(tiny, text, monkeypatch, other):
    chosen = f"untrained {text.name}" if other else "mean pooling"
    preferring(monkeypatch, chosen)
    embedder, provenance = trained_embedder(tiny, "cpu", QUICK, others=[text])
    assert (provenance["chosen"], provenance["training"]) == (chosen, {})
    assert embedder.text.name == (text.name if other else "wordllama")
    # Its depths differ in what they find.
    texts = tiny.splits["test"].texts[:1]
    first, last = (embedder.encode_queries(texts, torch.tensor([d])) for d in (0, 31))
    assert (first - last).norm() > 1e-3


@pytest.mark.usefixtures("rising")
def test_encoders_of_any_depths_share_the_first_stage_and_the_index(tiny, home, steps):
    def trained(depths, **changes):
        shape = EncoderSettings(depths=depths)
        return train_encoder([tiny], "cpu", replace(QUICK, **changes), shape)[0].tensors()

    one, slow, single = trained(3), trained(3, depth_learning_rate=1e-4), trained(1)
    assert len(steps) == math.ceil(10 / 4)
    assert len(files(home, "attention")) == len(files(home, "", "documents")) == 1
    standard = trained_attention([tiny], "cpu", QUICK)[0]
    assert type(standard.encoder) is NonMAWEncoder
    for name, tensor in standard.tensors().items():
        assert all(torch.equal(found[name], tensor) for found in (one, slow, single))
    assert not torch.equal(one["depth_key_proj.weight"], slow["depth_key_proj.weight"])
    assert not torch.equal(one["query_proj.weight"], trained(1, seed=1)["query_proj.weight"])
    assert len(files(home, "attention")) == 2


@pytest.mark.usefixtures("own_pairs")
def test_other_settings_are_other_files(tiny, text, home, monkeypatch):
    preferring(monkeypatch, "untrained")
    grouped = tiny._replace(groups=Groups(dict.fromkeys(tiny.splits["encoder"].ids, "one"), {}))
    for collection in (tiny, grouped):  # groups matter where they are asked for alone
        trained_embedder(collection, "cpu", QUICK)
    assert len(files(home, "trained")) == 1
    for collection in (tiny, grouped):
        trained_embedder(collection, "cpu", replace(QUICK, balance=0.0))
    trained_embedder(tiny, "cpu", replace(QUICK, depth_learning_rate=1e-4))
    trained_embedder(tiny, "cpu", QUICK, others=[text])
    assert len(files(home, "trained")) == 5


@pytest.mark.usefixtures("own_pairs")
def test_the_best_candidate_is_trained_once_and_then_read(tiny, monkeypatch, steps):
    def scores(self, *given):  # the untrained encoder finds less than any trained one
        return torch.full((len(self.queries.ids),), 0.25 + len(steps) / 100)

    monkeypatch.setattr(Validation, "scores", scores)
    embedder, provenance = trained_embedder(tiny, "cpu", QUICK)
    assert provenance["chosen"] == "own pairs"
    means = {name: one["nDCG@10"] for name, one in provenance["candidates"].items()}
    assert means == pytest.approx({"untrained": 0.25, "mean pooling": 0.25, "own pairs": 0.28})
    training = provenance["training"]
    for stage, epoch in (("attention", 1), ("depths", 0)):
        assert training[stage] == {"epoch": epoch, "validation nDCG@10": pytest.approx(0.28)}
    assert (training["names"], training["pairs"]) == ([tiny.name], 10)
    assert TrainingSettings(**training["settings"]) == QUICK
    assert embedder.maw.depths == 32
    again, told = trained_embedder(tiny, "cpu", QUICK)
    assert len(steps) == 3
    assert told == provenance
    assert again.fingerprint() == embedder.fingerprint()


def test_the_states_of_a_frozen_transformer_are_computed_once(tiny, text, home, monkeypatch):
    shape, settings = encoder_shape(text, depths=3), replace(SETTINGS, epochs=8)
    embedder, provenance = train_encoder([tiny], "cpu", settings, shape, text=text)
    assert provenance["attention"]["epoch"] > 0  # it learns
    assert fingerprint(embedder.text.weights()) == fingerprint(text.weights())
    # The queries of all splits and the documents: whoever asks again computes nothing.
    assert len(files(home, "", "states")) == 2
    with monkeypatch.context() as patch:
        patch.setattr(text.model, "forward", lambda **_: pytest.fail("computed again"))
        plain = untrained_embedder(tiny.doc_texts, encoder_shape(text, depths=2), text)
        RetrievalTask(tiny, plain).table("test")
        train_encoder([tiny], "cpu", replace(SETTINGS, seed=1), shape, text=text)
    short = replace(SETTINGS, epochs=1, query_tokens=4, document_tokens=8)
    embedder, _ = trained_attention([tiny], "cpu", short, text=text)
    assert (embedder.query_tokens, embedder.document_tokens) == (64, 96)
    # Pairs are cut at 4 and 8, queries of validation at 64.
    assert len(files(home, "", "states")) == 4


@pytest.mark.usefixtures("own_pairs", "rising")
def test_a_transformer_trained_along_comes_back_from_the_cache(tiny, text, home, monkeypatch):
    preferring(monkeypatch, "own pairs")
    first, provenance = trained_embedder(tiny, "cpu", TUNED, text)
    again, told = trained_embedder(tiny, "cpu", TUNED, text)
    assert (told, again.fingerprint()) == (provenance, first.fingerprint())
    assert (again.text.tuned, again.text.trained, text.tuned) == (True, False, False)
    before, after = text.weights(), again.text.weights()
    moved = {name for name, one in after.items() if not torch.equal(one, before[name])}
    assert QUERY in moved
    assert not any(name.startswith("pooler.") for name in moved)
    # Documents are read once, for their index; of queries the states are kept for the depths.
    assert len(files(home, "", "states")) == 1


def test_a_text_encoder_of_ones_own_is_not_trained_along(tiny):
    class Own:
        def __getattr__(self, name):
            return getattr(WordLlama(), name)

    with pytest.raises(InputError, match=r"^text encoder 'wordllama' cannot be trained along$"):
        trained_attention([tiny], "cpu", TUNED, text=Own())
