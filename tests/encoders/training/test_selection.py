import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from maw_gym.corpora.collection import NO_QUERIES
from maw_gym.encoders.embedder import untrained_embedder
from maw_gym.encoders.files import document_embeddings
from maw_gym.encoders.maw import EncoderSettings, MAWEncoder, NonMAWEncoder
from maw_gym.encoders.text import WordLlama, load_text_encoder
from maw_gym.encoders.training import selection, stages
from maw_gym.encoders.training.selection import (
    train_encoder,
    trained_attention,
    trained_embedder,
    with_depths,
)
from maw_gym.encoders.training.settings import TrainingSettings

QUICK = TrainingSettings(epochs=1, depth_epochs=1, batch_size=4)


@pytest.fixture
def steps(monkeypatch):
    """Counts the batches of the first stage."""
    done = []
    original = stages.batch_loss
    monkeypatch.setattr(stages, "batch_loss", lambda *given: done.append(1) or original(*given))
    return done


def files(home, kind):
    return sorted(path.name for path in (home / "encoders").glob(f"{kind}-*.safetensors"))


def own_pairs(collection):
    """Candidates without pydocs, which takes long to train on."""
    return {"own pairs": [collection]}


def same(some, other):
    return set(some) == set(other) and all(torch.equal(some[name], other[name]) for name in some)


def test_depths_are_added_to_the_standard_attention(tiny):
    plain = untrained_embedder(tiny.doc_texts, EncoderSettings(depths=0))
    with torch.no_grad():
        plain.encoder.out_proj.weight.mul_(0.5)
    embedder = with_depths(plain, 5)
    assert embedder.maw.depths == 5
    assert plain.encoder.settings.depths == 0
    assert torch.equal(
        embedder.encode_documents(tiny.doc_texts), plain.encode_documents(tiny.doc_texts)
    )
    embedder.encoder.token_weight.zero_()
    assert plain.encoder.token_weight.abs().sum() > 0


def test_encoders_of_any_depths_share_the_first_stage_and_the_index(tiny, home, steps):
    embedders = [
        train_encoder([tiny], "cpu", settings, EncoderSettings(depths=depths))[0]
        for settings, depths in (
            (QUICK, 4),
            (QUICK, 1),
            (TrainingSettings(epochs=1, depth_epochs=1, batch_size=4, depth_learning_rate=1e-4), 2),
        )
    ]
    assert len(steps) == math.ceil(10 / 4)
    assert [embedder.maw.depths for embedder in embedders] == [4, 1, 2]
    assert len(files(home, "attention")) == 1
    standard = trained_attention([tiny], "cpu", QUICK)[0]
    assert type(standard.encoder) is NonMAWEncoder
    for embedder in embedders:
        assert torch.equal(embedder.encoder.query_proj.weight, standard.encoder.query_proj.weight)
        assert torch.equal(document_embeddings(tiny, embedder), document_embeddings(tiny, standard))
    assert len(list((home / "documents").glob("*.safetensors"))) == 1


def test_other_settings_are_other_files(tiny, home, monkeypatch):
    monkeypatch.setattr(selection, "_candidates", own_pairs)
    scores = {"untrained": np.zeros(2), "own pairs": np.ones(2)}
    monkeypatch.setattr(selection, "_scores", lambda *given: scores)
    later = itertools.count()  # the later an epoch, the better
    monkeypatch.setattr(selection.Validation, "score", lambda self, *given: next(later))
    settings = (
        QUICK,
        replace(QUICK, seed=1),
        replace(QUICK, depth_learning_rate=1e-4),
    )
    encoders = [trained_embedder(tiny, "cpu", one)[0] for one in settings]
    assert len(files(home, "trained")) == 3
    assert len(files(home, "attention")) == 2  # the seeds'
    one, seed, rate = (encoder.tensors() for encoder in encoders)
    assert not torch.equal(one["query_proj.weight"], seed["query_proj.weight"])
    assert torch.equal(one["query_proj.weight"], rate["query_proj.weight"])
    assert not torch.equal(one["depth_key_proj.weight"], rate["depth_key_proj.weight"])


def test_the_best_candidate_is_trained_once_and_then_read(tiny, home, monkeypatch, steps):
    monkeypatch.setattr(selection, "_candidates", own_pairs)
    # The untrained encoder finds less than any trained one.
    monkeypatch.setattr(
        selection.Validation,
        "scores",
        lambda self, *given: torch.full((len(self.queries.ids),), 0.25 + len(steps) / 100),
    )
    embedder, provenance = trained_embedder(tiny, "cpu", QUICK)
    assert provenance["chosen"] == "own pairs"
    assert provenance["queries"] == sum(len(tiny.splits[s].ids) for s in ("validation", "train"))
    means = {name: one["nDCG@10"] for name, one in provenance["candidates"].items()}
    assert means == pytest.approx({"untrained": 0.25, "mean pooling": 0.25, "own pairs": 0.28})
    assert provenance["candidates"]["own pairs"]["advantage"] == pytest.approx(0.03)
    training = provenance["training"]
    for stage, epoch in (("attention", 1), ("depths", 0)):
        assert training[stage]["epoch"] == epoch
        assert training[stage]["validation nDCG@10"] == pytest.approx(0.28)
    assert training["names"] == [tiny.name]
    assert training["pairs"] == 10
    assert TrainingSettings(**training["settings"]) == QUICK
    assert isinstance(embedder.encoder, MAWEncoder)
    assert embedder.maw.depths == 32
    again, told = trained_embedder(tiny, "cpu", QUICK)
    assert len(steps) == 3
    assert told == provenance
    assert same(again.tensors(), embedder.tensors())


def test_of_equal_scores_the_untrained_encoder_wins(tiny, home, monkeypatch):
    monkeypatch.setattr(selection, "_candidates", own_pairs)
    monkeypatch.setattr(
        selection.Validation, "scores", lambda self, *given: torch.ones(len(self.queries.ids))
    )
    embedder, provenance = trained_embedder(tiny, "cpu", QUICK)
    assert provenance["chosen"] == "untrained"
    assert provenance["training"] == {}
    assert same(embedder.tensors(), untrained_embedder(tiny.doc_texts).tensors())


def test_without_queries_outside_test_the_untrained_encoder_is_taken(tiny, home, steps):
    nothing = dict.fromkeys(("encoder", "train", "validation"), NO_QUERIES)
    _, provenance = trained_embedder(tiny._replace(splits=tiny.splits | nothing), "cpu", QUICK)
    assert (provenance["chosen"], provenance["queries"]) == ("untrained", 0)
    assert provenance["candidates"]["untrained"]["nDCG@10"] == 0.0
    assert steps == []


def test_queries_that_no_candidate_has_learned_from_judge(tiny, home, monkeypatch):
    pydocs = tiny._replace(name="pydocs")
    monkeypatch.setattr(selection, "load_collection", lambda name: pydocs)
    count = {split: len(queries.ids) for split, queries in tiny.splits.items()}
    unseen = tiny._replace(splits={**tiny.splits, "encoder": NO_QUERIES})
    _, provenance = trained_embedder(unseen, "cpu", QUICK)
    assert set(provenance["candidates"]) == {"untrained", "mean pooling", "pydocs"}
    assert provenance["queries"] == count["train"] + count["validation"]


def test_other_text_encoders_are_candidates_without_training(
    tiny, home, monkeypatch, tiny_transformer
):
    monkeypatch.setattr(selection, "_candidates", own_pairs)
    other = load_text_encoder(str(tiny_transformer))

    def scores(self, embedder, *given):
        return torch.full((len(self.queries.ids),), float(embedder.text.width == 24))

    monkeypatch.setattr(selection.Validation, "scores", scores)
    embedder, provenance = trained_embedder(tiny, "cpu", QUICK, others=[other])
    assert provenance["chosen"] == f"untrained {other.name}"
    assert provenance["training"] == {}
    assert embedder.text.name == other.name
    assert embedder.maw.depths == 32
    again, _ = trained_embedder(tiny, "cpu", QUICK, others=[other])
    assert again.fingerprint() == embedder.fingerprint()
    assert trained_embedder(tiny, "cpu", QUICK)[0].text.name == "wordllama"


def test_mean_pooling_is_a_candidate_whose_depths_differ(tiny, home, monkeypatch):
    monkeypatch.setattr(selection, "_candidates", lambda collection: {})
    scores = {"untrained": np.zeros(2), "mean pooling": np.ones(2)}
    monkeypatch.setattr(selection, "_scores", lambda *given: scores)
    embedder, provenance = trained_embedder(tiny, "cpu", QUICK)
    assert provenance["chosen"] == "mean pooling"
    assert embedder.encoder.token_weight.abs().sum() == 0
    texts = tiny.splits["test"].texts[:1]
    first, last = (embedder.encode_queries(texts, torch.tensor([d])) for d in (0, 31))
    assert (first - last).norm() > 1e-3


def test_candidates(tiny, monkeypatch):
    about = {**tiny.provenance, "collection": {"versions": {}}}
    pydocs = tiny._replace(name="pydocs", provenance=about)
    monkeypatch.setattr(selection, "load_collection", lambda name: {"pydocs": pydocs}[name])
    assert selection._candidates(tiny) == {
        "own pairs": [tiny],
        "own pairs and pydocs": [tiny, pydocs],
    }
    small = tiny._replace(splits={**tiny.splits, "encoder": NO_QUERIES})
    assert selection._candidates(small) == {"pydocs": [pydocs]}
    assert selection._candidates(pydocs) == {"own pairs": [pydocs]}


def test_few_queries_train_no_transformer_on_pydocs(tiny, tiny_transformer, monkeypatch):
    over, pydocs = load_text_encoder(str(tiny_transformer)), {"pydocs": [tiny]}
    assert selection._worth_training(pydocs, tiny, over) == {}
    assert selection._worth_training(pydocs, tiny, WordLlama()) == pydocs
    assert selection._worth_training({"own pairs": [tiny]}, tiny, over) == {"own pairs": [tiny]}
    monkeypatch.setattr(selection, "JUDGES_OF_TRANSFORMERS", 10)
    assert selection._worth_training(pydocs, tiny, over) == pydocs
