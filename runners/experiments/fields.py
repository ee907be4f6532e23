"""The fields of a comparison: datasets and their folds, with tasks and reference values.

Notation: N test queries of the fold, D depths.
"""

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from agents.networks import is_shared
from maw_gym.corpora import Collection, load_collection
from maw_gym.corpora.splits import FOLDS
from maw_gym.envs.bandit import Bandit
from maw_gym.errors import InputError
from maw_gym.tables.task import RetrievalTask
from runners.experiments.settings import RouterSettings

LEAST: Final = 2  # test and training queries, so that a variance exists


class Field(NamedTuple):
    """A dataset.

    Attributes:
        dataset: its name.
        folds: 0 alone, or all of them where the dataset has no subsets of its own.
        provenance: of the collection, of fold 0.
    """

    dataset: str
    folds: tuple[int, ...]
    provenance: dict[str, object]


@dataclass
class Reference:
    """What the results of one fold are seen against.

    Attributes:
        fold: 0 where the dataset has none.
        query_ids: N ids.
        random: N expected rewards of a uniform depth.
        best_fixed: N rewards of the depth that is best on training queries.
        oracle: N largest rewards.
        best_fixed_depth: that depth.
        terms_by_depth: mean over test queries of each term and the reward, D values each.
        validation: mean reward on validation queries of `random`, `best_fixed` and `oracle`.
        encoder: its provenance.
        facts: counts for the report.
        groups: of the N queries, such as packages; empty where they have none.
    """

    fold: int
    query_ids: list[str]
    random: list[float]
    best_fixed: list[float]
    oracle: list[float]
    best_fixed_depth: int
    terms_by_depth: dict[str, list[float]]
    validation: dict[str, float]
    encoder: dict[str, Any]
    facts: dict[str, Any]
    groups: tuple[str, ...] = ()


def checked_field(dataset: str, number: int | None = None) -> Field:
    """A dataset that can be compared on.

    Args:
        dataset: its name.
        number: of folds, see `load_collection`.

    Raises:
        InputError: it does not exist, has no training queries, or too few queries for the folds.
    """
    collection = load_collection(dataset, folds=number)
    crossed = "fold" in collection.provenance["splits"]
    folds = tuple(range(number or FOLDS)) if crossed else (0,)
    queries = sum(len(split.ids) for split in collection.splits.values())
    if crossed and queries < LEAST * len(folds):
        raise InputError(
            f"{dataset} has {queries} judged queries, too few for {len(folds)} folds of {LEAST} or"
            " more"
        )
    for fold in folds:
        one = load_collection(dataset, fold, number) if fold else collection
        for split, least in (("train", LEAST), ("validation", 1), ("test", LEAST)):
            count = len(one.splits[split].ids)
            if count < least:
                where = f" in fold {fold} of {len(folds)}" if crossed else ""
                raise InputError(
                    f"{dataset} has {count} {split} queries{where}; a comparison needs {least} or"
                    " more: give a dataset with training queries, or with more of them"
                )
    return Field(dataset, folds, dict(collection.provenance))


def reference(task: RetrievalTask, settings: RouterSettings) -> Reference:
    """What the methods of one fold are seen against."""
    train, validation, test = (
        Bandit(task.table(split), reward=settings.reward)
        for split in ("train", "validation", "test")
    )
    fixed = train.best_fixed()
    return Reference(
        fold=settings.fold,
        query_ids=list(test.query_ids),
        random=test.random.tolist(),
        best_fixed=test.chosen(fixed).tolist(),
        oracle=test.best.tolist(),
        best_fixed_depth=fixed,
        terms_by_depth={
            name: values.astype(np.float64).mean(axis=0).tolist()
            for name, values in test.terms.items()
        },
        validation={
            "random": float(validation.random.mean()),
            "best_fixed": validation.mean(fixed),
            "oracle": validation.mean(validation.oracle),
        },
        encoder=task.encoder_provenance,
        facts={
            "documents": len(task.collection.doc_ids),
            "queries": {name: len(split.ids) for name, split in task.collection.splits.items()},
            "ranked": "whole" if task.collection.small else "candidates",
            "observation": list(settings.observation),
            "network": "shared" if is_shared(settings.network, settings.observation) else "mlp",
            "depths": test.num_depths,
            **shared_documents(task.collection),
        },
        groups=test.table.groups,
    )


def shared_documents(collection: Collection) -> dict[str, int]:
    """How many relevant documents of test queries were a relevant document in training too.

    Returns:
        ``test_relevant``: different documents relevant to a test query;
        ``test_relevant_seen``: those of them relevant to a query of encoder, train or validation.
    """
    relevant = {
        name: {
            document
            for grades in split.relevance
            for document, grade in grades.items()
            if grade > 0
        }
        for name, split in collection.splits.items()
    }
    seen = relevant["encoder"] | relevant["train"] | relevant["validation"]
    return {
        "test_relevant": len(relevant["test"]),
        "test_relevant_seen": len(relevant["test"] & seen),
    }
