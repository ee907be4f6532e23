"""Comparisons: every method with every seed on every fold, from tasks or from a dataset's name.

`compare(["grpo", "best-fixed-reward"], task, seeds=(0, 1, 2)).table()` is all of it in a notebook.
"""

import hashlib
import multiprocessing
import os
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from maw_gym.corpora import load_collection
from maw_gym.corpora.splits import FOLDS
from maw_gym.envs.bandit import Bandit
from maw_gym.errors import InputError
from maw_gym.files import content_key, loaded, written_whole
from maw_gym.retrieval.evaluation import write_trec_run
from maw_gym.routers.depth_router import save_router
from maw_gym.runners.experiments.analysis import Comparison, Reference
from maw_gym.runners.experiments.methods import Method, chosen_methods
from maw_gym.runners.experiments.result import Encode, Learner, Result, standard_encode
from maw_gym.runners.experiments.settings import Spec, TaskSettings
from maw_gym.runners.experiments.training import ROUTER, Log, forget_training, task_of
from maw_gym.tables.depth_table import is_shared
from maw_gym.tables.task import RetrievalTask

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

FORMAT: Final = 4  # raise when what a result holds changes
LEAST: Final = 2  # test and training queries, so that a variance exists
LATENCY_QUERIES: Final = 20
WARM_UP: Final = 3


class Fold(NamedTuple):
    """One fold of a dataset with one encoder; `spec` makes the methods' specifications."""

    task: RetrievalTask
    spec: Spec
    encoder: str = ""  # part of file names, "" where there is one
    number: str = ""  # likewise, of the fold

    def label(self, method: Method, seed: int) -> str:
        """What the files of a method are called, whatever the fold."""
        name = f"{slug(self.spec.task.dataset)}.{slug(method.name)}{self.encoder}"
        return f"{name}.seed{seed}" if method.seeded else name


def compare(
    methods: Sequence[str | Method | Learner],
    task: RetrievalTask | Sequence[Fold],
    seeds: Sequence[int] = (0,),
    *,
    baseline: str = "standard-attention",
    spec: Spec | None = None,
    folder: Path | None = None,
    ranked: int = 100,
    seed_intervals: bool = False,
) -> Comparison:
    """Run methods on the test queries of a task, or of several folds that are pooled.

    Args:
        methods: names of `METHODS`, a `Method`, or a learner of one's own (see
            `maw_gym.runners.experiments.methods.method_of`); the baseline joins them.
        task: with its encoder; or all folds of one dataset, encoder by encoder.
        seeds: of the methods that have some.
        baseline: the method that the others are tested against.
        spec: reward, observation and timesteps that all methods share; None is the default. Each
            fold has its own.
        folder: keeps results in cells/, what trainings leave in training/ and TREC runs in runs/:
            what is there for the very same settings, data and encoder is not computed again. None
            keeps nothing.
        ranked: documents of each query in the TREC runs.
        seed_intervals: add intervals over seeds.

    Raises:
        InputError: an unknown method, or one that is given twice.
    """
    chosen = chosen_methods(methods, baseline)
    if isinstance(task, RetrievalTask):
        task = [Fold(task, spec or Spec(TaskSettings(dataset=task.collection.name)))]
    encoders = list(dict.fromkeys(fold.encoder for fold in task))
    results: dict[str, list[Result]] = {}
    skipped = {}
    with ExitStack() as stack:
        place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name, method in chosen.items():
            reason = next(filter(None, (method.missing(fold.task) for fold in task)), None)
            if reason:
                skipped[name] = reason
                continue
            results[name] = []
            for encoder in encoders:
                folds = [fold for fold in task if fold.encoder == encoder]
                for seed in seeds if method.seeded else (0,):
                    results[name] += [run_cell(method, fold, seed, place, ranked) for fold in folds]
                    _join_runs(place, method, seed, folds)
    return Comparison(
        task[0].spec.task.dataset,
        baseline,
        results,
        [reference(fold) for fold in task],
        len(encoders),
        seeds,
        skipped,
        seed_intervals,
        chosen,
    )


def run_cell(method: Method, fold: Fold, seed: int, folder: Path, ranked: int = 100) -> Result:
    """One method with one seed on one fold; what is there for this very content is read."""
    common = replace(fold.spec, task=replace(fold.spec.task, seed=seed))
    task, spec = fold.task, method.specify(common, fold.task)
    label = fold.label(method, seed) + fold.number
    path = folder / "cells" / f"{label}.{result_key(method.name, task, spec)}.json"
    trec = _trec(folder, label, fold)
    found = loaded(path, Result.load) if trec.exists() else None  # its ranking belongs to it
    if found is not None:
        return found
    print(f"{label} ...", file=sys.stderr, flush=True)
    training = folder / "training" / label
    if method.kind == "learner":
        training.mkdir(parents=True, exist_ok=True)
    result = method.run(task, spec, "test", Log(training))
    if method.kind == "learner" and result.router is not None:
        save_router(training / ROUTER, result.router)
        forget_training(training)
    if result.encode is not None:
        result.latency_ms = added_latency(result.encode, task)
    for other in path.parent.glob(f"{label}.{'[0-9a-f]' * 16}.json"):
        other.unlink()  # the ranking that belongs to it is written over
    write_run(trec, task, result, method.name, ranked)
    result.save(path)
    return result


def added_latency(encode: Encode, task: RetrievalTask) -> float:
    """Median milliseconds that `encode` takes longer than standard attention for one query."""
    standard = standard_encode(task)
    texts = list(task.collection.splits["test"].texts[:LATENCY_QUERIES])
    turns = []
    for text in texts[:WARM_UP] + texts:
        times = [time.perf_counter()]
        for function in (encode, standard):
            function([text])
            times.append(time.perf_counter())
        turns.append((times[1] - times[0]) - (times[2] - times[1]))
    return 1000 * statistics.median(turns[min(WARM_UP, len(texts)) :])


def result_key(method: str, task: RetrievalTask, spec: Spec) -> str:
    """Key of everything that a result depends on: all settings, the data and the encoder."""
    settings = asdict(spec)
    for name in ("dataset", "encoder", "device"):  # what they stand for is told below
        del settings["task"][name]
    return content_key(
        {
            "format": FORMAT,
            "method": method,
            "content": task.collection.provenance["content"],
            "encoder": task.embedder.fingerprint(),
            "settings": settings,
            "device": task.device.type,
        }
    )


def write_run(path: Path, task: RetrievalTask, result: Result, tag: str, ranked: int = 100) -> None:
    """Write the TREC run of a result on test queries, of so many documents for each."""
    assert result.ranking is not None
    scores, documents = (values[:, :ranked].cpu().numpy() for values in result.ranking)
    ids = task.collection.splits["test"].ids
    write_trec_run(path, ids, task.collection.doc_ids, documents, scores, tag)


def _trec(folder: Path, label: str, fold: Fold) -> Path:
    return folder / ("cells" if fold.number else "runs") / f"{label}.trec.gz"


def _join_runs(folder: Path, method: Method, seed: int, folds: Sequence[Fold]) -> None:
    """One TREC run of those of all folds, whose queries differ; compressed files may be joined."""
    label = folds[0].label(method, seed)
    parts = [_trec(folder, label + fold.number, fold) for fold in folds]
    if folds[0].number:
        with written_whole(folder / "runs" / f"{label}.trec.gz") as temporary:
            temporary.write_bytes(b"".join(part.read_bytes() for part in parts))


def slug(name: str) -> str:
    """A name as part of a file name; different names have different ones."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")
    if plain == name:
        return name
    return f"{plain[-80:]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:6]}"


def reference(fold: Fold) -> Reference:
    """What the methods of one fold are seen against."""
    task, spec = fold.task, fold.spec.task
    train, validation, test = (
        Bandit(task.table(split), reward=spec.reward) for split in ("train", "validation", "test")
    )
    fixed, splits = train.best_fixed(), task.collection.splits
    relevant = {
        name: {document for one in split.relevance for document, grade in one.items() if grade > 0}
        for name, split in splits.items()
    }
    seen = relevant["encoder"] | relevant["train"] | relevant["validation"]
    return Reference(
        spec.fold,
        spec.encoder_seed,
        list(test.query_ids),
        {
            "random": test.random,
            "best_fixed": test.chosen(fixed),
            "oracle": test.best.astype(np.float64),
        },
        test.terms,
        {
            "random": float(validation.random.mean()),
            "best_fixed": validation.mean(fixed),
            "oracle": validation.mean(validation.oracle),
        },
        {
            "documents": len(task.collection.doc_ids),
            "queries": {name: len(split.ids) for name, split in splits.items()},
            "ranked": "whole" if task.collection.small else "candidates",
            "observation": list(spec.observation),
            "network": "shared" if is_shared(spec.network, spec.observation) else "mlp",
            "depths": test.num_depths,
            "timesteps": fold.spec.online and fold.spec.online.timesteps,
            "chosen encoder": str(task.encoder_provenance.get("chosen")),
            "test_relevant": len(relevant["test"]),
            "test_relevant_seen": len(relevant["test"] & seen),
        },
        test.table.groups,
    )


# --- folds and encoders of a dataset, one after the other or side by side --------------------


def checked_folds(
    dataset: str, number: int | None = None
) -> tuple[tuple[int, ...], dict[str, object]]:
    """The folds of a dataset, all where it has no subsets of its own, and the first's provenance.

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
    return folds, dict(collection.provenance)


def open_fold(spec: Spec, specs: Sequence[Spec]) -> Fold:
    """The task of one of a dataset's folds and encoders, each with its own settings."""
    names = {}
    for name, field in (("encoder", "encoder_seed"), ("fold", "fold")):
        several = len({getattr(one.task, field) for one in specs}) > 1
        names[name] = f"{name}{getattr(spec.task, field)}" if several else ""
    told = ", ".join([spec.task.dataset, *filter(None, names.values())])
    print(f"{told}: encoder and depth tables ...", file=sys.stderr, flush=True)
    parts = (f".{one}" if one else "" for one in names.values())
    return Fold(task_of(spec.task), spec, *parts)


def run_fold(spec: Spec, specs: Sequence[Spec], options: Mapping[str, Any]) -> None:
    """What `compare` does on one of a dataset's folds; the results stay in the folder."""
    compare(task=[open_fold(spec, specs)], **options)


def run_side_by_side(
    function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], jobs: int
) -> None:
    """Call a function with each of `calls` in `jobs` processes, which share cores and GPUs.

    What a call raises is raised here, and an InputError where a process was ended from outside.
    """
    context = multiprocessing.get_context("spawn")
    share = (max(1, torch.get_num_threads() // jobs), context.Value("i", 0))
    bars = os.environ.get("TQDM_DISABLE", "")
    os.environ["TQDM_DISABLE"] = "1"  # several would write over each other; asked at tqdm's import
    with ProcessPoolExecutor(jobs, context, _begin, share) as pool:
        try:
            for done in as_completed([pool.submit(function, *call) for call in calls]):
                done.result()
        except BaseException as problem:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            if isinstance(problem, BrokenProcessPool):
                raise InputError(
                    f"one of {jobs} processes was ended from outside, perhaps for want of memory;"
                    " go on with --resume and fewer --jobs"
                ) from None
            raise
        finally:
            os.environ["TQDM_DISABLE"] = bars


def _begin(threads: int, started: "Synchronized[int]") -> None:
    """Take a share of the cores and of the GPUs, and end with the process that asked for it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is answered by the parent
    tqdm.set_lock(threading.RLock())  # its own would be said to leak where a process is ended
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    with started.get_lock():
        number = started.value
        started.value += 1
    if torch.cuda.device_count() > 1:
        torch.cuda.set_device(number % torch.cuda.device_count())
