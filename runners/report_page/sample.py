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


@torch.no_grad()
def looked_at(
    task: RetrievalTask, bandit: Bandit, chosen: Integers, count: int, limit: int = ATTENTION_BYTES
) -> dict[str, Any]:
    """What the page shows of single queries: `{"of", "queries", "documents"}` as JSON values.

    Args:
        task: with a MAW encoder.
        bandit: of the test split.
        chosen: a depth for each of its queries (N,).
        count: of queries, at most.
        limit: of characters of their attention, at most.
    """
    embedder, queries = task.embedder, task.collection.splits["test"]
    all_candidates, relevant_documents = task.candidates("test"), task.index.relevant(queries)
    depths = torch.arange(embedder.maw.depths)
    places: dict[int, int] = {}  # from a position in the index to the place on the page
    shown = {}
    for row in sampled_queries(bandit.table.ndcg, count).tolist():
        text, relevant = queries.texts[row], relevant_documents[row]
        (ids,) = embedder.query_ids([text])
        weights = attention_of(task, ids)
        numbers = np.rint(255 * np.sqrt(weights)).astype(np.uint8)
        attention = base64.b64encode(gzip.compress(numbers.tobytes(), 4, mtime=0)).decode()
        limit -= len(attention)
        if limit < 0:
            break
        own = None if all_candidates is None else [all_candidates[row]]
        standard = embedder.encode_queries([text])
        embeddings = torch.cat([embedder.encode_queries([text] * len(depths), depths), standard])
        found = rank(task.index, embeddings, SHOWN, own and own * len(embeddings))
        ndcg = float(rankings_of_depths(task.index, standard[None], [relevant], own).ndcg)
        rankings = [
            [
                (places.setdefault(document, len(places)), round(score, 3))
                for document, score in zip(*of_depth, strict=True)
                if document >= 0
            ]
            for of_depth in zip(found.documents.tolist(), found.scores.tolist(), strict=True)
        ]
        grades = zip(relevant.documents.tolist(), relevant.grades.tolist(), strict=True)
        shown[row] = {
            "id": cut(queries.ids[row], ID_CHARACTERS),
            "text": cut(text, QUERY_CHARACTERS),
            "tokens": [cut(token, TOKEN_CHARACTERS) for token in embedder.text.tokens(ids)],
            "heads": weights.shape[1],
            "attention": attention,
            "chosen": int(chosen[row]),
            "best": int(bandit.oracle[row]),
            "terms": {name: rounded(column[row]) for name, column in bandit.terms.items()},
            "ndcg": [*rounded(bandit.table.ndcg[row]), round(ndcg, 4)],
            "rankings": rankings,
            "relevant": {str(places.setdefault(d, len(places))): grade for d, grade in grades},
        }
    names, texts = task.index.doc_ids, task.collection.doc_texts
    documents = [
        {"id": cut(names[one], ID_CHARACTERS), "text": cut(texts[one], DOCUMENT_CHARACTERS)}
        for one in places
    ]
    return {
        "of": len(bandit),
        "queries": [shown[row] for row in sorted(shown)],
        "documents": documents,
    }


def sampled_queries(ndcg: NDArray[np.float32], count: int) -> Integers:
    """At most `count` rows: half where depths differ most in nDCG, half evenly spread."""
    differ = (ndcg.min(1) - ndcg.max(1)).argsort(kind="stable")[: (count + 1) // 2]
    others = np.setdiff1d(np.arange(len(ndcg)), differ)
    at = np.linspace(0, len(others) - 1, min(count // 2, len(others))).round()
    spread = others[at.astype(np.int64)]
    # By turns, so that some of both are there where the room ends.
    order = np.argsort([*range(len(differ)), *range(len(spread))], kind="stable")
    return np.concatenate([differ, spread])[order]


def attention_of(task: RetrievalTask, ids: Sequence[int]) -> NDArray[np.float32]:
    """Attention (D + 1, H, n, n) of a query's token ids: that of every depth, then the standard."""
    encoder = task.embedder.maw
    tokens = torch.tensor([list(ids)], dtype=torch.long, device=task.device)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    hidden = task.embedder.text.hidden(tokens, mask)
    depths = encoder.depth_attention(hidden, mask)[0].movedim(-1, 0)  # (H, n, n, D) to (D, ...)
    x = encoder.norm(hidden)
    query, key = (
        split_heads(projection(x), encoder.heads)
        for projection in (encoder.query_proj, encoder.key_proj)
    )
    standard = attention_weights(query, key, mask)  # (1, H, n, n)
    return torch.cat([depths, standard]).cpu().numpy()


def cut(text: str, characters: int) -> str:
    """The text, or its beginning with a sign that there is more."""
    return text if len(text) <= characters else text[: characters - 1] + "…"


def rounded(values: NDArray[Any]) -> list[float]:
    """Numbers to four digits, which is what a page can show."""
    return [round(float(value), 4) for value in values]
