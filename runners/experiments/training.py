"""Training: the task that settings name, an environment over it, and a learner's way through it."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import gymnasium as gym
import torch
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from tqdm import tqdm

from maw_gym.agents.grpo.policies import GRPOPolicyNetwork, SharedPolicyNetwork
from maw_gym.agents.networks import LIMIT, GRPORouter, router_settings, standardisation
from maw_gym.agents.sb3.callbacks import (
    CheckpointCallback,
    ResumedTensorBoard,
    ValidationCallback,
    restore_training,
    seen_on_validation,
)
from maw_gym.agents.sb3.vec_env import to_sb3
from maw_gym.agents.supervised import train_full_information
from maw_gym.checkpoints import Checkpoint, Checkpoints, forget_checkpoints
from maw_gym.corpora import load_collection
from maw_gym.envs.bandit import Bandit
from maw_gym.errors import InputError, first_line
from maw_gym.files import written_whole
from maw_gym.routers.depth_router import DepthRouter
from maw_gym.run import Run
from maw_gym.runners.experiments.command_line import flat
from maw_gym.runners.experiments.runs import STOP, Stopwatch, open_run, write_config
from maw_gym.runners.experiments.settings import Spec, TaskSettings
from maw_gym.tables.depth_table import is_shared
from maw_gym.tables.task import RetrievalTask, load_task

Algorithm = TypeVar("Algorithm", bound=OnPolicyAlgorithm)

NOT_FINITE: Final = "Expected parameter logits"  # how torch.distributions begins
ROUTER: Final = "router.safetensors"


class Log(NamedTuple):
    """Where a training writes and whether it goes on there, rollouts between checkpoints, and what
    of the user's follows it.
    """

    folder: Path
    resume: bool = False
    checkpoint_every: int = 50
    callbacks: Sequence[BaseCallback] = ()


class Trained(NamedTuple):
    """What a training leaves; steps are training queries seen."""

    router: DepthRouter
    history: list[tuple[int, float]]  # step, mean validation reward
    chosen_at: int  # the step that was kept, or from which weights were averaged
    facts: dict[str, Any]  # JSON values
    training: Sequence[tuple[int, float]] = ()  # step, share of the gap that its choices closed


def training_run(
    learner: str, train: Callable[[RetrievalTask, Spec, Log], Trained], settings: Any
) -> None:
    """A run from its settings to its report: train, judge on the test split, leave a folder."""
    from maw_gym.runners.experiments.report import report

    spec, run = settings.spec, settings.run
    callbacks = [callback_named(name) for name in getattr(run, "callbacks", ())]
    folder = open_run(settings, f"{learner.lower()}-{spec.task.dataset}-seed{spec.task.seed}")
    watch = Stopwatch()
    with watch.stage("encoder and depth tables"):
        task = open_task(spec.task)
    write_config(folder, learner, settings, task.collection.provenance, task.encoder_provenance)
    log = Log(folder, run.resume is not None, getattr(run, "checkpoint_every", 1), callbacks)
    with watch.stage("training"):
        trained = train(task, spec, log)
    report(task, spec.task, learner, trained, folder, watch)
    # Only now: a run that was stopped in its report has nothing to train again.
    forget_training(folder)


def callback_named(name: str) -> BaseCallback:
    """A callback of Stable-Baselines3 that is named `module:Class`, made without arguments."""
    kind = imported(name, "callback")
    if not (isinstance(kind, type) and issubclass(kind, BaseCallback)):
        raise InputError(f"callback {name!r} is no BaseCallback of Stable-Baselines3")
    try:
        return kind()
    except TypeError as problem:
        raise InputError(f"callback {name!r} is made without arguments: {problem}") from None


def imported(name: str, what: str) -> Any:
    """What `module:name` names, from the working folder or installed."""
    module, _, inside = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        return getattr(import_module(module), inside)
    except (ImportError, AttributeError, TypeError, ValueError) as problem:
        raise InputError(
            f"{what} {name!r} cannot be imported ({first_line(problem)}); give module:name of one"
            " in the working folder, or of one that is installed"
        ) from None
    finally:
        sys.path.remove(os.getcwd())


def task_of(settings: TaskSettings) -> RetrievalTask:
    """The task of these settings."""
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


def open_task(settings: TaskSettings) -> RetrievalTask:
    """The task of a run, with its tables built; it must have queries to train on."""
    task = task_of(settings)
    if not task.collection.splits["train"].ids:
        raise InputError(
            f"{settings.dataset} has no query to train on, all are for the test; cut them into"
            " folds, such as with --folds 5"
        )
    for split in ("train", "validation", "test"):
        task.table(split)
    return task


# --- learners in the environment -------------------------------------------------------------


def build(
    algorithm: Callable[..., Algorithm], task: RetrievalTask, spec: Spec, **more: Any
) -> Algorithm:
    """An algorithm of Stable-Baselines3 over the training queries; `more` are its settings."""
    assert spec.online is not None
    table, settings = task.table("train"), spec.task
    env = gym.make_vec(
        "MAWDepth-v0",
        num_envs=spec.online.num_envs,
        group_size=spec.learner.group_size,
        observation=settings.observation,
        alignment=settings.alignment,
        reward_weights=settings.reward_weights,
        balance=settings.balance,
        table=table,
    )
    shared = is_shared(settings.network, settings.observation)
    observations = table.observation(settings.observation)
    mean, scale = standardisation(observations, table.num_depths if shared else 1)
    standard = {"mean": mean.tolist(), "scale": scale.tolist(), "limit": LIMIT}
    try:
        return algorithm(
            env=to_sb3(env),
            policy=SharedPolicyNetwork if shared else GRPOPolicyNetwork,
            policy_kwargs={"features_extractor_kwargs": standard},
            seed=settings.seed,
            # Some thousand weights: on an H200 28.7 s of waiting for launches, on its CPU 18.0 s.
            device="cpu" if shared and settings.device == "auto" else settings.device,
            **more,
        )
    except ValueError as problem:  # of an algorithm that knows no InputError
        raise InputError(str(problem)) from None


def learn(
    model: OnPolicyAlgorithm, task: RetrievalTask, spec: Spec, log: Log, learner: str
) -> Trained:
    """Train on the `train` queries, from the newest checkpoint of a run that goes on, and keep the
    mean of the weights from half-time on.
    """
    assert spec.online is not None
    timesteps, num_envs = spec.online.timesteps, spec.online.num_envs
    rollouts = -(-timesteps // (num_envs * model.n_steps))
    validation = ValidationCallback(
        task,
        Bandit(task.table("validation"), spec.task.observation, spec.task.reward),
        interval=max(1, rollouts // spec.online.evaluations),
        average_from=timesteps // 2,
    )
    # What tells the checkpoints of this training from those of another.
    identity = {
        "learner": learner,
        "settings": asdict(spec),
        "collection": task.collection.provenance["content"],
        "encoder": task.embedder.fingerprint(),
    }
    kept = Checkpoints(log.folder / "checkpoints", identity)
    checkpoints = CheckpointCallback(kept, validation, log.checkpoint_every, STOP.asked)
    logger = Logger(str(log.folder), [])
    model.set_logger(logger)

    def take(found: Checkpoint) -> None:
        model._setup_learn(0)  # makes the buffers that are filled now
        restore_training(model, found)
        validation.set_state(model.policy, found.tensors, found.state["validation"])
        checkpoints.last = found.path

    found, purge_step = None, None
    if log.resume:
        found = kept.restore(take)
        # Events of the checkpoint's own step were written before it was.
        purge_step = found.step + 1 if found else 0
    else:
        kept.forget()
    with contextlib.closing(ResumedTensorBoard(log.folder, purge_step)) as events:
        if not purge_step:
            log_settings(events.writer, spec)
        logger.output_formats.append(events)
        begun, threads = model.num_timesteps, torch.get_num_threads()
        if begun < timesteps:  # else it is a run whose report alone was missing
            torch.set_num_threads(1)  # of some thousand weights two take 1.7 times as long
            with (
                contextlib.ExitStack() as after,
                tqdm(total=timesteps, initial=begun, unit="step", disable=None) as bar,
                said_where_numbers_end(model, checkpoints),
                STOP.deferred(),
            ):
                after.callback(torch.set_num_threads, threads)
                shown = ConvertCallback(lambda *_: bar.update(num_envs) or True)
                callbacks = CallbackList([validation, checkpoints, shown, *log.callbacks])
                model.learn(timesteps - begun, callbacks, reset_num_timesteps=found is None)
    with written_whole(log.folder / "progress.csv") as temporary:
        curves = Run(log.folder).curves()
        curves.to_csv(temporary, index_label="time/total_timesteps", lineterminator="\n")
    with written_whole(log.folder / "model.zip") as temporary:
        model.save(temporary)
    model.policy.load_state_dict(validation.average.module.state_dict())
    about = router_settings(task, learner, seed=spec.task.seed)
    router = GRPORouter(model, spec.task.observation, about)
    return Trained(router, validation.history, validation.average_from, {}, validation.training)


def log_settings(writer: SummaryWriter, spec: Spec) -> None:
    """Show a training's settings in TensorBoard, as a text and among HParams."""
    values = {
        name: value if isinstance(value, (bool, int, float)) else str(value)
        for name, value in flat(spec).items()
    }
    rows = [f"| {name} | {value} |" for name, value in values.items()]
    writer.add_text("settings", "\n".join(["| setting | value |", "| --- | --- |", *rows]))
    for summary in hparams(values, {"eval/reward": 0.0, "eval/ndcg@10": 0.0}):
        writer._get_file_writer().add_summary(summary)


@contextlib.contextmanager
def said_where_numbers_end(
    model: OnPolicyAlgorithm, checkpoints: CheckpointCallback
) -> Iterator[None]:
    """Say what is known when numbers stop being finite: the step, the queries, the way back."""
    try:
        yield
    except (FloatingPointError, ValueError) as problem:
        what = str(problem)
        # Distributions of torch meet logits that are not finite with a ValueError.
        if what.startswith(NOT_FINITE):
            what = "the policy's logits are not finite"
        elif isinstance(problem, ValueError):
            raise
        if f"step {model.num_timesteps}" not in what:
            what = f"{what}, at step {model.num_timesteps}"
        assert model.env is not None
        ids = model.env.get_attr("query_ids")[0]
        names = [str(ids[row]) for row in checkpoints.queries]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        last = f"is {checkpoints.last}" if checkpoints.last else "was not written yet"
        raise FloatingPointError(
            f"{what}; queries of the batch: {', '.join(names[:5])}{more}; the last good checkpoint"
            f" {last}"
        ) from problem


# --- learners without it ---------------------------------------------------------------------


def train_on_all_rewards(task: RetrievalTask, spec: Spec, log: Log) -> Trained:
    """A router trained on the rewards of all depths."""
    return fit_router(train_full_information, task, spec, log)


def fit_router(
    fit: Callable[..., tuple[DepthRouter, dict[str, Any]]],
    task: RetrievalTask,
    spec: Spec,
    log: Log,
    **more: Any,
) -> Trained:
    """A router fitted by a function of `agents`, counted in training queries as timesteps are."""
    settings, queries = spec.task, len(task.table("train"))
    if not log.resume:
        forget_training(log.folder)
    for events in log.folder.glob("events.out.tfevents.*"):
        events.unlink()
    with SummaryWriter(str(log.folder)) as writer:
        log_settings(writer, spec)
        router, facts = fit(
            task,
            observation=settings.observation,
            network=settings.network,
            reward=settings.reward,
            settings=spec.learner,
            seed=settings.seed,
            balance=settings.balance,
            writer=writer,
            **more,
        )
        chosen_at = facts["best_epoch"] * queries
        bandit = Bandit(task.table("validation"), settings.observation, settings.reward)
        if len(bandit):
            depths, _ = router.predict(bandit.observations)
            values = seen_on_validation(bandit, depths)
            del values["eval/reward"]  # was written epoch by epoch
            for name, value in values.items():
                writer.add_scalar(name, value, chosen_at)
            writer.add_histogram("policy/depths", torch.from_numpy(depths), chosen_at)
    history = [(epoch * queries, reward) for epoch, reward in facts.pop("history")]
    return Trained(router, history, chosen_at, facts)


def forget_training(folder: Path) -> None:
    """Delete what a training keeps to go on from."""
    forget_checkpoints(folder / ROUTER)
