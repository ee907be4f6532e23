"""The shape of an encoder."""

from dataclasses import asdict, dataclass
from typing import Any

from maw_gym.errors import InputError


@dataclass(frozen=True)
class EncoderSettings:
    """The shape of an encoder; stored in its file.

    Attributes:
        hidden: h, width of the hidden states.
        heads: H, number of attention heads, a divisor of h.
        depths: D, number of alternative attention matrices per head; 0 is a NON-MAW encoder.
        vocabulary: number of token ids, each with a pooling weight.
    """

    hidden: int = 256
    heads: int = 8
    depths: int = 32
    vocabulary: int = 32_000

    def __post_init__(self) -> None:
        least = {"hidden": 1, "heads": 1, "depths": 0, "vocabulary": 1}
        for name, smallest in least.items():
            value = getattr(self, name)
            if type(value) is not int or value < smallest:
                raise InputError(
                    f"{name} must be a whole number of at least {smallest}, got {value!r}"
                )
        if self.hidden % self.heads:
            raise InputError(f"hidden width {self.hidden} is not divisible by {self.heads} heads")

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)
