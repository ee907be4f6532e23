"""One self-contained HTML file of a run: its table, its curves, and its depths query by query.

It needs no server and no network: markup, style, scripts and data are in it. What a browser does
with it is in assets/.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np

from maw_gym.encoders.files import load_embedder
from maw_gym.envs.bandit import NDCG, TERMS, Bandit, RewardSpec, gap_closed
from maw_gym.errors import InputError
from maw_gym.files import written_whole
from maw_gym.routers.depth_router import load_router
from maw_gym.run import Run
from maw_gym.runners.report_page import QUERIES
from maw_gym.runners.report_page.sample import looked_at, rounded
from maw_gym.tables.task import RetrievalTask, resolve_device

NAME: Final = "report.html"
LARGEST: Final = 10_000_000  # bytes
SCRIPTS: Final = ("base.js", "charts.js", "overview.js", "attention.js", "explorer.js")
MEASURES: Final = ("nDCG@10", "RR@10", "R@100", "Success@10")
POINTS: Final = 400  # of a curve: more than a page has room for
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
    table = _table(run.metrics, learner)
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
