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
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from tqdm import tqdm

from maw_gym.corpora import load_collection
from maw_gym.corpora.splits import FOLDS
from maw_gym.errors import InputError
from maw_gym.files import content_key, loaded, written_whole
from maw_gym.retrieval.evaluation import write_trec_run
from maw_gym.routers.depth_router import save_router
from maw_gym.runners.experiments.analysis import Comparison, Fold
from maw_gym.runners.experiments.methods import Method, chosen_methods
from maw_gym.runners.experiments.result import Encode, Learner, Result, standard_encode
from maw_gym.runners.experiments.settings import Spec, TaskSettings
from maw_gym.runners.experiments.training import ROUTER, Log, forget_training, task_of
from maw_gym.tables.task import RetrievalTask

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

FORMAT: Final = 4  # raise when what a result holds changes
LEAST: Final = {"train": 2, "validation": 1, "test": 2}  # queries; two have a variance
LATENCY_QUERIES: Final = 20
WARM_UP: Final = 3


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
    made = Comparison(task, {}, baseline, seeds, chosen, {}, seed_intervals)
    with ExitStack() as stack:
        place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name, method in chosen.items():
            reason = next(filter(None, (method.missing(fold.task) for fold in task)), None)
            if reason:
                made.skipped[name] = reason
                continue
            made.results[name] = []
            for folds in made.encoders:
                for seed in seeds if method.seeded else (0,):
                    made.results[name] += [
                        run_cell(method, fold, seed, place, ranked) for fold in folds
                    ]
                    _join_runs(place, method, seed, folds)
    return made


def run_cell(method: Method, fold: Fold, seed: int, folder: Path, ranked: int = 100) -> Result:
    """The result of a method on a fold, from the folder where it is there for this very content."""
    common = replace(fold.spec, task=replace(fold.spec.task, seed=seed))
    task, spec = fold.task, method.specify(common, fold.task)
    label = _label(method, seed, fold) + fold.number
    path = folder / "cells" / f"{label}.{result_key(method.name, task, spec)}.json"
    trec = _trec(folder, method, seed, fold)
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
    return 1000 * statistics.median(turns[-len(texts) :])


def result_key(method: str, task: RetrievalTask, spec: Spec) -> str:
    """Key of everything that a result depends on: all settings, the data and the encoder."""
    settings = asdict(spec)
    for name in ("dataset", "encoder", "device"):  # what they stand for is told below
        del settings["task"][name]
    return content_key(
        {
            "format": FORMAT,
            "method": method,
            "task": task.key,
            "settings": settings,
        }
    )


def write_run(path: Path, task: RetrievalTask, result: Result, tag: str, ranked: int = 100) -> None:
    """Write the TREC run of a result on test queries, of so many documents for each."""
    assert result.ranking is not None
    scores, documents = (values[:, :ranked].cpu().numpy() for values in result.ranking)
    ids = task.collection.splits["test"].ids
    write_trec_run(path, ids, task.collection.doc_ids, documents, scores, tag)


def slug(name: str) -> str:
    """A name as part of a file name; different names have different ones."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")
    if plain == name:
        return name
    return f"{plain[-80:]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:6]}"


def _label(method: Method, seed: int, fold: Fold) -> str:
    """What the files of a method are called, whatever the fold."""
    name = f"{slug(fold.spec.task.dataset)}.{slug(method.name)}{fold.encoder}"
    return f"{name}.seed{seed}" if method.seeded else name


def _trec(folder: Path, method: Method, seed: int, fold: Fold) -> Path:
    label = _label(method, seed, fold) + fold.number
    return folder / ("cells" if fold.number else "runs") / f"{label}.trec.gz"


def _join_runs(folder: Path, method: Method, seed: int, folds: Sequence[Fold]) -> None:
    """One TREC run of those of all folds, whose queries differ; compressed files may be joined."""
    if folds[0].number:
        whole = _trec(folder, method, seed, folds[0]._replace(number=""))
        with written_whole(whole) as temporary:
            parts = (_trec(folder, method, seed, fold).read_bytes() for fold in folds)
            temporary.write_bytes(b"".join(parts))


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
    for fold in folds:
        one = load_collection(dataset, fold, number) if fold else collection
        for split, least in LEAST.items():
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
    names = []
    for name, field in (("encoder", "encoder_seed"), ("fold", "fold")):
        several = len({getattr(one.task, field) for one in specs}) > 1
        names.append(f".{name}{getattr(spec.task, field)}" if several else "")
    told = ", ".join([spec.task.dataset, *(name[1:] for name in names if name)])
    print(f"{told}: encoder and depth tables ...", file=sys.stderr, flush=True)
    return Fold(task_of(spec.task), spec, *names)


def run_fold(run: Callable[[list[Fold]], Comparison], spec: Spec, specs: Sequence[Spec]) -> None:
    """What `compare` does on one of a dataset's folds; the results stay in the folder."""
    run([open_fold(spec, specs)])


def run_side_by_side(
    function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], jobs: int
) -> None:
    """Call a function with each of `calls` in `jobs` processes, which share cores and GPUs.

    What a call raises is raised here, and an InputError where a process was ended from outside.
    """
    context = multiprocessing.get_context("spawn")
    share = (max(1, torch.get_num_threads() // jobs), context.Value("i", 0))
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


def _begin(threads: int, started: "Synchronized[int]") -> None:
    """Take a share of the cores and of the GPUs, and end with the process that asked for it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is answered by the parent
    threading.Thread(target=end_with_parent, daemon=True).start()
    begin_bar = tqdm.__init__  # bars of several would write over each other
    tqdm.__init__ = lambda *given, **more: begin_bar(*given, **more | {"disable": True})
    tqdm.set_lock(threading.RLock())  # its own would be said to leak where a process is ended
    torch.set_num_threads(threads)
    with started.get_lock():
        number = started.value
        started.value += 1
    if torch.cuda.device_count() > 1:
        torch.cuda.set_device(number % torch.cuda.device_count())
