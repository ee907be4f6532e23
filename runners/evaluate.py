"""Score a trained run on another collection: its encoder and its router, as they are.

`maw-gym evaluate runs/NAME --dataset beir/scifact --split test`
"""

import json
from typing import Annotated, ClassVar, Literal

from pydantic import TypeAdapter, ValidationError

from maw_gym.errors import InputError, printable
from maw_gym.files import write_json
from maw_gym.settings import Folds, HomePath, HomeText, Index, Seed, checked, one_line
from runners.experiments.command_line import Flag
from runners.experiments.runs import CONFIG, Stopwatch, read_config, run_main, writable_output
from runners.experiments.settings import RewardSettings, TaskSettings


@checked
class EvaluateSettings:
    """Which run meets which collection."""

    main_flags: ClassVar = ("dataset", "split", "device", "out")
    run: Annotated[HomePath, Flag(positional=True)]
    """folder of a training run, with encoder.safetensors and router.safetensors"""
    dataset: HomeText | None = None
    """an ir_datasets id or a folder in BEIR's layout; the run's own unless given"""
    split: Literal["encoder", "train", "validation", "test"] = "test"
    """whose queries are judged"""
    fold: Index = 0
    """which fold is the test split, where there are folds"""
    folds: Folds | None = None
    """cut all queries into so many folds; unless given, 5 where there are no subsets"""
    seed: Seed = 0
    """of the random depths in the table"""
    device: str = "auto"
    """auto (the GPU where there is one), cpu, cuda, ..."""
    out: Annotated[HomePath | None, Flag(old=("output",))] = None
    """JSON file for the numbers, like metrics.json; none unless given"""


def learner_and_reward(settings: EvaluateSettings) -> tuple[str, RewardSettings]:
    """What the run's config.json says of both; defaults where there is none.

    Raises:
        InputError: the file is not a run's.
    """
    path = settings.run / CONFIG
    if not path.exists():
        return "router", RewardSettings()
    config = read_config(settings.run)
    given = config.get("settings")
    if not isinstance(given, dict):
        raise InputError(f"{path} has no settings; give the folder of a training run")
    given = {name: given[name] for name in ("alignment", "reward_weights") if name in given}
    try:
        reward = TypeAdapter(RewardSettings).validate_json(json.dumps(given), strict=True)
    except ValidationError as error:
        raise InputError(f"{path}: impossible settings ({one_line(error)})") from None
    return printable(str(config.get("learner", "router")))[:80], reward


def main(settings: EvaluateSettings) -> None:
    """Print the table of a training run for another collection."""
    from maw_gym.routers.routed_encoder import ENCODER_FILE, RoutedEncoder
    from runners.experiments.methods import by_router
    from runners.experiments.report import metrics, ordered, row_of, rows_of, run_table
    from runners.experiments.training import task_of

    out = settings.out and writable_output(settings.out)
    learner, reward = learner_and_reward(settings)
    routed = RoutedEncoder.from_run(settings.run, settings.device)
    dataset = settings.dataset or routed.dataset
    if dataset is None:
        raise InputError(f"{settings.run} does not name its dataset; give one with --dataset")
    spec = TaskSettings(
        dataset=dataset,
        encoder=str(settings.run / ENCODER_FILE),
        alignment=reward.alignment,
        reward_weights=reward.reward_weights,
        seed=settings.seed,
        device=settings.device,
        fold=settings.fold,
        folds=settings.folds,
    )
    split, watch = settings.split, Stopwatch()
    with watch.stage("depth tables"):
        task = task_of(spec)
        if not task.collection.splits[split].ids:
            raise InputError(f"{dataset} has no {split} queries; choose another --split")
        task.table(split)
    with watch.stage(f"evaluation on {split} queries"):
        result = row_of(task, spec, by_router(task, spec, split, routed.router), split)
        rows = rows_of(task, spec, split=split)
    print(run_table(ordered(rows, learner, result)))
    print(
        f"\n{len(task.table(split))} {split} queries of {printable(dataset)}; encoder and router of"
        f" {settings.run}, trained on {printable(str(routed.dataset))}"
    )
    if out is not None:
        content = metrics(spec, rows, result, watch, split)
        write_json(out, {"run": str(settings.run), **content})


if __name__ == "__main__":
    run_main(EvaluateSettings, main)
