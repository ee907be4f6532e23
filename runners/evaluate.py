"""Score a trained run on another collection: its encoder and its router, as they are.

`maw-gym evaluate runs/NAME --dataset beir/scifact --split test`
"""

import os
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from maw_gym.errors import InputError, printable
from maw_gym.files import write_json
from maw_gym.run import CONFIG, Run
from maw_gym.runners.experiments.command_line import Flag
from maw_gym.runners.experiments.runs import Stopwatch, run_main, writable_output
from maw_gym.runners.experiments.settings import TaskSettings
from maw_gym.settings import Folds, HomePath, HomeText, Index, Seed, checked


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
    fold: Index | None = None
    """which fold is the test split, where there are folds; of the run's own dataset, the run's"""
    folds: Folds | None = None
    """cut all queries into so many folds; of the run's own dataset, as the run did; of another one
    5, unless given, where there are no subsets"""
    seed: Seed = 0
    """of the random depths in the table"""
    device: str = "auto"
    """auto (the GPU where there is one), cpu, cuda, ..."""
    out: HomePath | None = None
    """JSON file for the numbers, like metrics.json; none unless given"""


def judged_task(settings: EvaluateSettings, own: Mapping[str, Any]) -> TaskSettings:
    """What is judged, in a run with these settings of its own."""
    dataset = settings.dataset or own.get("dataset")
    if dataset is None:
        raise InputError(f"{settings.run} does not name its dataset; give one with --dataset")
    folds = {"fold": settings.fold, "folds": settings.folds}
    if os.path.realpath(dataset) == os.path.realpath(str(own.get("dataset"))):
        for name, told in folds.items():
            if told not in (None, own.get(name)):
                raise InputError(
                    f"--{name} {told} is not the run's own {own.get(name)}: queries that it learned"
                    " from would judge it; leave the flag out"
                )
            folds[name] = own.get(name)
    values = {name: own[name] for name in ("alignment", "reward_weights") if name in own}
    values |= {name: told for name, told in folds.items() if told is not None}
    encoder = str(settings.run / "encoder.safetensors")
    more: dict[str, Any] = {"dataset": dataset, "encoder": encoder, "seed": settings.seed}
    try:
        return TaskSettings(**values, **more, device=settings.device)
    except InputError as problem:
        raise InputError(f"{settings.run / CONFIG}: impossible settings ({problem})") from None


def main(settings: EvaluateSettings) -> None:
    """Print the table of a training run for another collection."""
    from maw_gym.routers.routed_encoder import RoutedEncoder
    from maw_gym.runners.experiments.report import metrics, ordered, row_of, rows_of, run_table
    from maw_gym.runners.experiments.result import by_router
    from maw_gym.runners.experiments.training import task_of

    out = settings.out and writable_output(settings.out)
    routed = RoutedEncoder.from_run(settings.run, settings.device)
    run = Run(settings.run) if (settings.run / CONFIG).exists() else None
    learner = printable(str((run and run.config.get("learner")) or "router"))[:80]
    spec = judged_task(settings, run.settings if run else {})
    split, watch = settings.split, Stopwatch()
    with watch.stage("depth tables"):
        task = task_of(spec)
        if not task.collection.splits[split].ids:
            raise InputError(f"{spec.dataset} has no {split} queries; choose another --split")
        task.table(split)
    with watch.stage(f"evaluation on {split} queries"):
        result = row_of(task, spec, by_router(task, spec, split, routed.router), split)
        rows = rows_of(task, spec, split=split)
    print(run_table(ordered(rows, learner, result)))
    print(
        f"\n{len(task.table(split))} {split} queries of {printable(spec.dataset)}; encoder and"
        f" router of {settings.run}, trained on {printable(str(routed.dataset))}"
    )
    if out is not None:
        content = metrics(spec, rows, result, watch, split)
        write_json(out, {"run": str(settings.run), **content})


if __name__ == "__main__":
    run_main(EvaluateSettings, main)
