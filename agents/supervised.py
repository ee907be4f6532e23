"""Learners without an environment: the supervised router, and one that sees all rewards.

Both fit the logits of a `DepthRouter`. The supervised router is a classifier over pooled attention
(or any other observation): cross-entropy with labels by rule or by oracle, plus a ranking loss
through Gumbel-softmax, InfoNCE of the relevant documents against sampled ones.

Notation: N training queries, B of one batch, O observed numbers, D depths, h embedding width, M
documents of one step.
"""

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

RULE: Final = ((3, 5), (10, 15), (math.inf, 25))  # fewer relevant documents than, depth of 32
RULE_DEPTHS: Final = 32
# Every depth's embedding of these many queries is held: 0.5 GB with 32 depths of 256 numbers.
MOST_QUERIES: Final = 16_384
REWARD: Final = "eval/reward"  # tag of the mean validation reward

# Rows (B,) of the queries, their logits (B, D) and the share of the training that is done give
# the terms to log by name; the one called "loss" is minimised.
Terms = Callable[[Tensor, Tensor, float], dict[str, Tensor]]
Fitted = tuple[DepthRouter, dict[str, Any]]


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
        self, observation: NDArray[np.float32], *given: Any, **named: Any
    ) -> tuple[NDArray[np.int64], None]:
        """Depths of observations, as Stable-Baselines3's algorithms do; see `DepthRouter`."""
        return self.classifier.predict(observation, *given, **named)


def relevant_counts(queries: QuerySet) -> NDArray[np.int64]:
    """Number of documents (N,) graded above 0 for each query."""
    counts = [sum(grade > 0 for grade in grades.values()) for grades in queries.relevance]
    return np.array(counts, np.int64)


def rule_labels(counts: ArrayLike, depths: int) -> NDArray[np.int64]:
    """Labels (N,) by rule of (N,) relevant documents: the more of them, the broader the depth.

    Fewer than 3 relevant documents: depth ``floor(5 D / 32)``; fewer than 10: of 15; else of 25.
    """
    scaled = np.array([depth * depths // RULE_DEPTHS for _, depth in RULE], np.int64)
    return scaled[np.searchsorted([limit for limit, _ in RULE], np.asarray(counts), side="right")]


def label_facts(labels: NDArray[np.int64], depths: int) -> dict[str, Any]:
    """How labels (N,) are spread over D depths."""
    histogram = np.bincount(labels, minlength=depths)
    return {
        "label_histogram": histogram.tolist(),
        "label_most_common": int(histogram.argmax()),
        "label_share_of_most_common": float(histogram.max() / max(len(labels), 1)),
        "label_constant": bool((histogram > 0).sum() <= 1),
    }


def label_sentence(facts: Mapping[str, Any]) -> str:
    """What the labels were, in words."""
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
        self.negatives, self.generator = negatives, generator
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
            for place, one in embedder.query_statistics(ids, progress="embeddings of all depths"):
                self.embeddings[place] = one.embeddings.float()

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
    task: RetrievalTask, *, settings: SupervisedSettings | None = None, **given: Any
) -> Fitted:
    """Train the classifier of a `SupervisedClassificationRouter` on the `train` queries.

    Further arguments, facts and errors are those of `fit`; the facts also say ``labels`` and what
    `label_facts` does, and the terms are ``cross_entropy``, ``ranking_loss`` and ``temperature``.
    """
    wanted = settings or SupervisedSettings()
    facts: dict[str, Any] = {"labels": wanted.labels}

    def terms_of(bandit: Bandit, generator: torch.Generator) -> Terms:
        depths, targets = bandit.num_depths, bandit.oracle
        if wanted.labels == "rule":
            targets = rule_labels(relevant_counts(task.collection.splits["train"]), depths)
        facts.update(label_facts(targets, depths))
        target, ranking = torch.from_numpy(targets).to(task.device), None
        if wanted.ranking_weight > 0:
            ranking = RankingLoss(task, wanted.negatives, generator)

        def terms(rows: Tensor, logits: Tensor, progress: float) -> dict[str, Tensor]:
            cross_entropy = nn.functional.cross_entropy(logits, target[rows])
            if ranking is None:
                return {"loss": cross_entropy, "cross_entropy": cross_entropy}
            temperature = wanted.temperature(progress)
            ranking_loss = ranking(rows, gumbel_choice(logits, temperature, generator))
            return {
                "loss": cross_entropy + wanted.ranking_weight * ranking_loss,
                "cross_entropy": cross_entropy,
                "ranking_loss": ranking_loss,
                "temperature": torch.tensor(temperature),
            }

        return terms

    router, found = fit(task, f"supervised-{wanted.labels}", terms_of, wanted, **given)
    return router, facts | found


def train_full_information(
    task: RetrievalTask, *, settings: FullInformationSettings | None = None, **given: Any
) -> Fitted:
    """Train the router that sees the reward of every depth and need not explore.

    Same network as GRPO's, same observations, same queries; the loss is minus the policy's expected
    reward ``sum_d pi(d | x) r(x, d)``, computed exactly, minus an entropy bonus. What it does not
    reach, no learner with this network and these observations can be blamed for missing.

    Further arguments, facts and errors are those of `fit`; the terms are ``expected_reward`` and
    ``entropy``.
    """
    wanted = settings or FullInformationSettings()

    def terms_of(bandit: Bandit, generator: torch.Generator) -> Terms:
        rewards = torch.tensor(bandit.rewards, device=task.device)
        advantage = standardised(rewards)
        return lambda rows, logits, progress: full_information_terms(
            logits, rewards[rows], advantage[rows], wanted.ent_coef
        )

    return fit(task, "full_information", terms_of, wanted, **given)


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


def fit(
    task: RetrievalTask,
    learner: str,
    terms_of: Callable[[Bandit, torch.Generator], Terms],
    settings: FitSettings,
    *,
    observation: Sequence[str] = ("attention",),
    network: str = "auto",
    reward: RewardSpec = DEFAULT_REWARD,
    seed: int = 0,
    balance: float = 1.0,
    writer: SummaryWriter | None = None,
    checkpoint: Path | None = None,
) -> Fitted:
    """Fit a router to terms by AdamW and leave it with the weights of its best epoch.

    Args:
        task: with a MAW encoder.
        learner: the name in the router's file.
        terms_of: makes the terms; they may draw from the generator.
        settings: see `FitSettings`.
        observation: blocks of the observation.
        network: see `maw_gym.tables.depth_table.is_shared`.
        reward: weights and alignment.
        seed: of weights, order, and what the terms draw.
        balance: exponent on the sizes of groups of queries: 1 learns from all queries alike, 0 from
            all groups alike.
        writer: gets the means of all terms as ``train/...``, and ``eval/reward``, by epoch.
        checkpoint: folder from which a fit that was stopped goes on after its last epoch.

    Returns:
        The router, and facts: ``history`` of (epoch from 1, mean validation reward),
        ``best_epoch``, the first of the largest, ``validation_reward`` there, and ``judged_on``,
        the split, which is `train` where there is no validation query.

    Raises:
        InputError: no training query, or a balance of queries without groups.
    """
    bandit = Bandit(task.table("train"), observation, reward)
    if not len(bandit):
        raise InputError(f"{task.collection.name!r} has no training query to learn from")
    groups = bandit.table.groups
    if balance != 1 and not any(groups):
        raise InputError(f"balance {balance} needs queries in groups; leave it at 1")
    generator = torch.Generator().manual_seed(seed)
    named = router_settings(task, learner, seed=seed)
    router = new_router(bandit.table, observation, network, named, generator).to(task.device)
    terms = terms_of(bandit, generator)
    split = "validation" if task.collection.splits["validation"].ids else "train"
    judge = Bandit(task.table(split), bandit.blocks, bandit.reward)
    observations = torch.tensor(bandit.observations, device=task.device)
    optimizer = torch.optim.AdamW(
        router.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
    )
    about = {
        "learner": learner,
        "settings": asdict(settings),
        "observations": fingerprint({"observations": observations}),
        "balance": balance,
    }
    kept = EpochCheckpoints(checkpoint, about, router.state_dict(), optimizer, generator)
    finished, best, history = kept.restore_epoch(Progress(0, Best(-math.inf, 0, {}), []))

    def write(epoch: int) -> None:
        if writer is not None:
            for name, value in history[epoch - 1].items():
                writer.add_scalar(name, value, epoch * len(observations))

    for epoch in range(1, finished + 1):
        write(epoch)
    per_epoch = math.ceil(len(observations) / settings.batch_size)
    steps, done = settings.epochs * per_epoch, finished * per_epoch
    bar = tqdm(
        total=steps, initial=done, desc=f"fitting {learner}", delay=2, leave=False, disable=None
    )
    for epoch in range(finished + 1, settings.epochs + 1):
        records = []
        order = epoch_rows(groups or [""] * len(observations), balance, generator)
        for rows in order.split(settings.batch_size):
            place = rows.to(observations.device)
            found = terms(place, router(observations[place]), done / steps)
            records.append({name: value.item() for name, value in found.items()})
            if not math.isfinite(records[-1]["loss"]):
                raise FloatingPointError(
                    f"loss {records[-1]['loss']} in epoch {epoch} of fitting {learner}; lower the"
                    " learning rate"
                )
            optimizer.zero_grad(set_to_none=True)
            found["loss"].backward()
            optimizer.step()
            done += 1
            bar.update()
        mean = judge.mean(router.predict(judge.observations)[0])
        history.append({f"train/{n}": float(np.mean([r[n] for r in records])) for n in records[0]})
        history[-1][REWARD] = mean
        if mean > best.score:
            best = Best(mean, epoch, {n: value.clone() for n, value in router.state_dict().items()})
        write(epoch)
        kept.write_epoch(Progress(epoch, best, history))
    bar.close()
    router.load_state_dict(best.weights)
    router.eval().requires_grad_(False)
    return router, {
        "history": [(epoch, known[REWARD]) for epoch, known in enumerate(history, 1)],
        "best_epoch": best.epoch,
        "validation_reward": best.score,
        "judged_on": split,
    }
