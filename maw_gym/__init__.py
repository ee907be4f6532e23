"""maw_gym: a Gymnasium environment for learning which attention to use."""

import maw_gym.corpora  # noqa: F401  (registers pydocs with ir_datasets)
from maw_gym.registration import register_environments

register_environments()
