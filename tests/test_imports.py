"""What importing brings along, and what it leaves for its first use."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import gymnasium as gym
import pytest

ROOT = Path(__file__).parents[1]
SLOW = (
    "torch", "matplotlib", "ir_datasets", "ir_measures", "bm25s", "scipy", "pydantic",
    "transformers", "tokenizers", "stable_baselines3", "tensorboard", "pandas", "tqdm",
)  # fmt: skip
HELP = """
import contextlib, io
from maw_gym.runners.cli import main
trained = [f"train {what}" for what in ("grpo", "ppo", "supervised", "encoder")]
helps = [f"{name} --help" for name in (*trained, "evaluate", "report", "search", "compare")]
for command in ("", "--version", "train", *helps):
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            main(command.split())
    except SystemExit as end:
        assert not end.code"""


@pytest.mark.parametrize(
    ("program", "slow"),
    [
        ("import maw_gym", set()),
        (
            "import maw_gym\nfor name in maw_gym.__all__: getattr(maw_gym, name)",
            {"torch", "tokenizers", "ir_measures", "tqdm"},
        ),
        ("import maw_gym.agents.grpo.settings", {"pydantic"}),
        (HELP, {"pydantic"}),
    ],
)
def test_nothing_is_imported_that_can_wait(program, slow, run_python):
    asked = f"\nimport sys\nprint(*[name for name in {SLOW} if name in sys.modules])"
    assert set(run_python(program + asked).split()) == slow


def test_grpo_comes_without_the_rest_of_maw_gym(run_python):
    run_python("""
from maw_gym.agents.grpo import GRPO
import sys
rest = {name for name in sys.modules if name.startswith("maw_gym.")} - {"maw_gym.errors"}
assert all(name.startswith("maw_gym.agents") for name in rest), rest""")


def test_bm25_does_not_start_jax(run_python):
    """Which takes seconds, and three quarters of a GPU's memory."""
    run_python("""
import sys
class Finder:
    def find_spec(name, path=None, target=None):
        assert name != "jax"
sys.meta_path.insert(0, Finder)
from maw_gym.retrieval.bm25 import BM25
BM25.of(["a"], ["some words"])
assert "jax" not in sys.modules""")


@pytest.mark.parametrize("name", ["maw_gym", "maw_gym.agents", "maw_gym.agents.grpo"])
def test_every_public_name_is_there(name):
    module = import_module(name)
    assert all(hasattr(module, one) for one in module.__all__)
    assert not hasattr(module, "Nothing")


@pytest.mark.parametrize(
    "imports",
    [
        "import maw_gym, ir_datasets",
        "import ir_datasets, maw_gym",
        "import maw_gym.corpora.irds, ir_datasets",
        "import maw_gym, importlib.util\nimportlib.util.find_spec('ir_datasets')",
        # One that fails is no import.
        "import maw_gym, sys\nsys.path.insert(0, 'BROKEN')\ntry:\n    import ir_datasets\n"
        "except OSError:\n    del sys.path[0]",
    ],
)
def test_pydocs_is_registered_whoever_imports_first(imports, run_python, tmp_path):
    (tmp_path / "ir_datasets.py").write_text("raise OSError")
    program = f"""{imports.replace("BROKEN", str(tmp_path))}
import ir_datasets
print(ir_datasets.load('pydocs/test').has_qrels(), 'pydocs' in ir_datasets.registry)"""
    assert run_python(program) == "True True\n"


def test_the_command_line_lets_threads_wait_asleep(run_python, monkeypatch):
    ask = "\nprint(os.environ.get('OMP_WAIT_POLICY'))"
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert run_python("import os, maw_gym.agents" + ask) == "None\n"
    assert run_python("import os, maw_gym.runners.train_grpo" + ask) == "PASSIVE\n"
    monkeypatch.setenv("GOMP_SPINCOUNT", "0")
    assert run_python("import os, maw_gym.runners.train_grpo" + ask) == "None\n"


def test_an_environment_says_once_what_it_computes_and_where_it_is_kept(
    tiny_folder, home, tmp_path, caplog
):
    dataset = tmp_path / "tiny"
    dataset.symlink_to(tiny_folder)  # a name that no other test has a table of in memory
    for _ in range(2):
        gym.make("MAWDepth-v0", dataset=str(dataset), split="test")
    what = f"computing the depth table of {dataset}: 7 test queries, 30 documents"
    assert caplog.messages == [f"{what}; once, kept in {home / 'tables'}"]


def test_what_is_imported_is_declared():
    """At the top of a module what every installation has; elsewhere what some extra brings."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = importlib.metadata.packages_distributions()

    def declared(requirements):
        return {re.split(r"[^\w.-]", text)[0].lower().replace("-", "_") for text in requirements}

    always = declared(project["dependencies"])
    always |= {"pydantic_core", "huggingface_hub"}  # brought by pydantic and tokenizers
    extras = always.union(*map(declared, project["optional-dependencies"].values()))
    rooms = (ROOT / name for name in ("maw_gym", "agents", "runners"))
    for path in (path for room in rooms for path in room.rglob("*.py")):
        whole = "attention" in str(path) or path.name == "pyterrier.py"  # imported where it can be
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            name = node.names[0].name if isinstance(node, ast.Import) else str(node.module)
            module = name.split(".")[0]
            if module not in {*sys.stdlib_module_names, "maw_gym"}:
                allowed = always if node in tree.body and not whole else extras
                assert declared(names.get(module, [module])) & allowed, f"{path}: {module}"
