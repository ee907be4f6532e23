"""Change one setting of GRPO at a time: network, observation, advantage, alignment, weights, KL."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from maw_gym.envs.bandit import Bandit
from maw_gym.errors import InputError
from maw_gym.files.cache import written_whole
from maw_gym.retrieval.significance import sign_flip_test
from maw_gym.tables.rewards import DEFAULT_REWARD
from maw_gym.tables.task import RetrievalTask
from runners.experiments.online import open_task, train_online
from runners.experiments.runs import Stopwatch, new_run, run_main, write_config, write_json
from runners.experiments.settings import OnlineSettings
from runners.experiments.tables import markdown, number, p_value
from runners.train_grpo import GRPOSettings

VARIANTS: Final[dict[str, dict[str, Any]]] = {
    "defaults": {},
    "network: mlp": {"network": "mlp"},
    "observation: attention, mlp": {"observation": ("attention",)},
    "observation: profile": {"observation": ("profile",)},
    "observation: content, mlp": {"observation": ("content",)},
    "observation: clusters": {"observation": ("clusters",)},
    "observation: profile and clusters": {"observation": ("profile", "clusters")},
    "observation: all four, mlp": {"observation": ("attention", "profile", "content", "clusters")},
    "advantage: critic": {"advantage": "critic"},
    "advantage: group": {"advantage": "group"},
    "advantage: group_mean": {"advantage": "group_mean"},
    "alignment: listwise": {"alignment": "listwise"},
    "reward: alignment alone": {"reward_weights": (0.0, 0.0, 1.0)},
    "reward: equal weights": {"reward_weights": (1 / 3, 1 / 3, 1 / 3)},
    "kl: k3, sampled": {"kl": "k3"},
    "kl: none": {"kl_coef": 0.0},
    "clipped, 4 passes": {"ratio": "old", "clip_range": 0.2, "n_epochs": 4},
    "clipped higher above (DAPO), 4 passes": {
        "ratio": "old",
        "clip_range": 0.2,
        "clip_range_high": 0.28,
        "n_epochs": 4,
    },
}


@dataclass(frozen=True)
class AblateSettings:
    """Where GRPO's settings are tried out."""

    dataset: str = "pydocs"
    """an ir_datasets id or a folder in BEIR's layout"""
    encoder: str = "trained"
    """trained (on this dataset, cached), untrained, or the path of an encoder.safetensors"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """of the learner"""
    timesteps: int = OnlineSettings.timesteps
    """environment steps of every training"""
    fold: int = 0
    """which of 5 folds is the test split, for datasets without subsets"""
    device: str = "auto"
    """auto (the GPU where there is one), cpu, cuda, ..."""
    logdir: Path = field(default_factory=lambda: Path("runs"))
    """folder of all runs"""
    run_name: str | None = None
    """folder of this ablation inside logdir; made of dataset and time unless given"""

    def check(self) -> None:
        """Refuse what can be refused before any work starts."""
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"seeds must differ, got {' '.join(map(str, self.seeds)) or 'none'}")
        for seed in self.seeds:
            self.grpo({}, seed).check()

    def grpo(self, variant: Mapping[str, Any], seed: int) -> GRPOSettings:
        """Settings of one training."""
        own = {one.name for one in fields(self)} & {one.name for one in fields(GRPOSettings)}
        told = {name: getattr(self, name) for name in own} | {"seed": seed}
        return replace(GRPOSettings(**told), **variant)


def try_variant(
    task: RetrievalTask, settings: AblateSettings, variant: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """Train with every seed; what the greedy depths of test queries are worth.

    Returns:
        ``gap_closed`` of the variant's own reward, by seed; ``default_reward`` (N,), the reward of
        the default weights, and ``ndcg`` (N,), both averaged over seeds.
    """
    ordinary = Bandit(task.table("test"), reward=DEFAULT_REWARD)
    gaps, rewards, ndcg = [], [], []
    for seed in settings.seeds:
        told = settings.grpo(variant, seed)
        trained = train_online(task, told, "GRPO", told.model, folder / f"seed{seed}")
        own = Bandit(task.table("test"), told.observation, told.reward)
        depths, _ = trained.router.predict(own.observations)
        gaps.append(own.gap_closed(depths))
        rewards.append(ordinary.chosen(depths))
        evaluation, _ = task.evaluate("test", torch.from_numpy(depths))
        ndcg.append(evaluation.per_query["nDCG@10"])
    return {
        "gap_closed": gaps,
        "default_reward": np.mean(rewards, axis=0),
        "ndcg": np.mean(ndcg, axis=0),
    }


def main(settings: AblateSettings) -> None:
    """Train every variant, print the table, and leave it in report.md."""
    settings.check()
    folder = new_run(settings.logdir, settings.run_name, f"ablate-{settings.dataset}")
    watch = Stopwatch()
    with watch.stage("encoder and depth tables"):
        task = open_task(settings.grpo({}, 0))
    write_config(folder, "ablation", settings, task.collection.provenance, task.encoder_provenance)
    centroids = len(task.embedder.maw.centroids)
    found = {}
    for name, variant in VARIANTS.items():
        if "clusters" in variant.get("observation", ()) and not centroids:
            continue  # an untrained encoder has none
        if variant and settings.grpo(variant, 0) == settings.grpo({}, 0):
            continue  # the default, said once more
        with watch.stage(name):
            place = folder / "training" / "".join(c if c.isalnum() else "-" for c in name)
            found[name] = try_variant(task, settings, variant, place)
    text = table(found)
    rows = {
        name: {
            "gap_closed": one["gap_closed"],
            "reward": float(one["default_reward"].mean()),
            "nDCG@10": float(one["ndcg"].mean()),
        }
        for name, one in found.items()
    }
    write_json(folder / "metrics.json", {"variants": rows, "wall_seconds": watch.seconds})
    with written_whole(folder / "report.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    print(text)
    print(f"\n{len(task.table('test'))} test queries of {settings.dataset}; run: {folder}")


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Gap closed, reward and nDCG@10 of every variant, tested against the defaults."""
    head = ["GRPO with", "gap closed", "reward", "p", "nDCG@10", "minus defaults", "p"]
    base = found["defaults"]
    lines = []
    for name, one in found.items():
        gaps = [gap for gap in one["gap_closed"] if gap is not None]
        gap = number(float(np.mean(gaps)) if gaps else None, 3)
        tested = ["-", number(one["ndcg"].mean()), "-", "-"]
        if name != "defaults":
            difference = one["ndcg"] - base["ndcg"]
            tested = [
                p_value(sign_flip_test(one["default_reward"] - base["default_reward"])),
                number(one["ndcg"].mean()),
                number(difference.mean(), 4, sign=True),
                p_value(sign_flip_test(difference)),
            ]
        lines.append([name, gap, number(one["default_reward"].mean()), *tested])
    return (
        markdown(head, lines)
        + "\n\nGap closed: of each variant's own reward, mean over seeds. Reward: that of the"
        " default weights and alignment. p: paired sign-flip test over test queries against the"
        " defaults, scores averaged over seeds, 10,000 draws, not corrected for the number of"
        " variants. Blocks without numbers of every depth need the MLP: see `network: mlp` beside"
        " them."
    )


if __name__ == "__main__":
    run_main(AblateSettings, main)
