"""The command maw-gym, every runner under one name; and a run as data."""

import gzip
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_run import CHOSEN, DEPTHS, IMAGE

import maw_gym
from maw_gym.runners.cli import COMMANDS, main, overview


def test_what_the_installed_command_does_not_know():
    script = Path(sys.executable).with_name("maw-gym")  # of an installed package
    done = subprocess.run([script, "trian", "grpo"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: unknown command 'trian'; did you mean 'train grpo'? maw-gym --help shows all\n"
    )


def test_search_finds_the_honey_and_draws_nothing_on_the_screen(hostile, tiny_folder, capsys):
    main(["search", str(hostile), "how bees make honey", "--k", "2", "--device", "cpu"])
    depth, first, second = capsys.readouterr().out.splitlines()
    assert depth == f"depth {CHOSEN}"
    assert first.split(maxsplit=3)[2:] == [
        "d1", "Worker bees gather nectar and dry it in the hive until it is honey.",
    ]  # fmt: skip
    assert [first.split()[0], second.split()[0]] == ["1", "2"]
    assert 1 >= float(first.split()[1]) >= float(second.split()[1]) >= -1
    main(["search", str(hostile), "bell bread", "--k", "12", "--device", "cpu", "--hybrid"])
    _, *lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    assert all(line.isprintable() and len(line) <= 200 for line in lines)
    bell = next(line for line in lines if " d8" in line)
    assert bell.split(maxsplit=2)[2] == (
        r"d8\x1b\u2066  Bread: a bell \x07, an escape \x1b[31m, a turn \u202eback"
    )
    other = ["--dataset", str(tiny_folder), "--k", "1", "--device", "cpu"]
    main(["search", str(hostile), "rules of chess", *other])
    assert " d12  The king may not be left in check" in capsys.readouterr().out


def test_search_ends_when_nobody_reads_on(hostile, monkeypatch, capsys):
    lines = io.StringIO("honey\n" * 9)
    monkeypatch.setattr("sys.stdin", lines)
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as gone:
        monkeypatch.setattr("sys.stdout", gone)
        main(["search", str(hostile), "--k", "1", "--device", "cpu"])
    assert len(lines.readlines()) == 8
    assert capsys.readouterr().err == ""


def test_search_stays_open_for_lines_of_whatever_bytes(hostile, capsys, monkeypatch):
    given = io.TextIOWrapper(io.BytesIO(b"caf\xe9 honey\n\n  bell bread \n"), "utf-8")
    monkeypatch.setattr("sys.stdin", given)
    main(["search", str(hostile), "--k", "1", "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["depth", "1"] * 2
    assert " d8" in lines[3]
    monkeypatch.setattr("sys.stdin", None)
    main(["search", str(hostile), "--k", "1", "--device", "cpu"])
    assert capsys.readouterr().out == ""


def test_overviews_and_version(capsys):
    for words in ([], ["--help"], ["train"], ["train", "--help"]):
        main(words)
        shown = capsys.readouterr().out
        assert shown == overview() + "\n"
        assert all(f"  {name} " in shown for name in COMMANDS)
    main(["--version"])
    assert capsys.readouterr().out == f"maw_gym {maw_gym.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_flags_are_the_same_words_everywhere(name, capsys):
    with pytest.raises(SystemExit):
        main([*name.split(), "--help"])
    usage, *lines = capsys.readouterr().out.splitlines()
    assert usage.startswith(f"usage: maw-gym {name}")
    words = {line.split()[0].rstrip(",") for line in lines if line.startswith("  --")}
    assert not words & {"--datasets", "--output"}
    assert name in ("bandits", "report") or {"--dataset", "--device"} <= words


def test_a_run_is_data(hostile, tmp_path):
    with gzip.open(hostile / "per_query.csv.gz", "wt") as file:
        file.write("query_id,method,depth,nDCG@10\n007,BM25,,0.5\n007,GRPO,3,0.75\n")
    run = maw_gym.Run(str(hostile))
    assert repr(run) == f"Run({str(hostile)!r})"
    assert run.settings["reward_weights"] == [0.5, 0.25, 0.25]
    assert run.metrics["reward"] == {"mean": 0.625, "gap_closed": 0.5}
    assert run.collection().splits["test"].ids[0].startswith("q6")
    curves = run.curves()
    assert curves["eval/reward"].to_dict() == {0: 0.25, 10: 0.5, 20: 0.75}
    assert set(curves) == {"eval/reward", "train/" + IMAGE, "time/fps"}
    queries = run.per_query()
    assert queries["query_id"].tolist() == ["007", "007"]
    assert queries.groupby("method")["nDCG@10"].mean().to_dict() == {"BM25": 0.5, "GRPO": 0.75}
    assert run.retriever("cpu").router.depths == DEPTHS
    assert maw_gym.Run(tmp_path).curves().empty  # a folder without curves has none
