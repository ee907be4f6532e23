"""Training: the task that settings name, a learner's way through it, and the frame of a run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NamedTuple

import gymnasium as gym
import torch
from stable_baselines3.common.callbacks import CallbackList, ProgressBarCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch.utils.tensorboard import SummaryWriter

from agents.baselines import train_full_information
from agents.export import router_from_model
from agents.fitting import router_settings
from agents.grpo import GRPO
from agents.grpo.policies import GRPOPolicyNetwork, SharedPolicyNetwork
from agents.grpo.settings import GRPOSettings
from agents.networks import LIMIT, is_shared, standardisation
from agents.ppo import make_ppo
from agents.sb3.callbacks import CheckpointCallback, SyncedTensorBoard, ValidationCallback
from agents.sb3.stopping import STOP
from agents.sb3.training_state import restore_training
from agents.sb3.vec_env import to_sb3
from agents.settings import FullInformationSettings, SupervisedSettings
from agents.supervised import label_sentence, train_supervised
from maw_gym.checkpoints import Checkpoint, Checkpoints, forget_checkpoints, stage_folder
from maw_gym.corpora import Collection, load_collection
from maw_gym.envs.bandit import NDCG, Bandit
from maw_gym.envs.rendering import check_matplotlib
from maw_gym.errors import InputError
from maw_gym.files import written_whole
from maw_gym.routers.depth_router import DepthRouter
from maw_gym.settings import part
from maw_gym.tables.task import RetrievalTask, load_task
from runners.experiments.runs import CONFIG, Stopwatch, open_run, read_config, write_config
from runners.experiments.settings import (
    DataSettings,
    FullInformationSpec,
    GRPOSpec,
    OnlineSettings,
    PPOSpec,
    RouterSettings,
    RunSettings,
    SupervisedSpec,
)


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


NOT_FINITE: Final = "Expected parameter logits"  # how torch.distributions begins

# Makes the algorithm: environment, policy, and the arguments that every algorithm of SB3 has.
MakeModel = Callable[..., OnPolicyAlgorithm]


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


def train_grpo(task: RetrievalTask, spec: GRPOSpec, log: Log) -> Trained:
    """A router trained with GRPO."""

    def make(env: VecEnv, policy: type[GRPOPolicyNetwork], **others: Any) -> GRPO:
        return GRPO(policy, env, **asdict(part(GRPOSettings, spec)), **others)

    return train_online(task, spec, "GRPO", make, log)


def train_ppo(task: RetrievalTask, spec: PPOSpec, log: Log) -> Trained:
    """A router trained with PPO."""

    def make(env: VecEnv, policy: type[GRPOPolicyNetwork], **others: Any) -> OnPolicyAlgorithm:
        return make_ppo(env, spec, policy=policy, **others)

    return train_online(task, spec, "PPO", make, log)


def train_online(
    task: RetrievalTask,
    spec: OnlineSettings,
    learner: str,
    make_model: MakeModel,
    log: Log,
) -> Trained:
    """Train on the `train` queries and keep the mean of the weights from half-time on.

    Args:
        task: with tables of training and validation queries.
        spec: of the training.
        learner: its name, for the router's file.
        make_model: builds the algorithm.
        log: see `Log`.
    """
    table = task.table("train")
    environment = gym.make_vec(
        "MAWDepth-v0",
        num_envs=spec.num_envs,
        group_size=spec.group_size,
        observation=spec.observation,
        alignment=spec.alignment,
        reward_weights=spec.reward_weights,
        balance=spec.balance,
        table=table,
    )
    shared = is_shared(spec.network, spec.observation)
    observations = table.observation(spec.observation)
    mean, scale = standardisation(observations, table.num_depths if shared else 1)
    standard = {"mean": mean.tolist(), "scale": scale.tolist(), "limit": LIMIT}
    policy = SharedPolicyNetwork if shared else GRPOPolicyNetwork
    others: dict[str, Any] = {"policy_kwargs": {"features_extractor_kwargs": standard}}
    # Some thousand weights: a GPU would wait for its launches, and take twice a CPU's time.
    device = "cpu" if shared and spec.device == "auto" else spec.device
    others |= {"seed": spec.seed, "device": device}
    try:
        model = make_model(to_sb3(environment), policy, **others)
    except ValueError as problem:  # of an algorithm that knows nothing of this package
        raise InputError(str(problem)) from None
    rollouts = -(-spec.timesteps // (spec.num_envs * model.n_steps))
    callback = ValidationCallback(
        task,
        Bandit(task.table("validation"), spec.observation, spec.reward),
        interval=max(1, rollouts // spec.evaluations),
        average_from=spec.timesteps // 2,
    )
    kept = Checkpoints(log.folder / "checkpoints", _identity(task, spec, learner))
    if not log.resume:
        kept.forget()
    _learn(model, callback, spec.timesteps, log, kept)
    with written_whole(log.folder / "model.zip") as temporary:
        model.save(temporary)
    model.policy.load_state_dict(callback.average.module.state_dict())
    about = router_settings(task, learner, seed=spec.seed)
    router = router_from_model(model, spec.observation, about)
    return Trained(router, callback.history, callback.average_from, {}, callback.training)


def _identity(task: RetrievalTask, spec: OnlineSettings, learner: str) -> dict[str, Any]:
    """What tells the checkpoints of this training from those of another."""
    return {
        "learner": learner,
        "settings": asdict(spec),
        "collection": task.collection.provenance["content"],
        "encoder": task.embedder.fingerprint(),
    }


def _learn(
    model: OnPolicyAlgorithm,
    validation: ValidationCallback,
    timesteps: int,
    log: Log,
    kept: Checkpoints,
) -> None:
    """Train from the beginning, or in a run that goes on from a checkpoint, to the end."""
    checkpoints = CheckpointCallback(kept, validation, log.checkpoint_every)
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
    bar = ProgressBarCallback()
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
        if hasattr(bar, "pbar"):
            bar.pbar.close()
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


ROUTER: Final = "router.safetensors"


def train_classifier(task: RetrievalTask, spec: SupervisedSpec, log: Log) -> Trained:
    """A router trained on labels.

    Its last finished epoch is kept in the folder until `forget_training`. The events of a training
    that goes on are written anew, those before the stop included.
    """
    if not log.resume:
        forget_training(log.folder)
    for events in log.folder.glob("events.out.tfevents.*"):
        events.unlink()
    with SummaryWriter(str(log.folder)) as writer:
        router, facts = train_supervised(
            task,
            labels=spec.labels,
            observation=spec.observation,
            network=spec.network,
            reward=spec.reward,
            settings=part(SupervisedSettings, spec),
            seed=spec.seed,
            balance=spec.balance,
            writer=writer,
            checkpoint=stage_folder(log.folder / ROUTER, "training"),
        )
        return _trained(task, spec, router, facts, writer)


def train_on_all_rewards(task: RetrievalTask, spec: FullInformationSpec, log: Log) -> Trained:
    """A router trained on the rewards of all depths."""
    with SummaryWriter(str(log.folder)) as writer:
        router, facts = train_full_information(
            task,
            observation=spec.observation,
            network=spec.network,
            reward=spec.reward,
            settings=part(FullInformationSettings, spec),
            seed=spec.seed,
            balance=spec.balance,
            writer=writer,
        )
        return _trained(task, spec, router, facts, writer)


def forget_training(folder: Path) -> None:
    """Delete what a training keeps to go on from."""
    forget_checkpoints(folder / ROUTER)


def _trained(
    task: RetrievalTask,
    spec: RouterSettings,
    router: DepthRouter,
    facts: dict[str, Any],
    writer: SummaryWriter,
) -> Trained:
    """The training, counted in training queries seen, as timesteps are; logs what was chosen."""
    queries = len(task.table("train"))
    history = [(epoch * queries, reward) for epoch, reward in facts.pop("history")]
    chosen_at = facts["best_epoch"] * queries
    bandit = Bandit(task.table("validation"), spec.observation, spec.reward)
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


def train_run(
    settings: RunSettings,
    spec: RouterSettings,
    learner: str,
    train: Callable[[RetrievalTask, Any, Log], Trained],
) -> None:
    """Train, judge on the test split, and leave a run folder.

    Args:
        settings: where the run is kept, and how it is told in config.json.
        spec: what is trained.
        learner: its name in the table and, in lower case, in the folder's name.
        train: see `runners.experiments.training`.
    """
    # Late: the report's list of methods knows the trainings of this file.
    from runners.experiments.methods import by_training
    from runners.experiments.report import report

    check_matplotlib()
    folder = open_run(settings, f"{learner.lower()}-{spec.dataset}-seed{spec.seed}")
    watch = Stopwatch()
    with watch.stage("encoder and depth tables"):
        task = open_task(spec)
    write_config(folder, learner, settings, task.collection.provenance, task.encoder_provenance)
    log = Log(folder, settings.resume is not None, getattr(settings, "checkpoint_every", 0))
    with watch.stage("training"):
        result = by_training(train, task, spec, "test", log)
    if "label_histogram" in result.facts:
        print(f"\nlabels: {label_sentence(result.facts)}")
    report(task, spec, learner, result, folder, watch)
    # Only now: a run that was stopped in its report has nothing to train again.
    forget_training(folder)


def open_task(spec: RouterSettings) -> RetrievalTask:
    """The task of a run, with its tables built."""
    task = task_of(spec)
    for split in ("train", "validation", "test"):
        task.table(split)
    return task
