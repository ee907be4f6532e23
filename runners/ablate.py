"""Change one setting of GRPO at a time: network, observation, advantage, alignment, weights, KL.

Finished trainings stay in the folder of the ablation: `--resume FOLDER` goes on where it was
stopped.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, ClassVar, Final

import numpy as np
from pydantic import AfterValidator, Field

from maw_gym.envs.bandit import DEFAULT_REWARD, Bandit
from maw_gym.errors import InputError
from maw_gym.files import write_json, written_whole
from maw_gym.retrieval.significance import sign_flip_tests
from maw_gym.settings import Count, Seed, checked
from runners.experiments.command_line import Section, changed
from runners.experiments.comparison import Fold, run_cell
from runners.experiments.methods import Method, by_training
from runners.experiments.report import markdown, number, p_value
from runners.experiments.runs import Stopwatch, open_run, run_main, write_config
from runners.experiments.settings import (
    CommonSpec,
    GRPOSpec,
    OnlineSettings,
    RunSettings,
    TaskSettings,
)
from runners.experiments.training import open_task
from runners.train_grpo import train_grpo

VARIANTS: Final[dict[str, dict[str, Any]]] = {
    "defaults": {},
    "network: mlp": {"network": "mlp"},
    "observation: attention, mlp": {"observation": ("attention",)},
    "observation: profile": {"observation": ("profile",)},
    "observation: content, mlp": {"observation": ("content",)},
    "observation: profile and retrieval": {"observation": ("profile", "retrieval")},
    "observation: all but retrieval, mlp": {"observation": ("attention", "profile", "content")},
    "advantage: critic": {"advantage": "critic"},
    "advantage: outcome": {"advantage": "outcome"},
    "advantage: group_mean": {"advantage": "group_mean"},
    "alignment: listwise": {"alignment": "listwise"},
    "reward: alignment alone": {"reward_weights": (0.0, 0.0, 1.0)},
    "reward: equal weights": {"reward_weights": (1 / 3, 1 / 3, 1 / 3)},
    "kl: k3, sampled": {"kl": "k3"},
    "kl: none": {"kl_coef": 0.0},
    "one pass in one step, unclipped": {"clip_range": None, "n_epochs": 1, "batch_size": None},
    "4 passes": {"n_epochs": 4},
    "clipped higher above (DAPO)": {"clip_range_high": 0.28},
}


def _different(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) != len(seeds):
        raise InputError(f"seeds must differ, got {' '.join(map(str, seeds))}")
    return seeds


@checked
class AblateSettings:
    """Where GRPO's settings are tried out."""

    main_flags: ClassVar = (
        "dataset",
        "text_encoder",
        "timesteps",
        "seeds",
        "device",
        "run_name",
        "resume",
    )

    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(_different)] = (0, 1, 2)
    """of the learner"""
    task: Annotated[
        TaskSettings,
        Section(without=("seed", "alignment", "reward_weights", "observation", "network")),
    ] = TaskSettings()
    run: RunSettings = RunSettings()
    timesteps: Count = OnlineSettings.timesteps
    """environment steps of every training"""

    def method(self, name: str) -> Method:
        """GRPO with one of `VARIANTS`."""
        return Method(
            "".join(c if c.isalnum() else "-" for c in name),
            partial(by_training, train_grpo),
            "learner",
            name,
            name,
            lambda common, task: self.spec(VARIANTS[name], common.task.seed),
            seeded=True,
        )

    def spec(self, variant: Mapping[str, Any], seed: int) -> GRPOSpec:
        """What one training depends on."""
        online = OnlineSettings(timesteps=self.timesteps)
        return changed(GRPOSpec(replace(self.task, seed=seed), online), **variant)


def main(settings: AblateSettings) -> None:
    """Train every variant, print the table, and leave it in report.md."""
    folder = open_run(settings, f"ablate-{settings.task.dataset}")
    watch = Stopwatch()
    defaults = settings.spec({}, 0)
    with watch.stage("encoder and depth tables"):
        task = open_task(defaults.task)
    write_config(folder, "ablation", settings, task.collection.provenance, task.encoder_provenance)
    fold, ordinary = (
        Fold(task, CommonSpec(defaults.task, defaults.online)),
        Bandit(task.table("test"), reward=DEFAULT_REWARD),
    )
    tried = {}
    for name, variant in VARIANTS.items():
        if variant and settings.spec(variant, 0) == defaults:
            continue  # the default, said once more
        own = Bandit(task.table("test"), reward=settings.spec(variant, 0).task.reward)
        with watch.stage(name):
            found = [run_cell(settings.method(name), fold, seed, folder) for seed in settings.seeds]
        depths = [one.depths for one in found if one.depths is not None]
        tried[name] = {
            "gap_closed": [own.gap_closed(one) for one in depths],
            "default_reward": np.mean([ordinary.chosen(one) for one in depths], axis=0),
            "ndcg": np.mean([one.measures["nDCG@10"] for one in found], axis=0),
        }
    text = table(tried)
    rows = {
        name: {
            "gap_closed": one["gap_closed"],
            "reward": float(one["default_reward"].mean()),
            "nDCG@10": float(one["ndcg"].mean()),
        }
        for name, one in tried.items()
    }
    with written_whole(folder / "report.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    write_json(folder / "metrics.json", {"variants": rows, "wall_seconds": watch.seconds})
    print(text)
    print(f"\n{len(task.table('test'))} test queries of {settings.task.dataset}; run: {folder}")


def table(tried: Mapping[str, Mapping[str, Any]]) -> str:
    """Gap closed, reward and nDCG@10 of every variant, tested against the defaults."""
    head = ["GRPO with", "gap closed", "reward", "p", "nDCG@10", "minus defaults", "p"]
    base = tried["defaults"]
    lines = []
    for name, one in tried.items():
        gaps = [gap for gap in one["gap_closed"] if gap is not None]
        gap = number(float(np.mean(gaps)) if gaps else None, 3)
        tested = ["-", number(one["ndcg"].mean()), "-", "-"]
        if name != "defaults":
            difference = one["ndcg"] - base["ndcg"]
            tested = [
                p_value(sign_flip_tests([one["default_reward"] - base["default_reward"]])[0]),
                number(one["ndcg"].mean()),
                number(difference.mean(), 4, sign=True),
                p_value(sign_flip_tests([difference])[0]),
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
