import math
from dataclasses import replace

import pytest
import torch
from tiny_collection import PAIRS

from maw_gym.corpora.collection import QuerySet
from maw_gym.encoders.embedder import untrained_embedder
from maw_gym.encoders.maw import EncoderSettings, temperatures
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.encoders.training.stages import (
    DepthWeights,
    Validation,
    depth_loss,
    judged_queries,
    listwise_loss,
    pairs_of,
    train_depths,
)
from maw_gym.errors import InputError

SHAPE = EncoderSettings(depths=3)
QUICK = TrainingSettings(depth_epochs=2, batch_size=12)
PROJECTIONS = {"depth_query_proj.weight", "depth_key_proj.weight"}


@pytest.fixture
def puzzle(tiny):
    """The tiny collection with pairs that only training can know: query i belongs to document
    i + 7. Training and validation queries are the same 24."""
    queries = QuerySet(
        tuple(f"q{i}" for i in range(24)),
        tuple(query for query, _ in PAIRS),
        tuple({f"d{(i + 7) % 24}": 1} for i in range(24)),
    )
    return tiny._replace(splits={**tiny.splits, "encoder": queries, "validation": queries})


@pytest.fixture
def embedder(tiny):
    """Its attention is strong, so that the depths differ in what they find."""
    embedder = untrained_embedder(tiny.doc_texts, SHAPE)
    with torch.no_grad():
        embedder.encoder.value_proj.weight.mul_(-20)
    return embedder


class Scores:
    """A validation with known scores; remembers the weights and depths it was asked with."""

    def __init__(self, collection, embedder, *scores):
        self.validation = Validation(collection, embedder, 64)
        self.queries, self.query_tokens = self.validation.queries, self.validation.query_tokens
        self.scores = list(scores)
        self.depths = []
        self.seen = []

    def score(self, embedder, depths, index):
        self.depths.append(depths.tolist())
        projections = (embedder.maw.depth_query_proj, embedder.maw.depth_key_proj)
        self.seen.append([projection.weight.detach().clone() for projection in projections])
        return self.scores.pop(0)


def trained(collection, embedder, settings, validation=None):
    """Train the depths in place; the best epoch."""
    documents = embedder.encode_documents(collection.doc_texts)
    judge = Validation(collection, embedder, 64)
    index = judge.index(documents)
    pairs = pairs_of([collection], embedder)
    return train_depths(embedder, pairs, documents, validation or judge, index, settings)


def copies(embedder):
    return {name: tensor.detach().clone() for name, tensor in embedder.tensors().items()}


def changed(before, embedder):
    tensors = embedder.tensors()
    return {name for name in before if not torch.equal(before[name], tensors[name])}


def blocks(weight):
    return weight.view(-1, 256, 256)


# --- weights ---------------------------------------------------------------------------------


def test_weights_by_hand():
    # Temperatures 1/4 and 4: what both have in common counts twice and half.
    weights = DepthWeights(torch.tensor([0.25, 4.0]))
    common, own = torch.tensor([[3.0]]), torch.tensor([[[1.0]], [[-1.0]]])
    assert weights(common, own).tolist() == [[8.0], [1.0]]
    common, own = weights.right_inverse(torch.tensor([[8.0], [1.0]]))
    assert (common.tolist(), own.tolist()) == ([[4.0]], [[[0.0]], [[-2.0]]])


# --- the loss --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("relevant", "temperature", "expected"),
    [
        # Scores 1, 0 and 0 of the first query, 0, 1 and 0 of the second: log(1 + 2 / e).
        ([[1, 0, 0], [0, 1, 0]], 1.0, 0.551445),
        # The same divided by .5: log(1 + 2 / e^2).
        ([[1, 0, 0], [0, 1, 0]], 0.5, 0.239545),
        # Wrong ones are relevant: log(e + 2).
        ([[0, 1, 0], [1, 0, 0]], 1.0, 1.551445),
        # Two relevant documents: the mass of both, log((e + 2) / (e + 1)) = .238183, and all of it.
        ([[1, 1, 0], [1, 1, 1]], 1.0, 0.119091),
    ],
)
def test_loss_by_hand(relevant, temperature, expected):
    queries, documents = torch.eye(3)[:2], torch.eye(3)
    loss = listwise_loss(queries, documents, torch.tensor(relevant).bool(), temperature)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_queries_are_ranked_among_the_documents_relevant_to_any_of_them(tiny, embedder):
    pairs = pairs_of([tiny], embedder)
    pairs = pairs._replace(queries=pairs.queries[:3], relevant=[[9, 4], [7], [4]])
    documents = torch.arange(30.0)[:, None]
    judged = judged_queries(pairs.queries, documents, pairs)
    assert judged.documents.tolist() == [[4.0], [7.0], [9.0]]
    assert judged.relevant == [[2, 0], [1], [0]]


def test_of_too_many_documents_some_are_drawn_and_the_relevant_ones_kept(tiny, embedder):
    pairs = pairs_of([tiny], embedder)
    documents = embedder.encode_documents(tiny.doc_texts)
    judged = judged_queries(pairs.queries, documents, pairs)
    assert judged.documents.shape == (10, 256)
    depth = torch.tensor([0, 2])

    def loss(rows, most, seed=0):
        generator = torch.Generator().manual_seed(seed)
        settings = TrainingSettings(depth_negatives=most)
        with torch.no_grad():
            return depth_loss(embedder, judged, rows, depth, settings, generator).item()

    queries = embedder.encode_ids([pairs.queries[3], pairs.queries[8]], depth)
    scores = queries @ judged.documents.T / 0.05
    expected = -scores.log_softmax(1)[[0, 1], [3, 8]].mean().item()
    assert loss([3, 8], 10) == loss([3, 8], 10**6) == pytest.approx(expected, abs=1e-5)
    # One document drawn and two relevant ones: at least two are ranked, at most three.
    few = {loss([3, 8], 1, seed) for seed in range(20)}
    assert len(few) > 5
    assert max(few) < expected


# --- depths at their temperatures ------------------------------------------------------------


def test_depths_start_from_the_standard_attention_at_their_temperatures(tiny, embedder):
    assert temperatures(3).tolist() == [0.125, 1.0, 8.0]
    scores = Scores(tiny, embedder, 0.5, 0.4, 0.3)
    best = trained(tiny, embedder, QUICK, scores)
    assert (best.score, best.epoch) == (0.5, 0)
    for weight, standard in zip(
        scores.seen[0], (embedder.encoder.query_proj, embedder.encoder.key_proj), strict=True
    ):
        for block, temperature in zip(blocks(weight), (0.125, 1.0, 8.0), strict=True):
            expected = standard.weight / math.sqrt(temperature)
            assert torch.allclose(block, expected, atol=1e-6)
    # Epoch 0 was the best one: its weights are left.
    for weight, name in zip(scores.seen[0], sorted(PROJECTIONS, reverse=True), strict=True):
        assert torch.equal(embedder.tensors()[name], weight)
    assert not torch.equal(scores.seen[1][0], scores.seen[0][0])


def test_depths_are_judged_in_turn(tiny, embedder):
    scores = Scores(tiny, embedder, 0.1, 0.2, 0.3)
    assert trained(tiny, embedder, QUICK, scores).epoch == 2
    assert scores.depths == [[0, 1, 2, 0, 1]] * 3


def test_nothing_but_the_depths_is_trained(puzzle, embedder):
    before = copies(embedder)
    best = trained(puzzle, embedder, QUICK)
    assert best.epoch > 0
    assert changed(before, embedder) == PROJECTIONS
    assert not any(weight.requires_grad for weight in embedder.encoder.parameters())
    assert type(embedder.maw.depth_query_proj) is torch.nn.Linear


def test_training_learns_arbitrary_pairs_and_keeps_the_order(puzzle, embedder):
    settings = TrainingSettings(depth_epochs=8, batch_size=6)
    documents = embedder.encode_documents(puzzle.doc_texts)
    pairs = pairs_of([puzzle], embedder)
    judged = judged_queries(pairs.queries, documents, pairs)

    def loss(depth):
        depths = torch.full((24,), depth)
        with torch.no_grad():
            return depth_loss(
                embedder, judged, list(range(24)), depths, settings, torch.Generator()
            ).item()

    embedder.maw.depths_from_standard(temperatures(3))
    before = [loss(depth) for depth in range(3)]
    trained(puzzle, embedder, settings)
    after = [loss(depth) for depth in range(3)]
    assert all(a < b - 0.1 for a, b in zip(after, before, strict=True))
    batches = embedder.query_statistics(pairs.queries)
    entropy = torch.cat([statistics.entropy for _, statistics, _ in batches]).mean(0).tolist()
    assert entropy == sorted(entropy)
    assert entropy[2] - entropy[0] > 0.5


def test_a_depth_learns_what_all_have_in_common_and_its_own(tiny, embedder):
    two = tiny._replace(splits={**tiny.splits, "encoder": tiny.splits["encoder"].select(range(2))})
    settings = TrainingSettings(depth_epochs=1, batch_size=2, weight_decay=0.0)
    scores = Scores(tiny, embedder, 0.0, 1.0)
    trained(two, embedder, settings, scores)
    # Two queries meet two of three depths at most. AdamW's first step is as long as the learning
    # rate: of a tenth in what is a depth's own, beside what the depths have in common.
    for before, after in zip(scores.seen[0], scores.seen[1], strict=True):
        moves = (blocks(after) - blocks(before)) * temperatures(3).sqrt()[:, None, None]
        sizes = sorted(moves.abs().amax((1, 2)).tolist())
        assert 1e-3 < sizes[0] < 1e-2
        assert sizes[2] == pytest.approx(1.1 * sizes[0], rel=0.01)


def test_the_seed_decides(tiny):
    def result(seed):
        embedder = untrained_embedder(tiny.doc_texts, SHAPE)
        settings = replace(QUICK, depth_epochs=1, batch_size=4, seed=seed)
        trained(tiny, embedder, settings, Scores(tiny, embedder, 0, 1))
        return copies(embedder)

    torch.manual_seed(1)
    first = result(0)
    torch.manual_seed(2)
    again, other = result(0), result(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in PROJECTIONS)


def test_a_single_depth_is_trained_in_the_same_stage(puzzle):
    embedder = untrained_embedder(puzzle.doc_texts, EncoderSettings(depths=1))
    before = copies(embedder)
    scores = Scores(puzzle, embedder, 0.1, 0.2, 0.3)
    assert trained(puzzle, embedder, QUICK, scores).epoch == 2
    assert scores.depths[0] == [0] * 24
    # It starts from the standard attention itself.
    for weight, name in zip(scores.seen[0], ("query_proj", "key_proj"), strict=True):
        assert torch.allclose(weight, before[f"{name}.weight"], atol=1e-6)
    assert changed(before, embedder) == PROJECTIONS


def test_a_loss_that_is_not_finite_stops_training(tiny, embedder):
    scores = Scores(tiny, embedder, 0.0)
    documents = embedder.encode_documents(tiny.doc_texts)
    index = scores.validation.index(documents)
    with torch.no_grad():
        embedder.encoder.norm.weight[0] = math.nan
    pairs = pairs_of([tiny], embedder)
    with pytest.raises(FloatingPointError, match=r"^loss nan in epoch 1 of training depths; low"):
        train_depths(embedder, pairs, documents, scores, index, QUICK)


def test_depths_need_a_maw_encoder_and_can_do_without_queries(tiny, embedder):
    plain = untrained_embedder(tiny.doc_texts, EncoderSettings(depths=0))
    with pytest.raises(InputError, match="NON-MAW"):
        trained(tiny, plain, QUICK)
    none = QuerySet((), (), ())
    empty = tiny._replace(splits={**tiny.splits, "encoder": none})
    before = copies(embedder)
    assert trained(empty, embedder, QUICK).epoch == 0
    assert changed(before, embedder) == PROJECTIONS  # at their temperatures, without the noise
