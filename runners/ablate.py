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
from maw_gym.retrieval.significance import sign_flip_test
from maw_gym.settings import Count, Seed, checked
from runners.experiments.analysis import MAIN
from runners.experiments.command_line import Section, changed
from runners.experiments.comparison import Fold, run_cell
from runners.experiments.methods import Method
from runners.experiments.report import markdown, number, p_value
from runners.experiments.result import by_training
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

    def spec(self, variant: Mapping[str, Any], seed: int) -> GRPOSpec:
        """What one training depends on."""
        online = OnlineSettings(timesteps=self.timesteps)
        return changed(GRPOSpec(replace(self.task, seed=seed), online), **variant)

    def method(self, name: str) -> Method:
        """GRPO with one of `VARIANTS`."""
        run = partial(by_training, train_grpo)
        # Labels of files keep one sign for each sign that a file name cannot have.
        label = "".join(c if c.isalnum() else "-" for c in name)
        return Method(
            label,
            "learner",
            run,
            name,
            lambda common, task: self.spec(VARIANTS[name], common.task.seed),
            seeded=True,
        )


def main(settings: AblateSettings) -> None:
    """Train every variant, print the table, and leave it in report.md."""
    folder = open_run(settings, f"ablate-{settings.task.dataset}")
    watch = Stopwatch()
    defaults = settings.spec({}, 0)
    with watch.stage("encoder and depth tables"):
        task = open_task(defaults.task)
    write_config(folder, "ablation", settings, task.collection.provenance, task.encoder_provenance)
    fold = Fold(task, CommonSpec(defaults.task, defaults.online))
    ordinary = Bandit(task.table("test"), reward=DEFAULT_REWARD)
    tried = {}
    for name, variant in VARIANTS.items():
        spec = settings.spec(variant, 0)
        if variant and spec == defaults:
            continue  # the default, said once more
        with watch.stage(name):
            found = [run_cell(settings.method(name), fold, seed, folder) for seed in settings.seeds]
        own = Bandit(task.table("test"), reward=spec.task.reward)
        depths = [one.depths for one in found if one.depths is not None]
        tried[name] = {
            "gap_closed": [own.gap_closed(one) for one in depths],
            "reward": np.mean([ordinary.chosen(one) for one in depths], axis=0),
            MAIN: np.mean([one.measures[MAIN] for one in found], axis=0),
        }
    text = table(tried)
    with written_whole(folder / "report.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    variants = {
        name: one | {score: float(one[score].mean()) for score in ("reward", MAIN)}
        for name, one in tried.items()
    }
    write_json(folder / "metrics.json", {"variants": variants, "wall_seconds": watch.seconds})
    print(text)
    print(f"\n{len(task.table('test'))} test queries of {settings.task.dataset}; run: {folder}")


def table(tried: Mapping[str, Mapping[str, Any]]) -> str:
    """Gap closed, reward and nDCG@10 of every variant, tested against the defaults."""
    base, lines = tried["defaults"], []
    for name, one in tried.items():
        gaps = [gap for gap in one["gap_closed"] if gap is not None]
        difference = one[MAIN] - base[MAIN]
        tested = [p_value(sign_flip_test(one["reward"] - base["reward"])), number(one[MAIN].mean())]
        tested += [number(difference.mean(), sign=True), p_value(sign_flip_test(difference))]
        if name == "defaults":
            tested = ["-", tested[1], "-", "-"]
        gap = number(float(np.mean(gaps)) if gaps else None, 3)
        lines.append([name, gap, number(one["reward"].mean()), *tested])
    head = ["GRPO with", "gap closed", "reward", "p", MAIN, "minus defaults", "p"]
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
