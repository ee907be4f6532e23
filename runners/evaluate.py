"""Score a trained run on another collection: its encoder and its router, as they are.

`python runners/evaluate.py --run runs/NAME --dataset beir/scifact --split test`
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from maw_gym.corpora.splits import SPLITS
from maw_gym.errors import InputError
from maw_gym.routers.routed_encoder import ENCODER_FILE, RoutedEncoder
from maw_gym.tables.rewards import DEFAULT_WEIGHTS
from maw_gym.tables.task import load_task
from runners.experiments.report import encoder_rows, judge, ordered, static_rows, table_text
from runners.experiments.runs import Stopwatch, run_main, write_json
from runners.experiments.settings import CommonSettings


@dataclass(frozen=True)
class EvaluateSettings:
    """Which run meets which collection."""

    run: Path
    """folder of a training run, with encoder.safetensors and router.safetensors"""
    dataset: str | None = None
    """an ir_datasets id or a folder in BEIR's layout; the run's own unless given"""
    split: Annotated[str, tyro.conf.arg(metavar="NAME")] = "test"
    """encoder, train, validation or test"""
    fold: int = 0
    """which of 5 folds is the test split, for datasets without subsets"""
    seed: int = 0
    """of the random depths in the table"""
    device: str = "auto"
    """auto (the GPU where there is one), cpu, cuda, ..."""
    output: Path | None = None
    """JSON file for the numbers, like metrics.json; none unless given"""


def told(run: Path) -> dict[str, Any]:
    """What the run's config.json says of learner, reward and dataset; defaults without one.

    Raises:
        InputError: the file is not a run's.
    """
    path = run / "config.json"
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        config = {"settings": {}}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not readable as JSON: {error}") from None
    settings = config.get("settings") if isinstance(config, dict) else None
    if not isinstance(settings, dict):
        raise InputError(f"{path} has no settings; give the folder of a training run")
    return {
        "learner": str(config.get("learner", "router")),
        "alignment": settings.get("alignment", CommonSettings.alignment),
        "reward_weights": tuple(settings.get("reward_weights", DEFAULT_WEIGHTS)),
    }


def main(settings: EvaluateSettings) -> None:
    """Print the table of a training run for another collection."""
    if settings.split not in SPLITS:
        raise InputError(f"unknown split {settings.split!r}; choose one of {', '.join(SPLITS)}")
    about = told(settings.run)
    routed = RoutedEncoder.from_run(settings.run, settings.device)
    dataset = settings.dataset or routed.dataset
    if dataset is None:
        raise InputError(f"{settings.run} does not name its dataset; give one with --dataset")
    common = CommonSettings(
        dataset=dataset,
        encoder=str(settings.run / ENCODER_FILE),
        observation=routed.router.observation,
        alignment=about["alignment"],
        reward_weights=about["reward_weights"],
        seed=settings.seed,
        device=settings.device,
        fold=settings.fold,
    )
    common.check()
    watch = Stopwatch()
    with watch.stage("depth tables"):
        task = load_task(dataset, common.encoder, common.device, common.fold)
        if not task.collection.splits[settings.split].ids:
            raise InputError(f"{dataset} has no {settings.split} queries; choose another --split")
        table = task.table(settings.split)
    with watch.stage(f"evaluation on {settings.split} queries"):
        observations = table.observation(common.observation)
        depths, _ = routed.router.predict(observations)
        result = judge(task, common, depths, settings.split)
        rows = encoder_rows(task, settings.split) | static_rows(task, common, settings.split)
    if settings.output is not None:
        write_json(
            settings.output,
            {
                "run": str(settings.run),
                "dataset": dataset,
                "split": settings.split,
                "seed": settings.seed,
                **result._asdict(),
                "baselines": {name: row._asdict() for name, row in rows.items()},
                "wall_seconds": watch.seconds,
            },
        )
    print(table_text(ordered(rows, about["learner"], result)))
    print(
        f"\n{len(table)} {settings.split} queries of {dataset}; encoder and router of"
        f" {settings.run}, trained on {routed.dataset}"
    )


if __name__ == "__main__":
    run_main(EvaluateSettings, main)
