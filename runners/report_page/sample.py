"""Some test queries seen through every depth: attention, terms of the reward, first documents.

Notation: N test queries, D depths, H heads, n tokens of one query.
"""

import base64
import gzip
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from maw_gym.attention.reference import attention_weights, split_heads
from maw_gym.envs.bandit import Bandit
from maw_gym.retrieval.documents import Relevant
from maw_gym.retrieval.ranking import rankings_of_depths
from maw_gym.retrieval.search import rank
from maw_gym.tables.task import RetrievalTask

SHOWN: Final = 10  # documents of each ranking
ATTENTION_BYTES: Final = 7_000_000  # of all queries' attention, as it stands in the page
QUERY_CHARACTERS: Final = 1_000
DOCUMENT_CHARACTERS: Final = 600
TOKEN_CHARACTERS: Final = 40
ID_CHARACTERS: Final = 200

Integers = NDArray[np.int64]


def sampled_queries(ndcg: NDArray[np.float32], count: int) -> Integers:
    """Rows of at most `count` queries: half where depths differ most in nDCG, half evenly
    spread.
    """
    rows = len(ndcg)
    differ = (ndcg.min(1) - ndcg.max(1)).argsort(kind="stable")[: (count + 1) // 2]
    others = np.setdiff1d(np.arange(rows), differ)
    places = np.linspace(0, len(others) - 1, min(count // 2, len(others))).round()
    spread = others[places.astype(np.int64)]
    turns = np.full((2, max(len(differ), len(spread))), -1)
    turns[0, : len(differ)], turns[1, : len(spread)] = differ, spread
    taken = turns.T.flatten()
    return taken[taken >= 0]


@torch.no_grad()
def attention_of(task: RetrievalTask, ids: Sequence[int]) -> NDArray[np.float32]:
    """Attention (D + 1, H, n, n) of a query's token ids: that of every depth, then the standard."""
    encoder, text = task.embedder.maw, task.embedder.text
    tokens = torch.tensor([list(ids)], dtype=torch.long, device=task.device)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    hidden = text.hidden(tokens, mask)
    depths = encoder.depth_attention(hidden, mask)[0].movedim(-1, 0)  # (H, n, n, D) to (D, ...)
    x = encoder.norm(hidden)
    query, key = (
        split_heads(projection(x), encoder.heads)
        for projection in (encoder.query_proj, encoder.key_proj)
    )
    standard = attention_weights(query, key, mask)  # (1, H, n, n)
    return torch.cat([depths, standard]).cpu().numpy()


def packed(weights: NDArray[np.float32]) -> str:
    """Weights in [0, 1] as text: bytes 255 sqrt(w), compressed, in base64."""
    numbers = np.rint(255 * np.sqrt(weights.clip(0, 1))).astype(np.uint8)
    return base64.b64encode(gzip.compress(numbers.tobytes(), mtime=0)).decode()


def cut(text: str, characters: int) -> str:
    """The text, or its beginning with a sign that there is more."""
    return text if len(text) <= characters else text[: characters - 1] + "…"


class Sample:
    """What the page shows of single queries."""

    def __init__(
        self,
        task: RetrievalTask,
        bandit: Bandit,
        chosen: Integers,
        count: int,
        limit: int = ATTENTION_BYTES,
    ) -> None:
        self.task = task
        self.bandit = bandit
        self.chosen = chosen
        self.queries = task.collection.splits["test"]
        self._documents: dict[int, int] = {}  # position in the index -> place on the page
        room = limit
        found = []
        for row in sampled_queries(bandit.table.ndcg, count).tolist():
            shown = self._query(row)
            room -= len(shown["attention"])
            if room < 0:
                break
            found.append((row, shown))
        self._found = [shown for _, shown in sorted(found, key=lambda pair: pair[0])]

    def to_json(self) -> dict[str, Any]:
        """`{"of", "queries", "documents"}` as JSON values."""
        ids, texts = self.task.index.doc_ids, self.task.collection.doc_texts
        documents = [
            {"id": cut(ids[one], ID_CHARACTERS), "text": cut(texts[one], DOCUMENT_CHARACTERS)}
            for one in self._documents
        ]
        return {"of": len(self.bandit), "queries": self._found, "documents": documents}

    def _query(self, row: int) -> dict[str, Any]:
        embedder = self.task.embedder
        text = self.queries.texts[row]
        (ids,) = embedder.query_ids([text])
        weights = attention_of(self.task, ids)
        tokens = [cut(token, TOKEN_CHARACTERS) for token in embedder.text.tokens(ids)]
        relevant = self.task.index.relevant(self.queries.select([row]))[0]
        rankings, standard = self._rankings(row, text, relevant)
        terms = {name: column[row] for name, column in self.bandit.terms.items()}
        grades = zip(relevant.documents.tolist(), relevant.grades.tolist(), strict=True)
        return {
            "id": cut(self.queries.ids[row], ID_CHARACTERS),
            "text": cut(text, QUERY_CHARACTERS),
            "tokens": tokens,
            "heads": weights.shape[1],
            "attention": packed(weights),
            "chosen": int(self.chosen[row]),
            "best": int(self.bandit.oracle[row]),
            "terms": {name: rounded(values) for name, values in terms.items()},
            "ndcg": [*rounded(self.bandit.table.ndcg[row]), round(standard, 4)],
            "rankings": rankings,
            "relevant": {str(self._place(one)): grade for one, grade in grades},
        }

    @torch.no_grad()
    def _rankings(
        self, row: int, text: str, relevant: Relevant
    ) -> tuple[list[list[tuple[int, float]]], float]:
        """Documents and cosines through every depth, then the standard; and the latter's nDCG."""
        task, embedder = self.task, self.task.embedder
        depths = torch.arange(embedder.maw.depths)
        embeddings = torch.cat(
            [embedder.encode_queries([text] * len(depths), depths), embedder.encode_queries([text])]
        )
        candidates = task.candidates("test")
        own = None if candidates is None else [candidates[row]]
        ranking = rank(task.index, embeddings, SHOWN, own and own * len(embeddings))
        standard = rankings_of_depths(task.index, embeddings[None, -1:], [relevant], own)
        lists = [
            [
                (self._place(one), round(score, 3))
                for one, score in zip(documents, scores, strict=True)
                if one >= 0
            ]
            for documents, scores in zip(
                ranking.documents.tolist(), ranking.scores.tolist(), strict=True
            )
        ]
        return lists, float(standard.ndcg)

    def _place(self, document: int) -> int:
        return self._documents.setdefault(document, len(self._documents))


def rounded(values: NDArray[Any]) -> list[float]:
    """Numbers to four digits, which is what a page can show."""
    return [round(float(value), 4) for value in values]
