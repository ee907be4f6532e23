import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from tiny_collection import PAIRS
from torch import nn

from maw_gym.corpora.collection import QuerySet
from maw_gym.encoders.embedder import Embedder, untrained_embedder
from maw_gym.encoders.maw import EncoderSettings
from maw_gym.encoders.text import WordLlama
from maw_gym.encoders.training import losses, stages
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.encoders.training.stages import (
    Validation,
    batches,
    contrastive_loss,
    pairs_of,
    train_attention,
)

SHAPE = EncoderSettings(depths=3)
QUICK = TrainingSettings(epochs=2, batch_size=12)


class Told:
    """A validation of scores told in advance; remembers the weights it saw."""

    def __init__(self, *scores):
        self.scores = list(scores)
        self.seen = []

    def score(self, embedder):
        self.seen.append({n: t.detach().clone() for n, t in embedder.tensors().items()})
        return self.scores.pop(0)


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
    return untrained_embedder(tiny.doc_texts, SHAPE)


def copies(embedder):
    return {name: tensor.detach().clone() for name, tensor in embedder.tensors().items()}


def equal(some, others):
    return {name for name in some if torch.equal(some[name], others[name])}


# --- pairs -----------------------------------------------------------------------------------


def test_pairs_of_two_collections(tiny, embedder):
    queries = QuerySet(
        ("a", "b", "c", "d"),
        ("bread", "", "honey", "bees"),
        ({"x": 1, "y": 2, "z": 1}, {"x": 1}, {"y": 0, "z": 1}, {"z": 1, "x": 3}),
    )
    other = tiny._replace(
        doc_ids=("x", "y", "z"),
        doc_texts=("one", "two", " "),
        splits={**tiny.splits, "encoder": queries},
    )
    pairs = pairs_of([tiny, other], embedder)
    count = len(tiny.splits["encoder"].ids)
    # z has no token, query b neither; c has no other relevant document. x is document 30, y 31.
    assert pairs.relevant == [
        *([int(query_id[1:])] for query_id in tiny.splits["encoder"].ids),
        [30, 31],
        [30],
    ]
    assert len(pairs.documents) == 33
    assert pairs.documents[30:] == [*embedder.text.tokenize(["one", "two"]), []]
    assert pairs.queries[count:] == embedder.text.tokenize(["bread", "bees"])


def test_a_collection_without_an_encoder_split(tiny_folder, tiny, embedder):
    empty = tiny._replace(splits={**tiny.splits, "encoder": QuerySet((), (), ())})
    pairs = pairs_of([empty], embedder)
    assert (pairs.queries, pairs.relevant, len(pairs.documents)) == ([], [], 30)


# --- the loss --------------------------------------------------------------------------------

EYE = torch.eye(2)


@pytest.mark.parametrize(
    ("documents", "which", "temperature", "expected"),
    [
        # Right answers score 1, wrong ones 0: log(1 + e^-1).
        (EYE, [5, 6], 1.0, 0.313262),
        # The same divided by .5: log(1 + e^-2).
        (EYE, [5, 6], 0.5, 0.126928),
        # The wrong way round: log(1 + e).
        (EYE.flip(0), [5, 6], 1.0, 1.313262),
        # Both documents are [1, 0]. Rows tie at log 2; of the columns (1, 0) the first has
        # log(1 + e^-1) and the second log(1 + e): ((.693147) + (.813262)) / 2.
        (torch.tensor([[1.0, 0.0], [1.0, 0.0]]), [5, 6], 1.0, 0.753204),
        # But where they are the same document, it is not its own negative.
        (torch.tensor([[1.0, 0.0], [1.0, 0.0]]), [5, 5], 1.0, 0.0),
    ],
)
def test_loss_of_two_pairs_by_hand(documents, which, temperature, expected):
    loss = contrastive_loss(EYE, documents, torch.tensor(which), temperature)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_twins_are_left_out_of_each_others_negatives_only():
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    # Rows 0 and 2 see themselves and row 1: log(1 + e^-1) = .313262. Row 1 sees all three:
    # log(1 + 2 e^-1) = .551445.
    loss = contrastive_loss(vectors, vectors, torch.tensor([8, 9, 8]), 1.0)
    assert loss.item() == pytest.approx((0.313262 * 2 + 0.551445) / 3, abs=1e-6)


def test_twins_have_no_gradient_nan():
    queries = torch.eye(3)[:2].requires_grad_()
    contrastive_loss(queries, torch.eye(3)[[0, 0]], torch.tensor([1, 1]), 0.05).backward()
    assert queries.grad.tolist() == [[0.0] * 3] * 2


# --- batches ---------------------------------------------------------------------------------


def test_an_epoch_sees_every_query_once_with_a_relevant_document(tiny, embedder):
    pairs = pairs_of([tiny], embedder)
    pairs = pairs._replace(relevant=[[row, row + 1, row + 2] for row in range(10)])
    drawn = set()
    for _ in range(8):
        seen = []
        generator = torch.Generator().manual_seed(len(drawn))
        drawings = list(batches(pairs, 4, 1.0, generator))
        assert [len(rows) for rows, _ in drawings] == [4, 4, 2]
        for rows, documents in drawings:
            seen += rows.tolist()
            for row, document in zip(rows.tolist(), documents, strict=True):
                drawn.add(document - row)
        assert sorted(seen) == list(range(10))
    assert drawn == {0, 1, 2}


# --- training --------------------------------------------------------------------------------


def test_training_learns_arbitrary_pairs(puzzle, embedder):
    pairs, validation = pairs_of([puzzle], embedder), Validation(puzzle, embedder, 64)
    before, weights = validation.score(embedder), copies(embedder)
    best = train_attention(embedder, pairs, validation, TrainingSettings(epochs=6, batch_size=12))
    assert before < 0.3
    assert best.score > 0.9
    assert validation.score(embedder) == best.score
    assert 1 <= best.epoch <= 6
    # The depths and the packaged token embeddings have no part in the first stage.
    kept = equal(weights, copies(embedder))
    assert kept == {"depth_query_proj.weight", "depth_key_proj.weight"}


def test_training_lowers_the_loss(puzzle, embedder):
    pairs = pairs_of([puzzle], embedder)

    def loss():
        queries = embedder.encode_ids(pairs.queries)
        documents = embedder.encode_ids([pairs.documents[at] for (at,) in pairs.relevant])
        return contrastive_loss(queries, documents, torch.arange(24), 0.05).item()

    before = loss()
    train_attention(embedder, pairs, Told(0.0, 0.1, 0.2), QUICK)
    assert loss() < before - 0.5


@pytest.mark.parametrize(
    ("scores", "epoch"),
    [
        ((0.5, 0.4, 0.3), 0),
        ((0.5, 0.6, 0.3), 1),
        ((0.5, 0.4, 0.6), 2),
        ((0.5, 0.5, 0.5), 0),  # of equal ones the earliest
        ((0.0, 0.0, 0.0), 0),
    ],
)
def test_the_best_epoch_is_restored(tiny, embedder, scores, epoch):
    told = Told(*scores)
    best = train_attention(embedder, pairs_of([tiny], embedder), told, QUICK)
    assert (best.score, best.epoch) == (scores[epoch], epoch)
    assert told.scores == []
    assert equal(told.seen[epoch], embedder.tensors()) == set(embedder.tensors())
    assert equal(told.seen[epoch], best.weights) == set(best.weights)
    other = told.seen[2 if epoch < 2 else 0]
    assert "query_proj.weight" not in equal(other, embedder.tensors())


@pytest.mark.parametrize(("epochs", "batch_size"), [(1, 64), (1, 5), (2, 2), (5, 5), (10, 64)])
def test_any_number_of_steps(tiny, embedder, epochs, batch_size):
    """1, 2, 10, 10 and 10 steps: OneCycleLR divides by zero where a tenth of them is one."""
    told = Told(*range(epochs + 1))
    settings = TrainingSettings(epochs=epochs, batch_size=batch_size)
    assert train_attention(embedder, pairs_of([tiny], embedder), told, settings).epoch == epochs
    weights = [seen["out_proj.weight"] for seen in told.seen]
    assert not torch.equal(weights[0], weights[1])


def test_no_epoch_and_no_pair_change_nothing(tiny, embedder):
    pairs = pairs_of([tiny], embedder)
    before = copies(embedder)
    none = pairs._replace(queries=[], relevant=[])
    for some, settings in ((pairs, TrainingSettings(epochs=0)), (none, QUICK)):
        best = train_attention(embedder, some, Told(0.25), settings)
        assert (best.score, best.epoch) == (0.25, 0)
        assert equal(before, embedder.tensors()) == set(before)


def test_the_seed_decides(tiny):
    def trained(seed):
        embedder = untrained_embedder(tiny.doc_texts, SHAPE)
        settings = TrainingSettings(epochs=1, batch_size=4, seed=seed)
        train_attention(embedder, pairs_of([tiny], embedder), Told(0, 1), settings)
        return copies(embedder)

    torch.manual_seed(1)
    first = trained(0)
    torch.manual_seed(2)
    assert equal(first, trained(0)) == set(first)
    assert not equal(first, trained(1)) & {"query_proj.weight", "out_proj.weight", "token_weight"}


def test_token_embeddings_are_trained_where_they_are_asked_for(tiny, embedder):
    table = nn.Parameter(WordLlama().embedding.clone())
    embedder = Embedder(WordLlama(table), embedder.encoder)
    pairs = pairs_of([tiny], embedder)
    told = Told(0.1, 0.3, 0.2)
    best = train_attention(embedder, pairs, told, QUICK)
    assert best.epoch == 1
    assert torch.equal(embedder.text.embedding, told.seen[1]["text.embedding"])
    moved = (embedder.text.embedding != WordLlama().embedding).any(1).nonzero()[:, 0].tolist()
    used = {token for ids in pairs.queries for token in ids}
    used |= {token for (at,) in pairs.relevant for token in pairs.documents[at]}
    assert set(moved) == used


def test_a_loss_that_is_not_finite_stops_training(tiny, embedder):
    with torch.no_grad():
        embedder.encoder.norm.weight[0] = math.nan
    with pytest.raises(
        FloatingPointError, match=r"^loss nan in epoch 1 of training attention; low"
    ):
        train_attention(embedder, pairs_of([tiny], embedder), Told(0.0), QUICK)


def test_a_loss_that_is_not_finite_is_noticed_a_step_later(tiny, embedder, monkeypatch):
    steps = []

    def losses(self_embedder, pairs, settings, generator):
        weight = self_embedder.encoder.norm.weight

        def loss(step):
            steps.append(step)
            return (weight * (math.nan if step == 2 else 1.0)).sum()

        return (partial(loss, step) for step in range(1, 9))

    monkeypatch.setattr(stages, "_attention_losses", losses)
    with pytest.raises(FloatingPointError, match="loss nan in epoch 1"):
        train_attention(embedder, pairs_of([tiny], embedder), Told(0.0), replace(QUICK, epochs=4))
    assert steps == [1, 2, 3]


def test_a_gpu_encodes_documents_in_fewer_groups():
    def groups(texts, device, recompute=False):
        text = SimpleNamespace(recompute=recompute)
        return losses._groups_of(texts, SimpleNamespace(device=torch.device(device), text=text))

    texts = [[7] * 1024] * 512
    assert groups(texts[:2], "cpu") == 4
    assert [groups(texts[:n], "cuda") for n in (2, 255, 256, 512)] == [1, 1, 2, 4]
    assert groups(texts * 4, "cuda") == 4
    # Padding counts: without groups the short ones would be as long as the longest.
    assert groups([[7]] * 511 + texts[:1], "cuda") == 4
    # What is computed again is held group by group.
    assert groups(texts[:2], "cuda", recompute=True) == 4


def test_texts_are_cut_in_training(tiny, embedder):
    lengths = []
    embed = embedder.encoder.embed

    def noted(ids, *rest):
        lengths.append(ids.shape[1])
        return embed(ids, *rest)

    embedder.encoder.embed = noted
    settings = TrainingSettings(epochs=1, batch_size=64, query_tokens=3, document_tokens=9)
    train_attention(embedder, pairs_of([tiny], embedder), Told(0.0, 1.0), settings)
    assert lengths == [3, 9, 9, 9, 9]
