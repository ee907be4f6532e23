"""What the page is told of a run, as JSON values, from the run's files."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic_core import from_json

from maw_gym.encoders.files import load_embedder
from maw_gym.envs.bandit import TERMS, Bandit, RewardSpec
from maw_gym.errors import InputError
from maw_gym.routers.depth_router import load_router
from maw_gym.tables.task import RetrievalTask, resolve_device
from runners.experiments.runs import CONFIG, read_config
from runners.experiments.training import collection_of_run
from runners.report_page import QUERIES
from runners.report_page.curves import read_curves
from runners.report_page.sample import Sample, rounded

MEASURES: Final = ("nDCG@10", "RR@10", "R@100", "Success@10")


def run_payload(
    folder: Path, task: RetrievalTask | None = None, queries: int = QUERIES
) -> dict[str, Any]:
    """Everything the page shows."""
    config, metrics = read_config(folder), _metrics(folder)
    settings = config.get("settings")
    if not isinstance(settings, Mapping):
        raise InputError(f"{folder / CONFIG} has no settings; give the folder of a run")
    router = load_router(folder / "router.safetensors")
    reward = RewardSpec(
        settings.get("reward_weights", RewardSpec.weights),
        settings.get("alignment", RewardSpec.alignment),
    )
    if task is None:
        task = _task(folder, settings)
    test, train = (Bandit(task.table(split), reward=reward) for split in ("test", "train"))
    router.to(task.device)
    chosen = router.predict(test.table.observation(router.observation))[0]
    best_fixed = train.best_fixed() if len(train) else None
    return {
        "run": {
            "name": folder.resolve().name,
            "learner": str(config.get("learner") or "router"),
            "dataset": task.collection.name,
            "queries": len(test),
            "weights": list(reward.weights),
            "alignment": reward.alignment,
            "settings": [list(pair) for pair in _flat(config)],
        },
        "table": _table(metrics, str(config.get("learner") or "router")),
        "curves": read_curves(folder),
        "depths": {
            "profile": {name: rounded(test.terms[name].mean(0)) for name in ("reward", *TERMS)},
            "ndcg": rounded(test.table.ndcg.mean(0)),
            "chosen": np.bincount(chosen, minlength=test.num_depths).tolist(),
            "best": np.bincount(test.oracle, minlength=test.num_depths).tolist(),
            "best_fixed": best_fixed,
        },
        "sample": Sample(task, test, chosen, queries).to_json(),
    }


def _metrics(folder: Path) -> dict[str, Any]:
    path = folder / "metrics.json"
    try:
        content = from_json(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); give the folder of a finished run"
        ) from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); give the folder of a run") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a run's metrics.json; give the folder of a run")
    return content


def _task(folder: Path, settings: Mapping[str, Any]) -> RetrievalTask:
    collection = collection_of_run(folder)
    device = resolve_device(str(settings.get("device", "auto")))
    embedder, provenance = load_embedder(folder / "encoder.safetensors")
    return RetrievalTask(collection, embedder, device, provenance)


def _table(metrics: Mapping[str, Any], learner: str) -> dict[str, Any]:
    """The run's table: rows `{"name", "own", "values"}`, the learner's above the upper bounds."""
    baselines = metrics.get("baselines")
    rows = list(baselines.items()) if isinstance(baselines, Mapping) else []
    bounds = [pair for pair in rows if "upper bound" in str(pair[0])]
    others = [pair for pair in rows if pair not in bounds]
    return {
        "columns": ["reward", "gap closed", *MEASURES],
        "rows": [
            {"name": str(name), "own": row is metrics, "values": _values(row)}
            for name, row in [*others, (learner, metrics), *bounds]
        ],
    }


def _values(row: Any) -> list[float | None]:
    reward, retrieval = (_mapping(_mapping(row).get(name)) for name in ("reward", "retrieval"))
    values = [reward.get("mean"), reward.get("gap_closed"), *map(retrieval.get, MEASURES)]
    return [
        float(value) if isinstance(value, (int, float)) and np.isfinite(value) else None
        for value in values
    ]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """A JSON value as lines of names and texts."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _flat(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        yield name, ", ".join(str(part) for part in value)
    elif value is not None:
        yield name, str(value)
