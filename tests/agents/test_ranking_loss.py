import math

import numpy as np
import pytest
import torch

from agents.ranking_loss import RankingLoss, one_hot_choice, ranking_loss, straight_through
from maw_gym.tables.task import RetrievalTask

DEPTHS = 4


def test_one_hot_choice_has_the_gradient_of_the_softmax() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]], requires_grad=True)
    choice = one_hot_choice(logits, 1.0)
    assert choice.tolist() == [[0.0, 1.0]]
    (choice @ torch.tensor([1.0, 0.0])).sum().backward()
    # softmax (1/4, 3/4); d soft_0 / d logits = soft_0 (1 - soft_0), -soft_0 soft_1
    np.testing.assert_allclose(logits.grad, [[0.1875, -0.1875]], rtol=1e-6)


def test_one_hot_choice_at_another_temperature() -> None:
    logits = torch.tensor([[0.0, 2 * math.log(3.0)]], requires_grad=True)
    one_hot_choice(logits, 2.0)[0, 0].backward()
    # The same softmax as above, and a factor 1 / temperature.
    np.testing.assert_allclose(logits.grad, [[0.09375, -0.09375]], rtol=1e-6)


def test_straight_through_samples_the_softmax() -> None:
    logits = torch.tensor([math.log(0.2), math.log(0.3), math.log(0.5)]).repeat(20_000, 1)
    choice = straight_through(logits, 0.7, torch.Generator().manual_seed(0))
    assert set(choice.sum(1).tolist()) == {1.0}
    np.testing.assert_allclose(choice.mean(0), [0.2, 0.3, 0.5], atol=0.015)


def test_straight_through_draws_from_its_generator() -> None:
    logits = torch.zeros(50, 8)
    first, again, other = (
        straight_through(logits, 1.0, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_ranking_loss_by_hand() -> None:
    embeddings = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    documents = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    relevant = torch.tensor([[True, False]])
    wrong, right = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    # Depth 1 scores the documents (0, 1), depth 0 scores them (1, 0): log(1 + e), log(1 + 1/e).
    loss = ranking_loss(wrong, embeddings, documents, relevant, 1.0)
    assert loss.item() == pytest.approx(1.313262, abs=1e-6)
    loss = ranking_loss(right, embeddings, documents, relevant, 1.0)
    assert loss.item() == pytest.approx(0.313262, abs=1e-6)
    # Temperature 1/2 doubles the scores: log(1 + e^2).
    loss = ranking_loss(wrong, embeddings, documents, relevant, 0.5)
    assert loss.item() == pytest.approx(2.126928, abs=1e-6)
    # Both relevant: nothing to lose.
    loss = ranking_loss(wrong, embeddings, documents, torch.tensor([[True, True]]), 1.0)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


def test_ranking_loss_is_a_mean_over_queries() -> None:
    embeddings = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).repeat(2, 1, 1)
    choice = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    relevant = torch.tensor([[True, False], [True, False]])
    loss = ranking_loss(choice, embeddings, torch.eye(2), relevant, 1.0)
    assert loss.item() == pytest.approx((1.313262 + 0.313262) / 2, abs=1e-6)


def test_ranking_loss_pushes_towards_the_depth_that_retrieves() -> None:
    logits = torch.zeros(1, 2, requires_grad=True)
    embeddings = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    relevant = torch.tensor([[True, False]])
    ranking_loss(one_hot_choice(logits, 1.0), embeddings, torch.eye(2), relevant, 1.0).backward()
    # Depth 0 is chosen, scores (1, 0), p = e / (e + 1); d loss / d score = (p - 1, 1 - p); of the
    # weights the same; softmax (1/2, 1/2) gives -(1 - p) / 2 and (1 - p) / 2.
    half = (1 - math.e / (math.e + 1)) / 2
    np.testing.assert_allclose(logits.grad, [[-half, half]], rtol=1e-5)


def test_ranking_loss_over_all_documents_is_the_tables_listwise_mass(task: RetrievalTask) -> None:
    generator = torch.Generator().manual_seed(0)
    loss = RankingLoss(task, 3000, generator)  # 30 documents, so all are drawn
    table = task.table("train")
    for depth in range(DEPTHS):
        choice = torch.eye(DEPTHS)[depth].repeat(len(table), 1)
        expected = -np.log(table.listwise[:, depth]).mean()
        found = loss(torch.arange(len(table)), choice)
        assert found.item() == pytest.approx(expected, rel=1e-4)


def test_ranking_loss_of_many_queries_holds_some_of_them(
    task: RetrievalTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.ranking_loss.MOST_QUERIES", 2)
    loss = RankingLoss(task, 3000, torch.Generator().manual_seed(0))
    assert len(loss.embeddings) == 2
    held = (loss.place >= 0).nonzero()[:, 0]
    others = (loss.place < 0).nonzero()[:, 0]
    choice = torch.eye(DEPTHS)[0].repeat(len(loss.place), 1).requires_grad_()
    assert loss(others, choice[others]).item() == 0.0
    expected = -np.log(task.table("train").listwise[held.numpy(), 0]).mean()
    every = torch.arange(len(loss.place))
    assert loss(every, choice).item() == pytest.approx(expected, rel=1e-4)


def test_more_negatives_than_documents_are_all_documents(task: RetrievalTask) -> None:
    """A hundred million were drawn, whatever the collection: 5 GB of memory."""
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    losses = [
        RankingLoss(task, negatives, generator)(torch.arange(2), torch.eye(DEPTHS)[:2]).item()
        for negatives in (30, 10**12)
    ]
    assert losses[0] == losses[1]
    assert torch.equal(generator.get_state(), before)
