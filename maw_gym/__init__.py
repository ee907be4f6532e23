"""maw_gym: a Gymnasium environment for learning which attention to use."""

from maw_gym.corpora import load_collection  # registers pydocs with ir_datasets
from maw_gym.depth_table import DepthTable
from maw_gym.encoders import MAWEncoder, NonMAWEncoder
from maw_gym.environment import GRPOEnvironment
from maw_gym.errors import InputError
from maw_gym.registration import register_environments
from maw_gym.routed_encoder import RoutedEncoder
from maw_gym.task import RetrievalTask, load_task
from maw_gym.vector_environment import GRPOVectorEnvironment

__all__ = [
    "DepthTable",
    "GRPOEnvironment",
    "GRPOVectorEnvironment",
    "InputError",
    "MAWEncoder",
    "NonMAWEncoder",
    "RetrievalTask",
    "RoutedEncoder",
    "load_collection",
    "load_task",
]

register_environments()
