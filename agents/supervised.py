"""Learners without an environment: the supervised router, and one that sees all rewards.

Both fit the logits of a `DepthRouter` by gradient descent and keep the epoch of largest mean reward
on validation queries. The supervised router is a classifier over pooled attention (or any other
observation): cross-entropy with labels by rule or by oracle, plus a ranking loss through
Gumbel-softmax, InfoNCE of the relevant documents against sampled ones.

Notation: N training queries, B of one batch, O observed numbers, D depths, h embedding width, M
documents of one step.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from maw_gym.agents.networks import new_router, router_settings
from maw_gym.agents.settings import FitSettings, FullInformationSettings, SupervisedSettings
from maw_gym.attention.reference import pooled_state
from maw_gym.checkpoints import Best, EpochCheckpoints, Progress
from maw_gym.corpora import QuerySet
from maw_gym.encoders.training.stages import epoch_rows, listwise_loss
from maw_gym.envs.bandit import DEFAULT_REWARD, Bandit, RewardSpec
from maw_gym.errors import InputError
from maw_gym.files import fingerprint
from maw_gym.retrieval.ranking import TEMPERATURE
from maw_gym.routers.depth_router import DepthRouter
from maw_gym.tables.task import RetrievalTask

log = logging.getLogger(__name__)

RULE: Final = ((3, 5), (10, 15), (math.inf, 25))  # fewer relevant documents than, depth of 32
RULE_DEPTHS: Final = 32
# Every depth's embedding of these many queries is held: 0.5 GB with 32 depths of 256 numbers.
MOST_QUERIES: Final = 16_384
REWARD: Final = "eval/reward"  # tag of the mean validation reward

# Rows (B,) of the queries, their logits (B, D) and the share of the training that is done give
# the terms to log by name; the one called "loss" is minimised.
Terms = Callable[[Tensor, Tensor, float], dict[str, Tensor]]


class SupervisedClassificationRouter(nn.Module):
    """From the 5D attention to a depth: mean over depth, 8 x 8 pooling, classifier, argmax.

    Args:
        classifier: from standardised observations to D logits. Where its observation is the block
            `attention` alone, 5D tensors can be given; other blocks only as observations.
    """

    def __init__(self, classifier: DepthRouter) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, attention_weights_5d: Tensor, mask: Tensor | None = None) -> Tensor:
        """Depths (B,) int64 of attention (B, H, S, S, D) over tokens under mask (B, S)."""
        return self.attention_logits(attention_weights_5d, mask).argmax(-1)

    def attention_logits(self, attention_weights_5d: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, D) of attention (B, H, S, S, D); no mask (B, S): all tokens are real.

        Raises:
            InputError: the classifier's observation is not the block `attention`.
        """
        if self.classifier.observation != ("attention",):
            raise InputError(
                f"this router observes {', '.join(self.classifier.observation)}, which 5D"
                " attention does not give; use logits(observation)"
            )
        mean = attention_weights_5d.mean(-1)  # (B, H, S, S, D) -> (B, H, S, S)
        if mask is None:
            mask = torch.ones(mean.shape[0], mean.shape[-1], dtype=torch.bool, device=mean.device)
        return self.logits(pooled_state(mean, mask))  # (B, H, S, S) -> (B, 64 H) -> (B, D)

    def logits(self, observation: Tensor) -> Tensor:
        """Logits (B, D) of observations (B, O), such as a depth table's."""
        logits: Tensor = self.classifier(observation)
        return logits

    def predict(
        self,
        observation: NDArray[np.float32],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.int64], None]:
        """Depths of observations, as Stable-Baselines3's algorithms do; see `DepthRouter`."""
        return self.classifier.predict(observation, state, episode_start, deterministic)


def relevant_counts(queries: QuerySet) -> NDArray[np.int64]:
    """Number of documents (N,) graded above 0 for each query."""
    counts = [sum(grade > 0 for grade in grades.values()) for grades in queries.relevance]
    return np.array(counts, np.int64)


def rule_labels(counts: ArrayLike, depths: int) -> NDArray[np.int64]:
    """Labels (N,) by rule of (N,) relevant documents: the more of them, the broader the depth.

    Fewer than 3 relevant documents: depth 5; fewer than 10: 15; else 25, of 32. With other numbers
    of depths these are ``floor(5 D / 32)`` and so on: the same place in the range.
    """
    scaled = np.array([depth * depths // RULE_DEPTHS for _, depth in RULE], np.int64)
    return scaled[np.searchsorted([limit for limit, _ in RULE], np.asarray(counts), side="right")]


def label_facts(labels: NDArray[np.int64], depths: int) -> dict[str, Any]:
    """How labels (N,) are spread over D depths; from a constant only this depth can be learned."""
    histogram = np.bincount(labels, minlength=depths)
    return {
        "label_histogram": histogram.tolist(),
        "label_most_common": int(histogram.argmax()),
        "label_share_of_most_common": float(histogram.max() / max(len(labels), 1)),
        "label_constant": bool((histogram > 0).sum() <= 1),
    }


def label_sentence(facts: Mapping[str, Any]) -> str:
    """What the labels were, in words; a constant label is no lesson, and is called so."""
    depth, share = facts["label_most_common"], facts["label_share_of_most_common"]
    used = sum(count > 0 for count in facts["label_histogram"])
    if facts["label_constant"]:
        return (
            f"the {facts['labels']} labels are a CONSTANT: depth {depth} for every training query;"
            " there is nothing to classify"
        )
    return (
        f"the {facts['labels']} labels use {used} of {len(facts['label_histogram'])} depths; the"
        f" most common, depth {depth}, is that of {share:.1%} of the training queries"
    )


def gumbel_choice(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """A sampled choice (B, D), one-hot, with the gradient of the Gumbel-softmax."""
    noise = -torch.empty(logits.shape).exponential_(generator=generator).log()
    return one_hot_choice(logits + noise.to(logits.device), temperature)


def one_hot_choice(logits: Tensor, temperature: float) -> Tensor:
    """One-hot argmax of logits (B, D), whose gradient is that of softmax(logits / temperature)."""
    soft = (logits / temperature).softmax(-1)
    hard = nn.functional.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
    return hard + (soft - soft.detach())  # in this order the sum is exactly one-hot


class RankingLoss:
    """The listwise loss of the chosen depth's embedding, of training queries against their relevant
    and some other documents.
    """

    def __init__(self, task: RetrievalTask, negatives: int, generator: torch.Generator) -> None:
        self.negatives = negatives
        self.generator = generator
        self.index, embedder = task.index, task.embedder
        queries = task.collection.splits["train"]
        self.first_of = torch.from_numpy(task.index.first_of)
        self.relevant = [
            self.first_of[one.documents].unique() for one in task.index.relevant(queries)
        ]
        rows = torch.arange(len(queries.ids))
        if len(rows) > MOST_QUERIES:
            rows = torch.randperm(len(rows), generator=generator)[:MOST_QUERIES].sort().values
        self.place = torch.full((len(queries.ids),), -1)  # (N,) row in the embeddings, -1 without
        self.place[rows] = torch.arange(len(rows))
        shape = (len(rows), embedder.maw.depths, embedder.text.width)
        self.embeddings = torch.zeros(shape, device=task.device)  # of every depth
        ids = embedder.query_ids([queries.texts[row] for row in rows.tolist()])
        with torch.no_grad():
            label = "embeddings of all depths"
            for place, statistics in embedder.query_statistics(ids, progress=label):
                self.embeddings[place] = statistics.embeddings.float()

    def __call__(self, rows: Tensor, choice: Tensor) -> Tensor:
        """Mean loss of the queries `rows` (B,) under their choices (B, D); 0 of no query."""
        rows, device = rows.cpu(), choice.device
        place = self.place[rows]
        held = (place >= 0).nonzero()[:, 0]
        if not len(held):
            return choice.sum() * 0
        relevant = [self.relevant[row] for row in rows[held].tolist()]
        total = len(self.index)
        drawn = self.first_of  # all, where a sample would be no fewer
        if self.negatives < total:
            drawn = drawn[torch.randint(total, (self.negatives,), generator=self.generator)]
        documents = torch.cat([*relevant, drawn]).unique()
        judged = torch.zeros(len(relevant), len(documents), dtype=torch.bool)
        for row, found in enumerate(relevant):
            judged[row, torch.searchsorted(documents, found)] = True
        embeddings = self.embeddings[place[held].to(device)]
        chosen = torch.einsum("bd,bdh->bh", choice[held.to(device)], embeddings)
        vectors = self.index.vectors[documents.to(device)]
        return listwise_loss(chosen, vectors, judged.to(device), TEMPERATURE)


def train_supervised(
    task: RetrievalTask,
    *,
    observation: Sequence[str] = ("attention",),
    network: str = "auto",
    reward: RewardSpec = DEFAULT_REWARD,
    settings: SupervisedSettings | None = None,
    seed: int = 0,
    balance: float = 1.0,
    writer: SummaryWriter | None = None,
    checkpoint: Path | None = None,
) -> tuple[DepthRouter, dict[str, Any]]:
    """Train the classifier of a `SupervisedClassificationRouter` on the `train` queries.

    Args:
        task: with a MAW encoder.
        observation: blocks of the observation.
        network: see `maw_gym.tables.depth_table.is_shared`.
        reward: weights and alignment.
        settings: see `SupervisedSettings`; None are the defaults.
        seed: of weights, order, Gumbel noise and negatives.
        balance: exponent on the sizes of groups of queries: 1 learns from all queries alike, 0 from
            all groups alike.
        writer: gets ``train/loss``, ``train/cross_entropy``, ``train/ranking_loss``,
            ``train/temperature`` and ``eval/reward`` by epoch.
        checkpoint: folder from which a fit that was stopped goes on after its last epoch.

    Returns:
        The router, and facts: see `label_facts`; ``history`` of (epoch from 1, mean validation
        reward), ``best_epoch``, the first of the largest, ``validation_reward`` there, and
        ``judged_on``, the split, which is `train` where there is no validation query.

    Raises:
        InputError: a setting that does not exist or is out of its range, or no training query.
    """
    given = settings or SupervisedSettings()
    bandit = _training_bandit(task, observation, reward)
    depths = bandit.num_depths
    targets = bandit.oracle
    if given.labels == "rule":
        targets = rule_labels(relevant_counts(task.collection.splits["train"]), depths)
    facts: dict[str, Any] = {"labels": given.labels, **label_facts(targets, depths)}
    if facts["label_constant"]:
        log.info("the %s labels of all training queries are depth %d", given.labels, targets[0])
    generator = torch.Generator().manual_seed(seed)
    about = router_settings(task, f"supervised-{given.labels}", seed=seed)
    router = new_router(bandit.table, observation, network, about, generator).to(task.device)
    target = torch.from_numpy(targets).to(task.device)
    ranking = RankingLoss(task, given.negatives, generator) if given.ranking_weight > 0 else None

    def terms(rows: Tensor, logits: Tensor, progress: float) -> dict[str, Tensor]:
        cross_entropy = nn.functional.cross_entropy(logits, target[rows])
        if ranking is None:
            return {"loss": cross_entropy, "cross_entropy": cross_entropy}
        temperature = given.temperature(progress)
        ranking_loss = ranking(rows, gumbel_choice(logits, temperature, generator))
        return {
            "loss": cross_entropy + given.ranking_weight * ranking_loss,
            "cross_entropy": cross_entropy,
            "ranking_loss": ranking_loss,
            "temperature": torch.tensor(temperature),
        }

    label = f"supervised router ({given.labels} labels)"
    about_fit = _fit(
        task, router, bandit, terms, given, generator, label, balance, writer, checkpoint
    )
    return router, facts | about_fit


def train_full_information(
    task: RetrievalTask,
    *,
    observation: Sequence[str] = ("attention",),
    network: str = "auto",
    reward: RewardSpec = DEFAULT_REWARD,
    settings: FullInformationSettings | None = None,
    seed: int = 0,
    balance: float = 1.0,
    writer: SummaryWriter | None = None,
) -> tuple[DepthRouter, dict[str, Any]]:
    """Train the router that sees the reward of every depth and need not explore.

    Same network as GRPO's, same observations, same queries; the loss is minus the policy's expected
    reward ``sum_d pi(d | x) r(x, d)``, computed exactly, minus an entropy bonus. What it does not
    reach, no learner with this network and these observations can be blamed for missing.

    Arguments, facts and errors are those of `train_supervised`; `writer` gets ``train/loss``,
    ``train/expected_reward``, ``train/entropy`` and ``eval/reward`` by epoch.
    """
    given = settings or FullInformationSettings()
    bandit = _training_bandit(task, observation, reward)
    generator = torch.Generator().manual_seed(seed)
    about = router_settings(task, "full_information", seed=seed)
    router = new_router(bandit.table, observation, network, about, generator).to(task.device)
    rewards = torch.tensor(bandit.rewards, device=task.device)
    advantage = standardised(rewards)

    def terms(rows: Tensor, logits: Tensor, progress: float) -> dict[str, Tensor]:
        return full_information_terms(logits, rewards[rows], advantage[rows], given.ent_coef)

    label = "full-information router"
    return router, _fit(task, router, bandit, terms, given, generator, label, balance, writer)


def standardised(reward: Tensor) -> Tensor:
    """Reward (N, D) minus each query's mean, over the standard deviation of all that is left.

    The best policy stays the same: a query's mean is the same for every depth, and one factor
    serves all queries. Without it the weights of the reward would act as a learning rate.
    """
    centred = reward - reward.mean(1, keepdim=True)
    return centred / centred.std(correction=0).clamp(min=1e-6)


def full_information_terms(
    logits: Tensor, reward: Tensor, advantage: Tensor, ent_coef: float
) -> dict[str, Tensor]:
    """Loss of a softmax policy (B, D) under full information, and what is logged; means."""
    log_policy = logits.log_softmax(-1)
    policy = log_policy.exp()
    entropy = -(policy * log_policy).sum(-1).mean()
    loss = -(policy * advantage).sum(-1).mean() - ent_coef * entropy
    expected = (policy * reward).sum(-1).mean()
    return {"loss": loss, "expected_reward": expected, "entropy": entropy}


def _training_bandit(task: RetrievalTask, observation: Sequence[str], reward: RewardSpec) -> Bandit:
    bandit = Bandit(task.table("train"), observation, reward)
    if not len(bandit):
        raise InputError(f"{task.collection.name!r} has no training query to learn from")
    return bandit


def _fit(
    task: RetrievalTask,
    router: DepthRouter,
    bandit: Bandit,
    terms: Terms,
    settings: FitSettings,
    generator: torch.Generator,
    label: str,
    balance: float,
    writer: SummaryWriter | None,
    checkpoint: Path | None = None,
) -> dict[str, Any]:
    """Train a router in place, leave it with the weights of its best epoch, and say how it went."""
    groups = bandit.table.groups
    if balance != 1 and not any(groups):
        raise InputError(f"balance {balance} needs queries in groups; leave it at 1")
    split = "validation" if task.collection.splits["validation"].ids else "train"
    judge = Bandit(task.table(split), bandit.blocks, bandit.reward)
    observations = torch.tensor(bandit.observations, device=task.device)
    optimizer = torch.optim.AdamW(
        router.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
    )
    per_epoch = math.ceil(len(observations) / settings.batch_size)
    about = {
        "label": label,
        "settings": asdict(settings),
        "observations": fingerprint({"observations": observations}),
        "balance": balance,
    }
    kept = EpochCheckpoints(checkpoint, about, router.state_dict(), optimizer, generator)
    finished, best, history = kept.restore_epoch(Progress(0, Best(-math.inf, 0, {}), []))

    def write(measured: dict[str, float], epoch: int) -> None:
        if writer is not None:
            for name, value in measured.items():
                writer.add_scalar(name, value, epoch * len(observations))

    for epoch, known in enumerate(history, 1):
        write(known, epoch)
    steps, done = settings.epochs * per_epoch, finished * per_epoch
    with tqdm(total=steps, desc=f"fitting {label}", delay=2, leave=False, disable=None) as bar:
        bar.update(done)
        for epoch in range(finished + 1, settings.epochs + 1):
            records = []
            order = epoch_rows(groups or [""] * len(observations), balance, generator)
            for rows in order.split(settings.batch_size):
                place = rows.to(observations.device)
                found = terms(place, router(observations[place]), done / steps)
                records.append({name: value.item() for name, value in found.items()})
                if not math.isfinite(records[-1]["loss"]):
                    raise FloatingPointError(
                        f"loss {records[-1]['loss']} in epoch {epoch} of fitting the {label};"
                        " lower the learning rate"
                    )
                optimizer.zero_grad(set_to_none=True)
                found["loss"].backward()
                optimizer.step()
                done += 1
                bar.update()
            reward = judge.mean(router.predict(judge.observations)[0])
            means = {
                f"train/{name}": float(np.mean([record[name] for record in records]))
                for name in records[0]
            }
            history.append(means | {REWARD: reward})
            bar.set_postfix({"validation reward": f"{reward:.4f}"}, refresh=False)
            if reward > best.score:
                weights = {name: value.clone() for name, value in router.state_dict().items()}
                best = Best(reward, epoch, weights)
            write(history[-1], epoch)
            kept.write_epoch(Progress(epoch, best, history))
    router.load_state_dict(best.weights)
    router.eval().requires_grad_(False)
    return {
        "history": [(epoch, known[REWARD]) for epoch, known in enumerate(history, 1)],
        "best_epoch": best.epoch,
        "validation_reward": best.score,
        "judged_on": split,
    }
