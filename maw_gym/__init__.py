"""maw_gym: a Gymnasium environment for learning which attention to use.

Importing it registers `MAWDepth-v0` with Gymnasium, and `pydocs` with ir_datasets as soon as that
is imported. Everything else, torch included, is imported when it is used.
"""

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

import gymnasium as gym

from maw_gym.errors import InputError

if TYPE_CHECKING:
    from maw_gym.corpora import load_collection
    from maw_gym.encoders.maw import MAWEncoder, NonMAWEncoder
    from maw_gym.envs.environment import GRPOEnvironment
    from maw_gym.envs.vector_environment import GRPOVectorEnvironment
    from maw_gym.routers.routed_encoder import RoutedEncoder
    from maw_gym.run import Run
    from maw_gym.tables.depth_table import DepthTable
    from maw_gym.tables.task import RetrievalTask, load_task

__version__ = "0.2.0"

_MODULES = {
    "DepthTable": "tables.depth_table",
    "GRPOEnvironment": "envs.environment",
    "GRPOVectorEnvironment": "envs.vector_environment",
    "MAWEncoder": "encoders.maw",
    "NonMAWEncoder": "encoders.maw",
    "RetrievalTask": "tables.task",
    "RoutedEncoder": "routers.routed_encoder",
    "Run": "run",
    "load_collection": "corpora",
    "load_task": "tables.task",
}
__all__ = [
    "DepthTable", "GRPOEnvironment", "GRPOVectorEnvironment", "InputError", "MAWEncoder",
    "NonMAWEncoder", "RetrievalTask", "RoutedEncoder", "Run", "__version__", "load_collection",
    "load_task",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _PydocsWithIrDatasets(MetaPathFinder):
    """Registers pydocs whenever ir_datasets is imported, which alone takes longer than maw_gym."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "ir_datasets":
            return None
        sys.meta_path.remove(self)
        try:
            spec = find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                import_module("maw_gym.corpora.irds")

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "MAWDepth-v0" not in gym.registry:
    gym.register(
        id="MAWDepth-v0",
        entry_point="maw_gym.envs.environment:GRPOEnvironment",
        vector_entry_point="maw_gym.envs.vector_environment:GRPOVectorEnvironment",
    )
if "ir_datasets" in sys.modules:
    import_module("maw_gym.corpora.irds")
else:
    sys.meta_path.insert(0, _PydocsWithIrDatasets())
