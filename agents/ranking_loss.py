"""What the choice of a depth retrieves, as a loss with a gradient.

Notation: N training queries, B of one batch, D depths, h embedding width, M documents of one step.
"""

from typing import Final

import torch
from torch import Tensor, nn

from maw_gym.encoders.training.stages import listwise_loss
from maw_gym.retrieval.ranking import TEMPERATURE
from maw_gym.tables.task import RetrievalTask

# Every depth's embedding of these many queries is held: 0.5 GB with 32 depths of 256 numbers.
MOST_QUERIES: Final = 16_384


def straight_through(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """A sampled choice (B, D), one-hot, with the gradient of the Gumbel-softmax."""
    noise = -torch.empty(logits.shape).exponential_(generator=generator).log()
    return one_hot_choice(logits + noise.to(logits.device), temperature)


def one_hot_choice(logits: Tensor, temperature: float) -> Tensor:
    """One-hot argmax of logits (B, D), whose gradient is that of softmax(logits / temperature)."""
    soft = (logits / temperature).softmax(-1)
    hard = nn.functional.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
    return hard + (soft - soft.detach())  # in this order the sum is exactly one-hot


def ranking_loss(
    choice: Tensor, embeddings: Tensor, documents: Tensor, relevant: Tensor, temperature: float
) -> Tensor:
    """The listwise loss of the chosen depth's embedding, over the documents of one step."""
    chosen = torch.einsum("bd,bdh->bh", choice, embeddings)
    return listwise_loss(chosen, documents, relevant, temperature)


class RankingLoss:
    """The ranking loss of training queries against their relevant and some other documents."""

    def __init__(self, task: RetrievalTask, negatives: int, generator: torch.Generator) -> None:
        self.negatives = negatives
        self.generator = generator
        self.index = task.index
        queries = task.collection.splits["train"]
        self.first_of = torch.from_numpy(task.index.first_of)
        self.relevant = [
            self.first_of[one.documents].unique() for one in task.index.relevant(queries)
        ]
        count = len(queries.ids)
        rows = torch.arange(count)
        if count > MOST_QUERIES:
            rows = torch.randperm(count, generator=generator)[:MOST_QUERIES].sort().values
        self.place = torch.full((count,), -1)  # (N,) row in the embeddings, -1 without
        self.place[rows] = torch.arange(len(rows))
        texts = [queries.texts[row] for row in rows.tolist()]
        self.embeddings = depth_embeddings(task, texts)

    def __call__(self, rows: Tensor, choice: Tensor) -> Tensor:
        """Mean loss of the queries `rows` (B,) under their choices (B, D); 0 of no query."""
        place = self.place[rows.cpu()]
        held = (place >= 0).nonzero()[:, 0]
        if not len(held):
            return choice.sum() * 0
        device = choice.device
        relevant = [self.relevant[row] for row in rows.cpu()[held].tolist()]
        total = len(self.index)
        drawn = self.first_of  # all, where a sample would be no fewer
        if self.negatives < total:
            drawn = drawn[torch.randint(total, (self.negatives,), generator=self.generator)]
        documents = torch.cat([*relevant, drawn]).unique()
        judged = torch.zeros(len(relevant), len(documents), dtype=torch.bool)
        for row, found in enumerate(relevant):
            judged[row, torch.searchsorted(documents, found)] = True
        return ranking_loss(
            choice[held.to(device)],
            self.embeddings[place[held].to(device)],
            self.index.vectors[documents.to(device)],
            judged.to(device),
            TEMPERATURE,
        )


@torch.no_grad()
def depth_embeddings(task: RetrievalTask, texts: list[str]) -> Tensor:
    """Embeddings (N, D, h) of queries through every depth, on the task's device."""
    embedder = task.embedder
    shape = (len(texts), embedder.maw.depths, embedder.text.width)
    result = torch.zeros(shape, device=task.device)
    label = "embeddings of all depths"
    for rows, statistics in embedder.query_statistics(embedder.query_ids(texts), progress=label):
        result[rows] = statistics.embeddings.float()
    return result
