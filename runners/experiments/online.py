"""Training a learner that acts in the environment; what GRPO's and PPO's runners share."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
from stable_baselines3.common.callbacks import CallbackList, ProgressBarCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from agents.export import router_from_model
from agents.fitting import router_settings
from agents.grpo.policies import GRPOPolicyNetwork, SharedPolicyNetwork
from agents.networks import LIMIT, is_shared, standardisation
from agents.sb3.callbacks import CheckpointCallback, SyncedTensorBoard, ValidationCallback
from agents.sb3.stopping import STOP
from agents.sb3.training_state import restore_training
from agents.sb3.vec_env import to_sb3
from maw_gym.envs.bandit import Bandit
from maw_gym.errors import InputError
from maw_gym.files.cache import written_whole
from maw_gym.files.checkpoints import Checkpoint, Checkpoints
from maw_gym.routers.depth_router import DepthRouter
from maw_gym.tables.depth_table import NO_CENTROIDS
from maw_gym.tables.task import RetrievalTask, load_task
from runners.experiments.settings import CommonSettings, OnlineSettings

NOT_FINITE = "Expected parameter logits"  # how torch.distributions begins

# Makes the algorithm: environment, policy, arguments of the policy (standardisation).
MakeModel = Callable[[VecEnv, type[GRPOPolicyNetwork], dict[str, Any]], OnPolicyAlgorithm]


class Trained(NamedTuple):
    """What a learner leaves to the report.

    Attributes:
        router: from observation to depth.
        history: (timestep or epoch, mean validation reward).
        chosen_at: the timestep or epoch that was kept.
    """

    router: DepthRouter
    history: list[tuple[int, float]]
    chosen_at: int


def open_task(settings: CommonSettings) -> RetrievalTask:
    """The task of a run, with its tables built.

    Raises:
        InputError: the encoder cannot give the observation.
    """
    task = load_task(settings.dataset, settings.encoder, settings.device, settings.fold)
    if "clusters" in settings.observation and not len(task.embedder.maw.centroids):
        raise InputError(NO_CENTROIDS)  # before minutes go into tables
    for split in ("train", "validation", "test"):
        task.table(split)
    return task


def train_online(
    task: RetrievalTask,
    settings: OnlineSettings,
    learner: str,
    make_model: MakeModel,
    folder: Path,
) -> Trained:
    """Train on the `train` queries and keep the policy that is best on validation queries.

    Args:
        task: see `open_task`.
        settings: of the run.
        learner: its name, for the router's file.
        make_model: builds the algorithm.
        folder: of the run; gets the TensorBoard events and model.zip.
    """
    table = task.table("train")
    environment = gym.make_vec(
        "MAWDepth-v0",
        num_envs=settings.num_envs,
        group_size=settings.group_size,
        observation=settings.observation,
        alignment=settings.alignment,
        reward_weights=settings.reward_weights,
        table=table,
    )
    shared = is_shared(settings.network, table, settings.observation)
    observations = table.observation(settings.observation)
    mean, scale = standardisation(observations, table.num_depths if shared else 1)
    standard = {"mean": mean.tolist(), "scale": scale.tolist(), "limit": LIMIT}
    policy = SharedPolicyNetwork if shared else GRPOPolicyNetwork
    try:
        model = make_model(to_sb3(environment), policy, {"features_extractor_kwargs": standard})
    except ValueError as problem:  # of an algorithm that knows nothing of this package
        raise InputError(str(problem)) from None
    rollouts = -(-settings.timesteps // (settings.num_envs * model.n_steps))
    callback = ValidationCallback(
        task,
        Bandit(task.table("validation"), settings.observation, settings.reward),
        max(1, rollouts // settings.evaluations),
    )
    checkpoints = Checkpoints(folder / "checkpoints", _identity(task, settings, learner))
    if settings.resume is None:
        checkpoints.forget()
    _learn(model, callback, settings, folder, checkpoints)
    with written_whole(folder / "model.zip") as temporary:
        model.save(temporary)
    model.policy.load_state_dict(callback.best_weights)
    about = router_settings(task, learner, seed=settings.seed)
    router = router_from_model(model, settings.observation, about)
    return Trained(router, callback.history, callback.best_step)


def _identity(task: RetrievalTask, settings: OnlineSettings, learner: str) -> dict[str, Any]:
    """What tells the checkpoints of this run from those of another; where it lies is no part."""
    places = ("logdir", "run_name", "resume")
    return {
        "learner": learner,
        "settings": {name: v for name, v in asdict(settings).items() if name not in places},
        "collection": task.collection.provenance["content"],
        "encoder": task.embedder.fingerprint(),
    }


def _learn(
    model: OnPolicyAlgorithm,
    validation: ValidationCallback,
    settings: OnlineSettings,
    folder: Path,
    kept: Checkpoints,
) -> None:
    """Train from the beginning, or in a run that goes on from a checkpoint, to the end."""
    checkpoints = CheckpointCallback(kept, validation, settings.checkpoint_every)
    logger = Logger(str(folder), [])
    model.set_logger(logger)

    def take(found: Checkpoint) -> None:
        model._setup_learn(0)  # makes the buffers that are filled now
        restore_training(model, found)
        validation.set_state(model.policy, found.tensors, found.state["validation"])
        checkpoints.last = found.path

    checkpoint = None if settings.resume is None else kept.restore(take)
    # Events of the checkpoint's own step were written before it was.
    resumed = 0 if settings.resume is not None else None
    events = SyncedTensorBoard(folder, checkpoint.step + 1 if checkpoint else resumed)
    logger.output_formats.append(events)
    if model.num_timesteps >= settings.timesteps:
        return  # only the report was missing
    bar = ProgressBarCallback()
    try:
        with STOP.deferred():
            model.learn(
                settings.timesteps - model.num_timesteps,
                CallbackList([validation, checkpoints, bar]),
                reset_num_timesteps=checkpoint is None,
            )
    except (FloatingPointError, ValueError) as problem:
        # Distributions of torch meet logits that are not finite with a ValueError.
        if isinstance(problem, ValueError) and not str(problem).startswith(NOT_FINITE):
            raise
        raise FloatingPointError(_diverged(problem, model, checkpoints)) from problem
    finally:
        if hasattr(bar, "pbar"):
            bar.pbar.close()
        events.close()


def _diverged(problem: Exception, model: OnPolicyAlgorithm, checkpoints: CheckpointCallback) -> str:
    """What is known when numbers stop being finite: the step, the queries, the way back."""
    told = str(problem)
    if told.startswith(NOT_FINITE):
        told = "the policy's logits are not finite"
    if f"step {model.num_timesteps}" not in told:
        told = f"{told}, at step {model.num_timesteps}"
    names = list(checkpoints.queries)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    last = f"is {checkpoints.last}" if checkpoints.last else "was not written yet"
    return (
        f"{told}; queries of the batch: {', '.join(names[:5])}{more}; the last good checkpoint"
        f" {last}"
    )
