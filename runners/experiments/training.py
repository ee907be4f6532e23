"""Training: the task that settings name, an environment over it, and a learner's way through it."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NamedTuple

import gymnasium as gym
import torch
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch.utils.tensorboard import SummaryWriter

from agents.baselines import train_full_information
from agents.export import router_from_model
from agents.fitting import router_settings
from agents.grpo.policies import GRPOPolicyNetwork, SharedPolicyNetwork
from agents.networks import LIMIT, is_shared, standardisation
from agents.sb3.callbacks import (
    CheckpointCallback,
    ProgressBar,
    SyncedTensorBoard,
    ValidationCallback,
)
from agents.sb3.training_state import restore_training
from agents.sb3.vec_env import to_sb3
from maw_gym.checkpoints import Checkpoint, Checkpoints, forget_checkpoints
from maw_gym.corpora import Collection, load_collection
from maw_gym.envs.bandit import NDCG, Bandit
from maw_gym.errors import InputError
from maw_gym.files import written_whole
from maw_gym.routers.depth_router import DepthRouter
from maw_gym.tables.task import RetrievalTask, load_task
from runners.experiments.runs import CONFIG, STOP, read_config
from runners.experiments.settings import FullInformationSpec, OnlineSpec, TaskSettings

NOT_FINITE: Final = "Expected parameter logits"  # how torch.distributions begins
ROUTER: Final = "router.safetensors"


class Log(NamedTuple):
    """Where a training writes, and how often.

    Attributes:
        folder: gets the TensorBoard events, the checkpoints and the model.
        resume: go on with the training that was stopped there.
        checkpoint_every: rollouts between checkpoints.
    """

    folder: Path
    resume: bool = False
    checkpoint_every: int = 50


class Trained(NamedTuple):
    """What a training leaves.

    Attributes:
        router: from observation to depth.
        history: (training queries seen, mean validation reward).
        chosen_at: the place in the history that was kept, or from which weights were averaged.
        facts: JSON values about the training.
        training: (training queries seen, share of the gap that the choices in it closed).
    """

    router: DepthRouter
    history: list[tuple[int, float]]
    chosen_at: int
    facts: dict[str, Any]
    training: Sequence[tuple[int, float]] = ()


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
    """The task of a run, with its tables built."""
    task = task_of(settings)
    for split in ("train", "validation", "test"):
        task.table(split)
    return task


def collection_of_run(run: Path, dataset: str | None = None) -> Collection:
    """The collection of a run, divided as the run had it; or another one."""
    if dataset is not None:
        return load_collection(dataset)
    settings = read_config(run).get("settings")
    if not isinstance(settings, Mapping) or not isinstance(settings.get("dataset"), str):
        raise InputError(f"{run / CONFIG} does not name a dataset; give the folder of another run")
    return load_collection(settings["dataset"], settings.get("fold", 0), settings.get("folds"))


def environment(task: RetrievalTask, spec: OnlineSpec) -> VecEnv:
    """The training queries as an environment of Stable-Baselines3."""
    vector_env = gym.make_vec(
        "MAWDepth-v0",
        num_envs=spec.online.num_envs,
        group_size=spec.learner.group_size,
        observation=spec.task.observation,
        alignment=spec.task.alignment,
        reward_weights=spec.task.reward_weights,
        balance=spec.task.balance,
        table=task.table("train"),
    )
    return to_sb3(vector_env)


def policy_arguments(task: RetrievalTask, spec: OnlineSpec) -> dict[str, Any]:
    """The network of a learner, standardised on training queries, with its seed and device."""
    table, settings = task.table("train"), spec.task
    shared = is_shared(settings.network, settings.observation)
    observations = table.observation(settings.observation)
    mean, scale = standardisation(observations, table.num_depths if shared else 1)
    standard = {"mean": mean.tolist(), "scale": scale.tolist(), "limit": LIMIT}
    return {
        "policy": SharedPolicyNetwork if shared else GRPOPolicyNetwork,
        "policy_kwargs": {"features_extractor_kwargs": standard},
        "seed": settings.seed,
        # Some thousand weights: a GPU would wait for its launches, and take twice a CPU's time.
        "device": "cpu" if shared and settings.device == "auto" else settings.device,
    }


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """A ValueError of an algorithm that knows nothing of this package is a user's mistake."""
    try:
        yield
    except ValueError as problem:
        raise InputError(str(problem)) from None


def learn(
    model: OnPolicyAlgorithm, task: RetrievalTask, spec: OnlineSpec, log: Log, learner: str
) -> Trained:
    """Train on the `train` queries and keep the mean of the weights from half-time on."""
    timesteps = spec.online.timesteps
    rollouts = -(-timesteps // (spec.online.num_envs * model.n_steps))
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
    if not log.resume:
        kept.forget()
    _learn(model, validation, timesteps, log, kept)
    with written_whole(log.folder / "model.zip") as temporary:
        model.save(temporary)
    model.policy.load_state_dict(validation.average.module.state_dict())
    about = router_settings(task, learner, seed=spec.task.seed)
    router = router_from_model(model, spec.task.observation, about)
    return Trained(router, validation.history, validation.average_from, {}, validation.training)


def _learn(
    model: OnPolicyAlgorithm,
    validation: ValidationCallback,
    timesteps: int,
    log: Log,
    kept: Checkpoints,
) -> None:
    """Train from the beginning, or in a run that goes on from a checkpoint, to the end."""
    checkpoints = CheckpointCallback(kept, validation, log.checkpoint_every, STOP.asked)
    logger = Logger(str(log.folder), [])
    model.set_logger(logger)

    def take(found: Checkpoint) -> None:
        model._setup_learn(0)  # makes the buffers that are filled now
        restore_training(model, found)
        validation.set_state(model.policy, found.tensors, found.state["validation"])
        checkpoints.last = found.path

    checkpoint = kept.restore(take) if log.resume else None
    # Events of the checkpoint's own step were written before it was.
    resumed = 0 if log.resume else None
    events = SyncedTensorBoard(log.folder, checkpoint.step + 1 if checkpoint else resumed)
    logger.output_formats.append(events)
    if model.num_timesteps >= timesteps:
        return  # only the report was missing
    bar = ProgressBar()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for networks of some thousand weights two take 1.7 times as long
    try:
        with STOP.deferred():
            model.learn(
                timesteps - model.num_timesteps,
                CallbackList([validation, checkpoints, bar]),
                reset_num_timesteps=checkpoint is None,
            )
    except (FloatingPointError, ValueError) as problem:
        # Distributions of torch meet logits that are not finite with a ValueError.
        if isinstance(problem, ValueError) and not str(problem).startswith(NOT_FINITE):
            raise
        raise FloatingPointError(_diverged(problem, model, checkpoints)) from problem
    finally:
        torch.set_num_threads(threads)
        if hasattr(bar, "bar"):
            bar.bar.close()
        events.close()


def _diverged(problem: Exception, model: OnPolicyAlgorithm, checkpoints: CheckpointCallback) -> str:
    """What is known when numbers stop being finite: the step, the queries, the way back."""
    what = str(problem)
    if what.startswith(NOT_FINITE):
        what = "the policy's logits are not finite"
    if f"step {model.num_timesteps}" not in what:
        what = f"{what}, at step {model.num_timesteps}"
    assert model.env is not None
    ids = model.env.get_attr("query_ids")[0]
    names = [str(ids[row]) for row in checkpoints.queries]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    last = f"is {checkpoints.last}" if checkpoints.last else "was not written yet"
    return (
        f"{what}; queries of the batch: {', '.join(names[:5])}{more}; the last good checkpoint"
        f" {last}"
    )


def train_on_all_rewards(task: RetrievalTask, spec: FullInformationSpec, log: Log) -> Trained:
    """A router trained on the rewards of all depths."""
    with SummaryWriter(str(log.folder)) as writer:
        router, facts = train_full_information(
            task,
            observation=spec.task.observation,
            network=spec.task.network,
            reward=spec.task.reward,
            settings=spec.learner,
            seed=spec.task.seed,
            balance=spec.task.balance,
            writer=writer,
        )
        return fitted(task, spec.task, router, facts, writer)


def fitted(
    task: RetrievalTask,
    settings: TaskSettings,
    router: DepthRouter,
    facts: dict[str, Any],
    writer: SummaryWriter,
) -> Trained:
    """The training, counted in training queries seen, as timesteps are; logs what was chosen."""
    queries = len(task.table("train"))
    history = [(epoch * queries, reward) for epoch, reward in facts.pop("history")]
    chosen_at = facts["best_epoch"] * queries
    bandit = Bandit(task.table("validation"), settings.observation, settings.reward)
    if len(bandit):
        depths, _ = router.predict(bandit.observations)
        summary = bandit.summary(depths)
        writer.add_scalar("eval/regret", summary.oracle - summary.mean, chosen_at)
        if summary.gap_closed is not None:
            writer.add_scalar("eval/gap_closed", summary.gap_closed, chosen_at)
        ndcg = Bandit(bandit.table, reward=NDCG).mean(depths)
        writer.add_scalar("eval/ndcg@10", ndcg, chosen_at)
        writer.add_histogram("policy/depths", torch.from_numpy(depths), chosen_at)
    return Trained(router, history, chosen_at, facts)


def forget_training(folder: Path) -> None:
    """Delete what a training keeps to go on from."""
    forget_checkpoints(folder / ROUTER)
