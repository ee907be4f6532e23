"""The task that settings name, and the collection of a run."""

from collections.abc import Mapping
from pathlib import Path

from maw_gym.corpora import Collection, load_collection
from maw_gym.errors import InputError
from maw_gym.tables.task import RetrievalTask, load_task
from runners.experiments.resuming import CONFIG, read_config
from runners.experiments.settings import DataSettings


def task_of(settings: DataSettings) -> RetrievalTask:
    """The task of these settings.

    Raises:
        InputError: see `load_task`; or a balance for queries without groups.
    """
    if settings.balance != 1:
        # Before minutes go into an encoder.
        collection = load_collection(settings.dataset, settings.fold, settings.folds)
        if not any(collection.query_groups("train")):
            raise InputError(
                f"balance {settings.balance} needs queries in groups, and those of"
                f" {settings.dataset} have none; leave it at 1"
            )
    return load_task(
        settings.dataset,
        settings.encoder,
        settings.device,
        settings.fold,
        settings.folds,
        settings.encoder_training,
        settings.text_encoder,
    )


def collection_of_run(run: Path, dataset: str | None = None) -> Collection:
    """The collection of a run, divided as the run had it; or another one.

    Args:
        run: folder of the run.
        dataset: the other one, see `load_collection`.

    Raises:
        InputError: the run does not name its dataset, or it is not here any more.
    """
    if dataset is not None:
        return load_collection(dataset)
    settings = read_config(run).get("settings")
    if not isinstance(settings, Mapping) or not isinstance(settings.get("dataset"), str):
        raise InputError(f"{run / CONFIG} does not name a dataset; give the folder of another run")
    return load_collection(settings["dataset"], settings.get("fold", 0), settings.get("folds"))
