"""Change one setting of GRPO at a time: network, observation, advantage, alignment, weights, KL.

A comparison of its variants: what is finished stays in the folder of the ablation, and
`--resume FOLDER` goes on where it was stopped. All are judged by the reward that was asked for,
whatever reward a variant learns from.
"""

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import Field, model_validator

from maw_gym.agents.grpo.settings import GRPOSettings
from maw_gym.runners.experiments.command_line import Section, changed
from maw_gym.runners.experiments.comparison import compare
from maw_gym.runners.experiments.comparison_report import (
    DIFFERENCE,
    REWARD,
    method_table,
    write_comparisons,
)
from maw_gym.runners.experiments.methods import Method
from maw_gym.runners.experiments.result import Result, by_training
from maw_gym.runners.experiments.runs import open_run, run_main, write_config
from maw_gym.runners.experiments.settings import (
    OnlineSettings,
    RunSettings,
    Spec,
    TaskSettings,
    check_different,
)
from maw_gym.runners.experiments.training import open_task
from maw_gym.runners.train_grpo import train_grpo
from maw_gym.settings import Count, Seed, checked
from maw_gym.tables.task import RetrievalTask

VARIANTS: Final[dict[str, dict[str, Any]]] = {
    "defaults": {},
    "network: mlp": {"network": "mlp"},
    "observation: attention, mlp": {"observation": ("attention",)},
    "observation: content, mlp": {"observation": ("content",)},
    "observation: profile and retrieval": {"observation": ("profile", "retrieval")},
    "observation: all but retrieval, mlp": {"observation": ("attention", "profile", "content")},
    "advantage: critic": {"advantage": "critic"},
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


@checked
class AblateSettings:
    """Where GRPO's settings are tried out."""

    main_flags: ClassVar = (
        *("dataset", "text_encoder", "timesteps", "seeds"),
        *("device", "run_name", "resume"),
    )

    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    """of the learner"""
    task: Annotated[
        TaskSettings,
        Section(without=("seed", "alignment", "reward_weights", "observation", "network")),
    ] = TaskSettings()
    run: RunSettings = RunSettings()
    timesteps: Count = OnlineSettings.timesteps
    """environment steps of every training"""

    @model_validator(mode="after")
    def _fit(self) -> Self:
        check_different(self, "seeds")
        return self

    def spec(self, name: str, seed: int = 0) -> Spec:
        """What a training of one of `VARIANTS` depends on."""
        online = OnlineSettings(timesteps=self.timesteps)
        return changed(
            Spec(replace(self.task, seed=seed), online, GRPOSettings()), **VARIANTS[name]
        )

    def method(self, name: str) -> Method:
        """GRPO with one of `VARIANTS`, judged by the reward that was asked for."""

        def specify(common: Spec, task: RetrievalTask) -> Spec:
            return self.spec(name, common.task.seed)

        def run(task: RetrievalTask, spec: Any, split: str, log: Any) -> Result:
            judged = changed(
                spec, alignment=self.task.alignment, reward_weights=self.task.reward_weights
            )
            result = by_training(lambda *_: train_grpo(task, spec, log), task, judged, split, log)
            if judged.task.reward != spec.task.reward:
                result.history = None  # of another reward, which no chart can show beside this one
            return result

        return Method(name, "learner", run, f"GRPO, {name}", specify, seeded=True, needs="train")


def main(settings: AblateSettings) -> None:
    """Train every variant and leave the report of their comparison."""
    folder = open_run(settings, f"ablate-{settings.task.dataset}")
    defaults = settings.spec("defaults")
    task = open_task(defaults.task)
    write_config(folder, "ablation", settings, task.collection.provenance, task.encoder_provenance)
    made = compare(
        [settings.method(name) for name in VARIANTS],
        task,
        settings.seeds,
        baseline="defaults",
        spec=Spec(defaults.task, defaults.online),
        folder=folder,
    )
    write_comparisons([made], folder, "ablate")
    print(method_table(made, DIFFERENCE), method_table(made, REWARD), sep="\n\n")
    print(f"\nreport: {folder / 'report.md'}")


if __name__ == "__main__":
    run_main(AblateSettings, main)
