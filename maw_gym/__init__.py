"""maw_gym: a Gymnasium environment for learning which attention to use."""

# First, since it must come before torch.
import maw_gym.waiting  # noqa: F401  # isort: split
from maw_gym.corpora import load_collection  # registers pydocs with ir_datasets
from maw_gym.encoders.attention_encoders import MAWEncoder, NonMAWEncoder
from maw_gym.envs.environment import GRPOEnvironment
from maw_gym.envs.registration import register_environments
from maw_gym.envs.vector_environment import GRPOVectorEnvironment
from maw_gym.errors import InputError
from maw_gym.routers.routed_encoder import RoutedEncoder
from maw_gym.tables.depth_table import DepthTable
from maw_gym.tables.task import RetrievalTask, load_task

__version__ = "0.2.0"

__all__ = [
    "DepthTable",
    "GRPOEnvironment",
    "GRPOVectorEnvironment",
    "InputError",
    "MAWEncoder",
    "NonMAWEncoder",
    "RetrievalTask",
    "RoutedEncoder",
    "__version__",
    "load_collection",
    "load_task",
]

register_environments()
