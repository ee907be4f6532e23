"""What importing brings along, and what it leaves for its first use."""

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import gymnasium as gym
import pytest

from maw_gym.late import after_import

SLOW = (
    "torch", "matplotlib", "ir_datasets", "ir_measures", "bm25s", "scipy", "pydantic",
    "transformers", "tokenizers", "stable_baselines3", "tensorboard", "pandas", "tqdm",
)  # fmt: skip


def loaded(run_python: Callable[[str], str], program: str) -> set[str]:
    """Which of the slow modules a program has imported at its end."""
    asked = f"\nimport sys\nprint(*[name for name in {SLOW} if name in sys.modules])"
    return set(run_python(program + asked).split())


def test_importing_maw_gym_imports_nothing_slow(run_python: Callable[[str], str]) -> None:
    assert loaded(run_python, "import maw_gym") == set()


def test_the_public_names_want_no_more_than_they_use(run_python: Callable[[str], str]) -> None:
    program = "import maw_gym\nfor name in maw_gym.__all__: getattr(maw_gym, name)"
    assert loaded(run_python, program) == {"torch", "tokenizers", "ir_measures", "tqdm"}


def test_grpo_comes_without_maw_gym(run_python: Callable[[str], str]) -> None:
    assert loaded(run_python, "import agents.grpo.settings") == {"pydantic"}
    program = "from agents.grpo import GRPO\nimport sys\nassert 'maw_gym' not in sys.modules"
    assert {"torch", "stable_baselines3"} <= loaded(run_python, program)


@pytest.mark.parametrize(
    "command",
    [
        *("", "--version", "train"),
        *(f"train {what} --help" for what in ("grpo", "ppo", "supervised", "encoder")),
        *(f"{what} --help-all" for what in ("evaluate", "report", "search", "compare")),
    ],
)
def test_help_does_not_wait_for_torch(run_python: Callable[[str], str], command: str) -> None:
    program = f"""
import sys
from runners.cli import main
try:
    main({command.split()})
except SystemExit as end:
    assert not end.code
print([name for name in {SLOW} if name in sys.modules])"""
    assert run_python(program).splitlines()[-1] in ("[]", "['pydantic']")


def test_every_public_name_is_there() -> None:
    import agents
    import agents.grpo
    import maw_gym

    for module in (maw_gym, agents, agents.grpo):
        for name in module.__all__:
            assert getattr(module, name) is not None
        with pytest.raises(AttributeError, match=r"has no attribute 'Nothing'"):
            _ = module.Nothing
    assert set(maw_gym.__all__) <= set(dir(maw_gym))


def test_pydocs_is_registered_whoever_imports_first(run_python: Callable[[str], str]) -> None:
    ask = "\nprint(ir_datasets.load('pydocs/test').has_qrels(), 'pydocs' in ir_datasets.registry)"
    assert run_python("import maw_gym, ir_datasets" + ask) == "True True\n"
    assert run_python("import ir_datasets, maw_gym" + ask) == "True True\n"
    asked_before = "import maw_gym, importlib.util; importlib.util.find_spec('ir_datasets')"
    assert run_python(asked_before + "\nimport ir_datasets" + ask) == "True True\n"
    for module in ("pydocs", "pydocs_dataset", "registry"):
        program = f"import maw_gym.corpora.{module}, ir_datasets" + ask
        assert run_python(program) == "True True\n"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name of a module that fails when it is imported for the first time."""
    name = "fails_at_first"
    flag = tmp_path / "flag"
    (tmp_path / f"{name}.py").write_text(
        f"from pathlib import Path\nflag = Path({str(flag)!r})\nif not flag.exists():\n"
        "    flag.touch()\n    raise OSError('not yet')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


def test_an_action_waits_for_an_import_that_succeeds(module: str) -> None:
    calls: list[str] = []
    after_import(module, lambda: calls.append(module))
    with pytest.raises(OSError, match="not yet"):
        __import__(module)
    assert calls == []
    __import__(module)
    __import__(module)
    assert calls == [module]
    after_import(module, lambda: calls.append("at once"))
    assert calls == [module, "at once"]


def test_an_environment_says_once_what_it_computes_and_where_it_is_kept(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv("MAW_GYM_HOME", str(tmp_path / "home"))
    dataset = tmp_path / "tiny"
    dataset.symlink_to(tiny_folder)  # a name that no other test has a table of in memory
    with caplog.at_level(logging.WARNING):
        gym.make("MAWDepth-v0", dataset=str(dataset), split="test")
        gym.make("MAWDepth-v0", dataset=str(dataset), split="test")
    tables = tmp_path / "home" / "tables"
    assert [record.getMessage() for record in caplog.records] == [
        f"computing the depth table of {dataset}: 7 test queries, 30 documents; once, kept in"
        f" {tables}"
    ]
    assert len(list(tables.glob("*-test.safetensors"))) == 1
