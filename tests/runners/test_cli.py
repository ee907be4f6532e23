"""The command maw-gym: every runner under one name."""

import subprocess
import sys
from pathlib import Path

import pytest
from hostile_run import write_hostile_run

import maw_gym
from runners.cli import COMMANDS, main, overview

SCRIPT = Path(sys.executable).with_name("maw-gym")


def command(*words: object) -> "subprocess.CompletedProcess[str]":
    """The installed command, in a process of its own."""
    assert SCRIPT.exists(), "install the package: pip install --no-deps --editable ."
    return subprocess.run(
        [SCRIPT, *map(str, words)], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hostile_run(tmp_path_factory.mktemp("hostile") / "run")


def test_the_installed_command_finds_the_honey(run: Path) -> None:
    done = command("search", run, "how bees make honey", "--k", 2, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.split(maxsplit=2)[1:] == [
        "d1", "Worker bees gather nectar and dry it in the hive until it is honey.",
    ]  # fmt: skip
    assert 1 >= float(first.split()[0]) >= float(second.split()[0]) >= -1


def test_what_the_installed_command_does_not_know() -> None:
    done = command("trian", "grpo")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: unknown command 'trian'; did you mean 'train grpo'? maw-gym --help shows all\n"
    )


def test_search_draws_nothing_on_the_screen(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["search", str(run), "bell bread", "--k", "12", "--device", "cpu", "--hybrid"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    assert all(line.isprintable() and len(line) <= 200 for line in lines)
    bell = next(line for line in lines if " d8" in line)
    assert bell.split(maxsplit=1)[1] == (
        r"d8\x1b\u2066  Bread: a bell \x07, an escape \x1b[31m, a turn \u202eback"
    )


def test_search_in_another_collection(
    run: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--dataset", str(tiny_folder), "--k", "1", "--device", "cpu"]
    main(["search", str(run), "rules of chess", *words])
    assert " d12  The king may not be left in check" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["search"],
            "the following arguments are required: RUN, QUERY; --help-all shows all flags",
        ),
        (["search", "nowhere", "honey"], "no run folder 'nowhere'; give the folder of a training"),
        (["search", "RUN", " "], "the query is ' '; give some words"),
        (["search", "RUN", "honey", "--k", "0"], "k must be at least 1, got 0"),
        (["search", "RUN", "bees", "honey"], "unrecognized arguments: honey; --help-all shows all"),
        (["report", "nowhere"], "no run with a config.json in 'nowhere'; "),
        (["train", "grpo", "--timesteps", "many"], "timesteps must be a valid integer, got 'many'"),
        (["train", "gpro"], "unknown command 'train gpro'; did you mean 'train grpo'? maw-gym"),
        (["train", "--seed", "1"], "unknown command 'train --seed'; "),
        (["\x1b[31mred"], r"unknown command '\x1b[31mred'; maw-gym --help shows all"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    words: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(run) if word == "RUN" else word for word in words])
    shown = capsys.readouterr()
    assert end.value.code == 2
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith(f"error: {message}")


def test_report_writes_the_page_anew(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = run / "report.html"
    page.unlink(missing_ok=True)
    main(["report", str(run), "--queries", "2"])
    assert capsys.readouterr().out == f"{page}\n"
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"maw_gym {maw_gym.__version__}\n"


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_the_overview_has_every_command(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(words)
    shown = capsys.readouterr().out
    assert shown == overview() + "\n"
    assert all(f"  {name} " in shown for name in COMMANDS)


def test_train_alone_shows_what_can_be_trained(capsys: pytest.CaptureFixture[str]) -> None:
    main(["train"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("  train ")] == [
        "grpo", "ppo", "supervised", "encoder",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_every_help_fits_on_a_screen(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    try:
        main([*name.split(), "--help"])
    except SystemExit as end:
        assert not end.code  # noqa: PT017
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: maw-gym {name}".rstrip())
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_flags_are_the_same_words_everywhere(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*name.split(), "--help-all"])
    shown = capsys.readouterr().out
    words = {word.rstrip(",") for word in shown.split() if word.startswith("--")}
    assert not words & {"--datasets", "--output", "--run"}
    if name not in ("bandits", "report"):
        assert "--dataset" in words
        assert "--device" in words
