"""What GRPO can be told, with its defaults: the one place for both the class and command lines."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from numbers import Real
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass

Count = Annotated[int, Field(ge=1, le=2**24)]
Coefficient = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Above0 = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]


@dataclass(frozen=True, config=ConfigDict(use_attribute_docstrings=True, strict=True))
class GRPOSettings:
    """Settings of GRPO; `maw_gym.agents.grpo.GRPO` says more about each.

    Defaults were chosen on the bandits of runners/bandits.py, see docs/grpo.md.
    """

    learning_rate: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] = 4e-3
    """of Adam"""
    n_steps: Count = 16
    """steps of every sub-environment per rollout"""
    batch_size: Count | None = 512
    """samples per gradient step; None is the whole rollout"""
    n_epochs: Count = 8
    """passes over each rollout"""
    advantage: Literal["auto", "critic", "outcome", "process", "state", "group_mean"] = "auto"
    """reward minus a value head's estimate, or minus what its group has at the end, at the same
    step or in similar states"""
    group_size: Count = 8
    """neighbouring sub-environments that share each query"""
    ratio: Literal["reference", "old"] = "old"
    """of the policy to the reference or the old policy"""
    clip_range: Above0 | None = 0.2
    """clipping of the ratio; None is none"""
    clip_range_high: Above0 | None = None
    """upper clipping where it differs"""
    kl: Literal["exact", "k1", "k2", "k3"] = "exact"
    """penalty to the reference: over all actions, or a sampled estimate"""
    kl_coef: Coefficient = 0.1
    """weight of the KL penalty"""
    reference_interval: Count | None = 5
    """rollouts after which the reference policy is renewed; None keeps the first"""
    ent_coef: Coefficient = 0.01
    """weight of the entropy bonus"""
    vf_coef: Coefficient = 0.5
    """weight of the value loss (advantage critic)"""
    max_grad_norm: Above0 = 0.5
    """largest norm of the gradient"""

    @model_validator(mode="after")
    def _groups_and_clipping_fit(self) -> "GRPOSettings":
        if self.clip_range is None and self.clip_range_high is not None:
            raise ValueError(
                f"clip_range_high={self.clip_range_high!r} without clip_range: give both or none"
            )
        if self.advantage != "critic" and self.group_size < 2:
            raise ValueError(
                f"group_size={self.group_size!r}: advantage={self.advantage!r} compares the members"
                " of a group, which needs a whole number from 2"
            )
        return self


@dataclass(frozen=True, config=ConfigDict(use_attribute_docstrings=True, strict=True))
class AllSettings(GRPOSettings):
    """And those that mean something in episodes of several steps alone, or are PPO's."""

    gamma: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.99
    """discount of rewards"""
    gae_lambda: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.95
    """of the generalised advantage estimation of critic and state"""
    loss_average: Literal["step", "episode"] = "step"
    """whether all steps of a rollout count alike, or all its episodes"""
    normalize_advantage: bool | None = None
    """of the critic; None is where episodes have several steps"""
    target_kl: Above0 | None = None
    """ends a rollout's passes where the policy is 1.5 times as far from the one that acted"""
    clip_range_vf: Above0 | None = None
    """how far the critic's values may move from those of the rollout; None is as far as they do"""

    @model_validator(mode="after")
    def _normalised_once(self) -> "AllSettings":
        if self.normalize_advantage and self.advantage not in ("critic", "auto"):
            raise ValueError(
                f"normalize_advantage=True: advantage={self.advantage!r} is relative to its group"
                " already; leave it out"
            )
        return self


DEFAULTS = AllSettings()
SAMPLES: Final = 1024  # of a rollout, where n_steps is left open
BATCH: Final = 64  # samples, where there are no groups to keep together; PPO's
CLIPPING: Final = ("clip_range", "clip_range_high", "clip_range_vf")  # numbers or schedules
HIGHEST: Final = 10.0  # of what a schedule gives


def check(given: Mapping[str, Any]) -> None:
    """Refuse the first of the class's arguments that cannot work, by a ValueError of one line."""
    values: dict[str, Any] = {}
    for field in fields(AllSettings):
        value = given[field.name]
        if field.name in ("learning_rate", *CLIPPING) and callable(value):
            _check_schedule(field.name, value)
            value = getattr(DEFAULTS, field.name) or DEFAULTS.clip_range
        elif field.name in ("group_size", "n_steps") and value is None:
            value = getattr(DEFAULTS, field.name)  # the environment decides
        elif field.name == "batch_size" and value == "auto":
            value = DEFAULTS.batch_size
        values[field.name] = value.item() if hasattr(value, "item") else value  # of numpy
    try:
        AllSettings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error":  # of several settings together
            raise ValueError(str(first["ctx"]["error"])) from None
        name = str(first["loc"][0])
        about = vars(AllSettings)["__pydantic_fields__"][name].description
        more = f" ({about})" if about else ""  # inherited fields have none
        raise ValueError(f"{name}={first['input']!r}: {first['msg']}{more}") from None


def _check_schedule(name: str, schedule: Callable[[float], Any]) -> None:
    """Refuse what does not give finite numbers from 0; where PPO's schedules end, they may be 0."""
    for progress in (1.0, 0.0):
        value = schedule(progress)
        if not isinstance(value, Real) or not 0.0 <= float(value) <= HIGHEST:
            raise ValueError(
                f"{name} is {value!r} where {progress:g} of the training remains: a schedule gives"
                f" numbers from 0 to {HIGHEST:g}"
            )
