import math

import pytest

from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.errors import InputError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("batch_size", 2.5),
        ("query_tokens", 0),
        ("document_tokens", -1),
        ("depth_negatives", 0),
        ("epochs", -1),
        ("epochs", True),
        ("depth_epochs", -1),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("learning_rate", "fast"),
        ("token_learning_rate", math.inf),
        ("depth_learning_rate", -1.0),
        ("depth_own_learning_rate", 0.0),
        ("text_learning_rate", -0.5),
        ("text_learning_rate", math.nan),
        ("balance", -0.1),
        ("balance", 1.5),
        ("balance", math.nan),
        ("temperature", 0.0),
        ("weight_decay", -0.1),
        ("weight_decay", math.nan),
        ("weight_decay", math.inf),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_wrong_settings_are_refused_in_one_line_that_shows_the_value(name, value):
    with pytest.raises(InputError) as caught:
        TrainingSettings(**{name: value})
    message = str(caught.value)
    assert message.startswith(f"{name} must be ")
    assert message.endswith(f"got {value!r}")
    assert "\n" not in message


def test_the_ends_of_the_ranges():
    settings = TrainingSettings(weight_decay=0.0, seed=2**63 - 1, epochs=0, depth_epochs=0)
    assert settings.seed == 9223372036854775807


def test_what_the_first_stage_depends_on():
    first = TrainingSettings().of_attention()
    second = {name for name in TrainingSettings().to_json() if name not in first}
    assert second == {
        "depth_epochs",
        "depth_learning_rate",
        "depth_own_learning_rate",
        "depth_negatives",
    }
