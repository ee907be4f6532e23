import math
from dataclasses import replace

import pytest
import torch
from tiny_collection import PAIRS

from maw_gym.corpora.collection import NO_QUERIES, Groups, QuerySet
from maw_gym.encoders.embedder import untrained_embedder
from maw_gym.encoders.maw import EncoderSettings
from maw_gym.encoders.text import WordLlama
from maw_gym.encoders.training import stages
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.encoders.training.stages import (
    DepthWeights,
    Validation,
    contrastive_loss,
    depth_loss,
    epoch_rows,
    listwise_loss,
    pairs_of,
    train_attention,
    train_depths,
)
from maw_gym.tables.task import RetrievalTask

SHAPE = EncoderSettings(depths=3)
QUICK = TrainingSettings(epochs=2, depth_epochs=2, batch_size=12)
DEPTHS = {"depth_query_proj.weight", "depth_key_proj.weight"}
STAGES = ["attention", "depths"]


@pytest.fixture(scope="module")
def puzzle(tiny):
    """The tiny collection with pairs that only training can know: query i belongs to document
    i + 7. Training and validation queries are the same 24."""
    queries = QuerySet(
        tuple(f"q{i}" for i in range(24)),
        tuple(query for query, _ in PAIRS),
        tuple({f"d{(i + 7) % 24}": 1} for i in range(24)),
    )
    return tiny._replace(splits={**tiny.splits, "encoder": queries, "validation": queries})


def strong(collection, depths=3):
    """An untrained embedder of strong attention, whose depths differ in what they find."""
    embedder = untrained_embedder(collection.doc_texts, replace(SHAPE, depths=depths))
    with torch.no_grad():
        embedder.encoder.value_proj.weight.mul_(-20)
    return embedder


@pytest.fixture
def embedder(tiny):
    return strong(tiny)


class Told(Validation):
    """A validation of scores told in advance; remembers weights and depths it was asked with."""

    def __init__(self, collection, embedder, *scores):
        super().__init__(collection, embedder, 64)
        self.told = list(scores)
        self.seen, self.depths = [], []

    def score(self, embedder, depths=None, index=None):
        self.depths.append(None if depths is None else depths.tolist())
        weights = dict(embedder.tensors())
        for name in DEPTHS:
            weights[name] = getattr(embedder.maw, name.partition(".")[0]).weight
        self.seen.append({name: weight.detach().clone() for name, weight in weights.items()})
        return self.told.pop(0)


def train(stage, collection, embedder, settings=QUICK, validation=None):
    """Train a stage in place; the best epoch."""
    validation = validation or Validation(collection, embedder, 64)
    pairs = pairs_of([collection], embedder)
    if stage == "attention":
        return train_attention(embedder, pairs, validation, settings)
    documents = embedder.encode_documents(collection.doc_texts)
    index = validation.index(documents)
    return train_depths(embedder, pairs, documents, validation, index, settings)


def copies(embedder):
    return {name: tensor.detach().clone() for name, tensor in embedder.tensors().items()}


def changed(before, embedder):
    tensors = embedder.tensors()
    return {name for name in before if not torch.equal(before[name], tensors[name])}


def test_pairs_of_two_collections(tiny, embedder):
    queries = QuerySet(
        ("a", "b", "c", "d"),
        ("bread", "", "honey", "bees"),
        ({"x": 1, "y": 2, "z": 1}, {"x": 1}, {"y": 0, "z": 1}, {"z": 1, "x": 3}),
    )
    other = tiny._replace(
        name="other",
        doc_ids=("x", "y", "z"),
        doc_texts=("one", "two", " "),
        splits={**tiny.splits, "encoder": queries},
        groups=Groups({"a": "left", "b": "left"}, {}),
    )
    pairs = pairs_of([tiny, other], embedder)
    own = tiny.splits["encoder"].ids
    # z has no token, query b neither; c has no other relevant document. x is document 30, y 31.
    assert pairs.relevant == [*([int(query_id[1:])] for query_id in own), [30, 31], [30]]
    assert pairs.documents[30:] == [*embedder.text.tokenize(["one", "two"]), []]
    assert pairs.queries[len(own) :] == embedder.text.tokenize(["bread", "bees"])
    assert pairs.groups == [*[tiny.name] * len(own), "left", "other"]
    empty = tiny._replace(splits={**tiny.splits, "encoder": NO_QUERIES})
    assert pairs_of([empty], embedder)._replace(documents=[]) == ([], [], [], [])


def test_an_epoch_takes_every_query_once_unless_groups_are_to_be_balanced():
    groups = ["a"] * 90 + ["b"] * 10
    once = epoch_rows(groups, 1, torch.Generator().manual_seed(5))
    assert sorted(once.tolist()) == list(range(100)) != once.tolist()
    generator = torch.Generator().manual_seed(0)
    rows = torch.cat([epoch_rows(groups, 0, generator) for _ in range(200)])
    assert len(rows) == 20_000
    # Half of them of each group, each query of a group as often as another.
    assert torch.bincount(rows, minlength=100)[90:].tolist() == pytest.approx([1000] * 10, abs=150)


def test_every_query_is_learned_from_with_one_of_its_documents(tiny, embedder, monkeypatch):
    seen = []
    loss = stages.batch_loss

    def noted(embedder, pairs, rows, documents, settings):
        seen.append(list(zip(rows.tolist(), documents, strict=True)))
        return loss(embedder, pairs, rows, documents, settings)

    monkeypatch.setattr(stages, "batch_loss", noted)
    pairs = pairs_of([tiny], embedder)
    pairs = pairs._replace(relevant=[[row, row + 1, row + 2] for row in range(10)])
    told = Told(tiny, embedder, *range(9))
    train_attention(embedder, pairs, told, TrainingSettings(epochs=8, batch_size=4))
    assert [len(batch) for batch in seen] == [4, 4, 2] * 8
    for epoch in range(8):
        batches = seen[3 * epoch : 3 * epoch + 3]
        assert sorted(row for batch in batches for row, _ in batch) == list(range(10))
    assert {document - row for batch in seen for row, document in batch} == {0, 1, 2}


def test_the_score_is_the_mean_of_the_evaluation(tiny, embedder):
    evaluate = RetrievalTask(tiny, embedder).evaluate
    scores = set()
    for depths in (None, torch.tensor([1, 1, 0, 0, 1]), torch.tensor([0, 2, 1, 1, 0])):
        evaluation, _ = evaluate("validation", depths)
        score = Validation(tiny, embedder, 256).score(embedder, depths)
        assert score == pytest.approx(evaluation.mean["nDCG@10"], abs=1e-6)
        scores.add(round(score, 3))
    assert len(scores) == 3


def test_few_documents_of_a_large_collection_are_ranked(tiny, embedder, monkeypatch):
    monkeypatch.setattr(stages, "DOCUMENTS_CHECKED", 8)
    # The validation queries q12 to q16 need d12 to d16; the first others are d0, d1 and d2.
    expected = ["d0", "d1", "d2", "d12", "d13", "d14", "d15", "d16"]
    validation = Validation(tiny, embedder, 256)
    index = validation.index(embedder.encode_documents(tiny.doc_texts))  # embedded before
    assert index.doc_ids == tuple(validation.doc_ids) == tuple(expected)
    assert validation.score(embedder, None, index) == validation.score(embedder)
    monkeypatch.setattr(stages, "DOCUMENTS_CHECKED", 3)
    validation = Validation(tiny, embedder, 7)
    assert validation.doc_ids == expected[3:]
    assert max(map(len, validation.documents)) == 7
    assert Validation(tiny, embedder, 7, NO_QUERIES).score(embedder) == 0.0


EYE = torch.eye(2)
EQUAL = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
TWINS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])


@pytest.mark.parametrize(
    ("queries", "documents", "which", "temperature", "expected"),
    [
        (EYE, EYE, [5, 6], 1.0, 0.313262),  # right answers score 1, wrong ones 0: log(1 + e^-1)
        (EYE, EYE, [5, 6], 0.5, 0.126928),  # the same divided by .5: log(1 + e^-2)
        (EYE, EYE.flip(0), [5, 6], 1.0, 1.313262),  # the wrong way round: log(1 + e)
        # Both documents are [1, 0]. Rows tie at log 2; of the columns (1, 0) the first has
        # log(1 + e^-1) and the second log(1 + e): ((.693147) + (.813262)) / 2.
        (EYE, EQUAL, [5, 6], 1.0, 0.753204),
        # But where they are the same document, it is not its own negative.
        (EYE, EQUAL, [5, 5], 1.0, 0.0),
        # Rows 0 and 2 see themselves and row 1: .313262. Row 1 sees all three: log(1 + 2 e^-1).
        (TWINS, TWINS, [8, 9, 8], 1.0, (0.313262 * 2 + 0.551445) / 3),
    ],
)
def test_contrastive_loss_by_hand(queries, documents, which, temperature, expected):
    queries = queries.clone().requires_grad_()
    loss = contrastive_loss(queries, documents, torch.tensor(which), temperature)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    loss.backward()
    assert queries.grad.isfinite().all()


@pytest.mark.parametrize(
    ("relevant", "temperature", "expected"),
    [
        # Scores 1, 0 and 0 of the first query, 0, 1 and 0 of the second: log(1 + 2 / e).
        ([[1, 0, 0], [0, 1, 0]], 1.0, 0.551445),
        ([[1, 0, 0], [0, 1, 0]], 0.5, 0.239545),  # the same divided by .5: log(1 + 2 / e^2)
        ([[0, 1, 0], [1, 0, 0]], 1.0, 1.551445),  # wrong ones are relevant: log(e + 2)
        # Two relevant documents: the mass of both, log((e + 2) / (e + 1)) = .238183, and all of it.
        ([[1, 1, 0], [1, 1, 1]], 1.0, 0.119091),
    ],
)
def test_listwise_loss_by_hand(relevant, temperature, expected):
    queries, documents = torch.eye(3)[:2], torch.eye(3)
    loss = listwise_loss(queries, documents, torch.tensor(relevant).bool(), temperature)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_of_too_many_documents_some_are_drawn_and_the_relevant_ones_kept(tiny, embedder):
    pairs = pairs_of([tiny], embedder)._replace(relevant=[[row] for row in range(10)])
    documents = embedder.encode_documents(tiny.doc_texts)[:10]
    depth = torch.tensor([0, 2])

    @torch.no_grad()
    def loss(most, seed=0):
        generator = torch.Generator().manual_seed(seed)
        settings = TrainingSettings(depth_negatives=most)
        return depth_loss(embedder, pairs, documents, [3, 8], depth, settings, generator).item()

    queries = embedder.encode_ids([pairs.queries[3], pairs.queries[8]], depth)
    scores = queries @ documents.T / 0.05
    expected = -scores.log_softmax(1)[[0, 1], [3, 8]].mean().item()
    assert loss(10) == loss(10**6) == pytest.approx(expected, abs=1e-5)
    # One document drawn and two relevant ones: at least two are ranked, at most three.
    few = {loss(1, seed) for seed in range(20)}
    assert len(few) > 5
    assert max(few) < expected


def test_weights_of_depths_by_hand():
    # Temperatures 1/4 and 4: what both have in common counts twice and half.
    weights = DepthWeights(torch.tensor([0.25, 4.0]))
    common, own = torch.tensor([[3.0]]), torch.tensor([[[1.0]], [[-1.0]]])
    assert weights(common, own).tolist() == [[8.0], [1.0]]
    common, own = weights.right_inverse(torch.tensor([[8.0], [1.0]]))
    assert (common.tolist(), own.tolist()) == ([[4.0]], [[[0.0]], [[-2.0]]])


def test_the_first_stage_learns_arbitrary_pairs(puzzle):
    embedder = untrained_embedder(puzzle.doc_texts, SHAPE)
    before, validation = copies(embedder), Validation(puzzle, embedder, 64)
    assert validation.score(embedder) < 0.3
    best = train("attention", puzzle, embedder, TrainingSettings(epochs=6, batch_size=12))
    assert best.score > 0.9
    assert validation.score(embedder) == best.score
    # The depths and the packaged token embeddings have no part in it.
    assert changed(before, embedder) == set(before) - DEPTHS


@pytest.mark.parametrize("depths", [3, 1])
def test_the_second_stage_learns_arbitrary_pairs_and_keeps_the_order(puzzle, depths):
    embedder = strong(puzzle, depths)
    before, validation = copies(embedder), Validation(puzzle, embedder, 64)

    def scores():
        return [validation.score(embedder, torch.full((24,), depth)) for depth in range(depths)]

    embedder.maw.depths_from_standard()
    untrained = scores()
    train("depths", puzzle, embedder, TrainingSettings(depth_epochs=8, batch_size=6))
    assert all(a > b + 0.3 for a, b in zip(scores(), untrained, strict=True))
    assert changed(before, embedder) == DEPTHS  # and nothing but them
    assert not any(weight.requires_grad for weight in embedder.encoder.parameters())
    assert type(embedder.maw.depth_query_proj) is torch.nn.Linear
    batches = embedder.query_statistics(validation.query_tokens)
    entropy = torch.cat([statistics.entropy for _, statistics in batches]).mean(0).tolist()
    assert entropy == sorted(entropy)
    assert depths == 1 or entropy[2] - entropy[0] > 0.5


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("scores", "epoch", "batch_size"),
    [
        ((0.25,), 0, 12),  # no epoch at all
        ((0.5, 0.4, 0.3), 0, 12),
        ((0.5, 0.6, 0.3), 1, 12),
        ((0.5, 0.4, 0.6), 2, 12),
        ((0.5, 0.5, 0.5), 0, 12),  # of equal ones the earliest
        ((0.5, 0.6), 1, 64),  # a single step
        (range(6), 5, 5),  # 10 steps: OneCycleLR divides by zero where a tenth of them is one
    ],
)
def test_the_best_epoch_is_restored(tiny, embedder, stage, scores, epoch, batch_size):
    told, epochs = Told(tiny, embedder, *scores), len(scores) - 1
    settings = TrainingSettings(epochs=epochs, depth_epochs=epochs, batch_size=batch_size)
    best = train(stage, tiny, embedder, settings, told)
    assert (best.score, best.epoch, told.told) == (scores[epoch], epoch, [])
    learned = DEPTHS if stage == "depths" else {"query_proj.weight", "out_proj.weight"}
    for name in learned:
        found = [torch.equal(seen[name], embedder.tensors()[name]) for seen in told.seen]
        assert found == [other == epoch for other in range(epochs + 1)]


@pytest.mark.parametrize("stage", STAGES)
def test_without_pairs_nothing_is_trained(tiny, embedder, stage):
    empty, before = tiny._replace(splits={**tiny.splits, "encoder": NO_QUERIES}), copies(embedder)
    assert train(stage, empty, embedder, QUICK, Told(tiny, embedder, 0.25))[:2] == (0.25, 0)
    # Depths are put at their temperatures, without the noise.
    assert changed(before, embedder) == (DEPTHS if stage == "depths" else set())


@pytest.mark.parametrize("stage", STAGES)
def test_a_loss_that_is_not_finite_ends_the_training(tiny, embedder, stage, monkeypatch):
    factors = [1.0, math.nan, 1.0, 1.0, 1.0]  # of the five steps of the epoch

    def loss(embedder, *given):
        weight = next(w for w in embedder.encoder.parameters() if w.requires_grad)
        return weight.sum() * factors.pop(0)

    monkeypatch.setattr(stages, "batch_loss" if stage == "attention" else "depth_loss", loss)
    message = rf"^loss nan in epoch 1 of training {stage}; lower the learning rates"
    with pytest.raises(FloatingPointError, match=message):
        train(stage, tiny, embedder, TrainingSettings(batch_size=2), Told(tiny, embedder, 0.0))
    assert factors == []


def test_texts_are_cut_in_training_and_documents_encoded_in_groups(tiny, embedder):
    shapes, embed = [], embedder.encoder.embed
    embedder.encoder.embed = lambda ids, *rest: shapes.append(tuple(ids.shape)) or embed(ids, *rest)
    settings = TrainingSettings(epochs=1, batch_size=64, query_tokens=3, document_tokens=9)
    train("attention", tiny, embedder, settings, Told(tiny, embedder, 0.0, 1.0))
    assert shapes == [(10, 3), (3, 9), (3, 9), (3, 9), (1, 9)]


def test_token_embeddings_are_trained_where_they_are_asked_for(tiny, embedder):
    embedder = replace(embedder, text=WordLlama().trainable(1, torch.device("cpu")))
    told = Told(tiny, embedder, 0.1, 0.3, 0.2)
    assert train("attention", tiny, embedder, validation=told).epoch == 1
    assert torch.equal(embedder.text.embedding, told.seen[1]["text.embedding"])
    moved = (embedder.text.embedding != WordLlama().embedding).any(1).nonzero()[:, 0].tolist()
    pairs = pairs_of([tiny], embedder)
    used = {token for ids in pairs.queries for token in ids}
    assert set(moved) == used | {t for (at,) in pairs.relevant for t in pairs.documents[at]}


def test_a_depth_learns_what_all_have_in_common_and_its_own(tiny, embedder):
    two = tiny._replace(splits={**tiny.splits, "encoder": tiny.splits["encoder"].select(range(2))})
    settings = TrainingSettings(depth_epochs=1, batch_size=2, weight_decay=0.0)
    told = Told(tiny, embedder, 0.0, 1.0)
    train("depths", two, embedder, settings, told)
    assert told.depths == [[0, 1, 2, 0, 1]] * 2
    # Two queries meet two of three depths at most. AdamW's first step is as long as the learning
    # rate: of a tenth in what is a depth's own, beside what the depths have in common.
    scale = torch.tensor([0.125, 1.0, 8.0]).sqrt()[:, None, None]
    for name in DEPTHS:
        before, after = (seen[name].view(3, 256, 256) * scale for seen in told.seen)
        standard = embedder.tensors()[name.removeprefix("depth_")]
        assert torch.allclose(before, standard.expand(3, -1, -1), atol=1e-6)
        sizes = sorted((after - before).abs().amax((1, 2)).tolist())
        assert 1e-3 < sizes[0] < 1e-2
        assert sizes[2] == pytest.approx(1.1 * sizes[0], rel=0.01)
