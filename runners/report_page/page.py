"""One self-contained HTML file of a run: its table, its curves, and its depths query by query.

It needs no server and no network: markup, style, scripts and data are in it. What a browser does
with it is in assets/.

Notation: N test queries, D depths, H heads, n tokens of one query.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from maw_gym.attention.reference import attention_weights, split_heads
from maw_gym.encoders.files import load_embedder
from maw_gym.envs.bandit import NDCG, TERMS, Bandit, RewardSpec, gap_closed
from maw_gym.errors import InputError
from maw_gym.files import written_whole
from maw_gym.retrieval.ranking import rankings_of_depths
from maw_gym.retrieval.search import rank
from maw_gym.routers.depth_router import load_router
from maw_gym.run import METRICS, Run
from maw_gym.runners.report_page import QUERIES
from maw_gym.tables.task import RetrievalTask, resolve_device

NAME: Final = "report.html"
LARGEST: Final = 10_000_000  # bytes
SCRIPTS: Final = ("base.js", "charts.js", "overview.js", "attention.js", "explorer.js")
MEASURES: Final = ("nDCG@10", "RR@10", "R@100", "Success@10")
POINTS: Final = 400  # of a curve: more than a page has room for
SHOWN: Final = 10  # documents of each ranking
ATTENTION_BYTES: Final = 7_000_000  # of all queries' attention, as it stands in the page
QUERY_CHARACTERS: Final = 1_000
DOCUMENT_CHARACTERS: Final = 600
TOKEN_CHARACTERS: Final = 40
ID_CHARACTERS: Final = 200
# What is drawn first: the title of a tag's chart, and its name where a chart has several.
TERMS_TITLE: Final = "Terms of the reward, training queries"
CHARTS: Final = {
    "eval/reward": ("Mean reward, validation queries", ""),
    "eval/gap_closed": ("Share of the gap from random to oracle closed, validation queries", ""),
    "eval/ndcg@10": ("nDCG@10, validation queries", ""),
    "rollout/ep_rew_mean": ("Mean reward, training queries", ""),
    **{f"reward/{name}": (TERMS_TITLE, name) for name in TERMS},
}
LEFT_OUT: Final = ("time/", "rollout/ep_len_mean", "train/learning_rate")


def write_report_page(
    run_folder: Path, task: RetrievalTask | None = None, queries: int = QUERIES
) -> Path:
    """Write `report.html` into the folder of a finished run."""
    page = rendered(run_payload(run_folder, task, queries))
    path = run_folder / NAME
    with written_whole(path) as temporary:
        temporary.write_text(page, encoding="ascii")
    return path


def rendered(payload: dict[str, Any]) -> str:
    """The page that shows `payload`, in ASCII."""
    assets = files("maw_gym.runners.report_page") / "assets"
    style, page, *scripts = (
        (assets / name).read_text(encoding="utf-8")
        for name in ("style.css", "template.html", *SCRIPTS)
    )
    script = "\n".join(['"use strict";', *scripts])
    parts = {
        "STYLE_HASH": _hash(style),
        "SCRIPT_HASH": _hash(script),
        "STYLE": style,
        "SCRIPT": script,
        "DATA": data_block(payload),
    }
    for name, content in parts.items():
        before, after = page.split(f"[[{name}]]")
        page = before + content + after
    if len(page) > LARGEST:
        raise InputError(f"the page would have {len(page)} bytes, more than {LARGEST}")
    return page


def data_block(payload: Any) -> str:
    """JSON that holds neither `<`, `>` nor `&`, and nothing outside ASCII."""
    text = json.dumps(payload, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _hash(content: str) -> str:
    """What a content security policy calls an inline block by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


# --- what it shows ---------------------------------------------------------------------------


def run_payload(
    folder: Path, task: RetrievalTask | None = None, queries: int = QUERIES
) -> dict[str, Any]:
    """Everything the page shows of a run, as JSON values."""
    run = Run(folder)
    settings, learner = run.settings, str(run.config.get("learner") or "router")
    metrics = run.metrics
    try:
        table = _table(metrics, learner)
        data_block(table)  # refuses numbers that are none
    except (AttributeError, TypeError, ValueError) as problem:
        raise InputError(f"{folder / METRICS} is not that of a run ({problem})") from None
    router = load_router(folder / "router.safetensors")
    reward = RewardSpec(
        settings.get("reward_weights", RewardSpec.weights),
        settings.get("alignment", RewardSpec.alignment),
    )
    if task is None:
        collection, device = run.collection(), resolve_device(str(settings.get("device", "auto")))
        embedder, provenance = load_embedder(folder / "encoder.safetensors")
        task = RetrievalTask(collection, embedder, device, provenance)
    test, train = (Bandit(task.table(split), reward=reward) for split in ("test", "train"))
    chosen = router.to(task.device).predict(test.table.observation(router.observation))[0]
    values = {**test.terms, "nDCG@10": test.table.ndcg}
    return {
        "run": {
            "name": folder.resolve().name,
            "learner": learner,
            "dataset": task.collection.name,
            "queries": len(test),
            "weights": list(reward.weights),
            "alignment": reward.alignment,
            "settings": [list(pair) for pair in _lines(run.config)],
        },
        "table": table,
        "curves": _charts(run.scalars(), _levels(task, reward)),
        "depths": {
            "profile": {name: rounded(column.mean(0)) for name, column in test.terms.items()},
            "ndcg": rounded(test.table.ndcg.mean(0)),
            "intervals": {
                name: rounded(1.96 * column.std(0) / np.sqrt(len(test)))
                for name, column in values.items()
            },
            "chosen": np.bincount(chosen, minlength=test.num_depths).tolist(),
            "best": np.bincount(test.oracle, minlength=test.num_depths).tolist(),
            "best_fixed": train.best_fixed() if len(train) else None,
        },
        "sample": looked_at(task, test, chosen, queries),
    }


def _table(metrics: Mapping[str, Any], learner: str) -> dict[str, Any]:
    """The run's table: rows `{"name", "own", "values"}`, the learner's above the upper bounds."""
    rows = metrics.get("baselines") or {}
    bounds = {name: row for name, row in rows.items() if "upper bound" in name}
    others = {name: row for name, row in rows.items() if name not in bounds}
    found = []
    for name, row in (others | {learner: metrics} | bounds).items():
        reward, retrieval = (row.get(part) or {} for part in ("reward", "retrieval"))
        values = [reward.get("mean"), reward.get("gap_closed"), *map(retrieval.get, MEASURES)]
        found.append({"name": name, "own": row is metrics, "values": values})
    return {"columns": ["reward", "gap closed", *MEASURES], "rows": found}


def _levels(task: RetrievalTask, reward: RewardSpec) -> dict[str, list[dict[str, Any]]]:
    """What chance, the best fixed depth and the oracle get on validation queries, by tag."""
    levels = {}
    for tag, spec in (("eval/reward", reward), ("eval/ndcg@10", NDCG)):
        train, validation = (Bandit(task.table(s), reward=spec) for s in ("train", "validation"))
        if len(train) and len(validation):
            found = validation.summary(validation.oracle)
            known = {"random depth": found.random, "oracle": found.oracle}
            known["best fixed depth"] = validation.mean(train.best_fixed())
            levels[tag] = [{"name": name, "y": round(y, 4)} for name, y in known.items()]
            if spec == reward and found.gap_closed is not None:
                shares = {n: gap_closed(y, found.random, found.oracle) for n, y in known.items()}
                levels["eval/gap_closed"] = [{"name": n, "y": y} for n, y in shares.items()]
    return levels


def _charts(
    scalars: Mapping[str, Mapping[int, float]], levels: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Charts `{"title", "curves", "levels"}` of all that was logged, the important ones first."""
    charts: dict[str, dict[str, Any]] = {}
    for tag in dict.fromkeys([*CHARTS, *scalars]):
        if tag in scalars and not tag.startswith(LEFT_OUT):
            title, name = CHARTS.get(tag, (tag, ""))
            empty = {"title": title, "curves": [], "levels": levels.get(tag, [])}
            charts.setdefault(title, empty)["curves"].append(curve(name, scalars[tag]))
    return [*charts.values()]


def curve(name: str, values: Mapping[int, float]) -> dict[str, Any]:
    """A curve by step, of at most `POINTS` points: of many, means of neighbours."""
    parts = np.array_split(np.array(list(values.items())), min(POINTS, len(values)))
    means = [float(part[:, 1].mean()) for part in parts]
    return {
        "name": name,
        "steps": [int(part[-1, 0]) for part in parts],
        "values": [mean if np.isfinite(mean) else None for mean in means],
    }


def _lines(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """A JSON value as lines of names and texts."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _lines(part, f"{name}.{key}" if name else str(key))
    elif value is not None:
        yield name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


# --- single queries ---------------------------------------------------------------------------


@torch.no_grad()
def looked_at(
    task: RetrievalTask,
    bandit: Bandit,
    chosen: NDArray[np.int64],
    count: int,
    limit: int = ATTENTION_BYTES,
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


def sampled_queries(ndcg: NDArray[np.float32], count: int) -> NDArray[np.int64]:
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
