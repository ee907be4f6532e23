"""The benchmark of several devices: its three parts at tiny sizes, by two processes."""

import json
from pathlib import Path

import pytest

from maw_gym.errors import InputError
from runners.benchmarks import several_devices
from runners.benchmarks.several_devices import DevicesSettings, main, markdown


@pytest.fixture(scope="session")
def pairs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BEIR folder of 700 queries, each with a document of its own: enough to train on."""
    folder = tmp_path_factory.mktemp("pairs") / "pairs"
    (folder / "qrels").mkdir(parents=True)
    rows = range(700)
    for name, text in (("queries", "how {0} and {1} meet"), ("corpus", "{1} lies beside {0} now")):
        lines = [{"_id": f"{row}", "text": text.format(row % 97, row // 7)} for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, some in (("train", rows[:600]), ("dev", rows[600:650]), ("test", rows[650:])):
        lines = [f"{row}\t{row}\t1\n" for row in some]
        (folder / "qrels" / f"{name}.tsv").write_text(
            "query-id\tcorpus-id\tscore\n" + "".join(lines)
        )
    return folder


def tiny(**more: object) -> DevicesSettings:
    sizes = {"processes": 2, "epochs": 2, "documents": 900, "queries": 40, "device": "cpu"}
    sizes |= {"restart_documents": 17_000, "restart_batch_size": 64, "batch_sizes": (32, 64)}
    return DevicesSettings(**(sizes | more))


def measured(settings: DevicesSettings) -> list[dict]:
    main(settings)
    assert settings.out is not None
    content = json.loads(settings.out.read_text())
    assert content["device"] == "CPU, 2 processes"
    return content["rows"]


def test_pairs_per_second_of_one_process_and_of_two(
    pairs_folder: Path, tiny_transformer: Path, tmp_path: Path
) -> None:
    settings = tiny(
        parts=("training",), dataset=str(pairs_folder), text_encoder=str(tiny_transformer),
        out=tmp_path / "out.json",
    )  # fmt: skip
    one, two, *larger = measured(settings)
    assert [(row["batch"], row["processes"]) for row in larger] == [(64, 1), (64, 2)]
    assert (one["processes"], two["processes"]) == (1, 2)
    assert (one["times one"], one["unit"]) == (1, "pairs/s")
    assert two["times one"] == pytest.approx(two["value"] / one["value"])
    for row in (one, two):
        assert (row["pairs"], row["batch"], len(row["pairs/s"])) == (
            443,
            32,
            2,
        )  # three quarters of 600
        assert row["value"] == row["pairs/s"][1]  # the first epoch warms up
    assert one["validation nDCG@10"] == pytest.approx(two["validation nDCG@10"], abs=0.05)


def test_rankings_of_one_process_and_of_two_are_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    *times, equal = measured(tiny(parts=("search",), out=tmp_path / "out.json"))
    assert [(row["what"], row["processes"]) for row in times[:4]] == [
        ("encode documents (wordllama)", 1), ("encode documents (wordllama)", 2),
        ("join and index (wordllama)", 1), ("join and index (wordllama)", 2),
    ]  # fmt: skip
    assert times[-1]["what"] == "all of it (wordllama)"
    assert times[-1]["times one"] == pytest.approx(times[-2]["value"] / times[-1]["value"])
    assert equal["what"] == "rankings of 40 queries in 900 documents"
    assert equal["same"]
    assert equal["value"] <= 1e-6
    assert "| encode documents (wordllama) | 2 |" in capsys.readouterr().out


def test_a_killed_process_costs_no_result(pairs_folder: Path, tmp_path: Path) -> None:
    settings = tiny(parts=("restart",), dataset=str(pairs_folder), out=tmp_path / "out.json")
    training, encoding = measured(settings)
    assert training["what"] == "restarted training, one process killed"
    assert encoding["what"] == "restarted encoding, one process killed"
    for row in (training, encoding):
        assert row["same"]
        assert row["value"] == 0


def test_results_that_differ_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"what": "rankings", "processes": 2, "value": 0.25, "unit": "difference", "same": True}
    monkeypatch.setattr(several_devices, "search_part", lambda machine: [row])
    with pytest.raises(InputError, match=r"^results differ: rankings, by 0\.25$"):
        main(tiny(parts=("search",)))
    other = row | {"same": False, "value": 0.0}
    assert markdown([other]).endswith("| rankings | 2 | 0, ANOTHER ORDER difference |  |")


def test_processes_that_fail_are_named_after_what_they_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="search by 1 processes failed"):
        main(tiny(parts=("search",), documents=1, queries=1, device="gpu"))
    assert "InputError: device" in capsys.readouterr().err


@pytest.mark.parametrize("given", [{"batch_sizes": (32, 33)}, {"restart_batch_size": 33}])
def test_a_batch_that_the_processes_cannot_share_is_refused_at_once(given: dict) -> None:
    with pytest.raises(
        InputError, match=r"^batch_size 33 cannot be shared by 2 processes; give a multiple of 2$"
    ):
        main(tiny(**given))


def test_batches_do_not_matter_where_nothing_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(several_devices, "search_part", lambda machine: [])
    main(tiny(parts=("search",), batch_sizes=(33,), restart_batch_size=33))
