"""The task that settings name."""

from maw_gym.corpora import load_collection
from maw_gym.errors import InputError
from maw_gym.tables.task import RetrievalTask, load_task
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
