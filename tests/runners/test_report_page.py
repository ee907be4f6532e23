"""What the page of a run is told, and how it is put into one file."""

import base64
import gzip
import hashlib
import json
import re
import shutil

import numpy as np
import pytest
import torch
from hostile_run import CHOSEN, DEPTHS, IMAGE, LONG, QUERIES, SCRIPT

from maw_gym.envs.bandit import Bandit
from maw_gym.errors import InputError
from maw_gym.retrieval.evaluation import evaluate_embeddings
from maw_gym.runners.cli import main
from maw_gym.runners.report_page.page import (
    curve,
    data_block,
    looked_at,
    rendered,
    run_payload,
    sampled_queries,
    write_report_page,
)
from maw_gym.tables.task import load_task


@pytest.fixture(scope="module")
def payload(hostile):
    return run_payload(hostile)


@pytest.fixture(scope="module")
def task(hostile):
    return load_task(
        str(hostile.parent / "collection"), str(hostile / "encoder.safetensors"), "cpu"
    )


def rewards(task, split):
    """Of all depths (N, D), by the weights of the run."""
    table = task.table(split)
    return 0.5 * table.entropy + 0.25 * table.focus + 0.25 * table.ndcg


def test_the_table_has_the_run_above_the_upper_bounds(payload):
    table = payload["table"]
    assert table["columns"] == ["reward", "gap closed", "nDCG@10", "RR@10", "R@100", "Success@10"]
    rows = [(row["name"], row["own"], row["values"]) for row in table["rows"]]
    assert rows == [
        (IMAGE, False, [None, None, 0.5, 0.25, 1.0, 0.75]),
        ("random depth", False, [0.5, None, 0.5, 0.25, 1.0, 0.75]),
        (SCRIPT, True, [0.625, 0.5, 0.5, 0.25, 1.0, 0.75]),
        ("oracle, upper bound", False, [0.75, 1.0, None, None, None, None]),
    ]


def test_curves_come_from_the_logs_and_settings_are_lines(payload, task):
    values = {"name": "", "steps": [0, 10, 20], "values": [0.25, 0.5, 0.75]}
    first, second = payload["curves"]
    assert second == {"title": "train/" + IMAGE, "curves": [values], "levels": []}
    assert (first["title"], first["curves"]) == ("Mean reward, validation queries", [values])
    reward = rewards(task, "validation")
    fixed = reward[:, payload["depths"]["best_fixed"]]
    assert {one["name"]: one["y"] for one in first["levels"]} == {
        "random depth": pytest.approx(reward.mean(), abs=1e-4),
        "best fixed depth": pytest.approx(fixed.mean(), abs=1e-4),
        "oracle": pytest.approx(reward.max(1).mean(), abs=1e-4),
    }
    settings = dict(payload["run"]["settings"])
    assert settings["settings.reward_weights"] == "0.5, 0.25, 0.25"
    assert (settings[f"settings.{SCRIPT}"], settings["learner"]) == (IMAGE, SCRIPT)


def test_depths_and_queries_are_those_of_the_table(payload, task):
    table, depths, sample = task.table("test"), payload["depths"], payload["sample"]
    test = rewards(task, "test")
    assert depths["ndcg"] == pytest.approx(table.ndcg.mean(0), abs=1e-4)
    assert depths["profile"]["entropy"] == pytest.approx(table.entropy.mean(0), abs=1e-4)
    assert depths["profile"]["reward"] == pytest.approx(test.mean(0), abs=1e-4)
    assert depths["chosen"] == [0, 0, 4, 0]
    assert depths["best"] == np.bincount(test.argmax(1), minlength=DEPTHS).tolist()
    assert depths["best_fixed"] == rewards(task, "train").mean(0).argmax()
    # Four queries: 1.96 standard deviations over 2.
    assert depths["intervals"]["reward"] == pytest.approx(0.98 * test.std(0), abs=1e-4)
    assert sample["of"] == len(sample["queries"]) == 4
    for row, query in enumerate(sample["queries"]):
        assert query["text"] == QUERIES[5 + row][1][:999] + "…" * (row == 3)
        assert query["terms"]["alignment"] == pytest.approx(table.ndcg[row], abs=1e-4)
        assert query["terms"]["reward"] == pytest.approx(test[row], abs=1e-4)
        assert query["ndcg"][:DEPTHS] == pytest.approx(table.ndcg[row], abs=1e-4)
        assert (query["chosen"], query["best"]) == (CHOSEN, test[row].argmax())


def test_attention_is_that_of_every_depth_and_head(payload, task):
    query_id = QUERIES[5][0]
    query = payload["sample"]["queries"][0]
    n = len(query["tokens"])
    numbers = np.frombuffer(gzip.decompress(base64.b64decode(query["attention"])), np.uint8)
    weights = (numbers.reshape(DEPTHS + 1, 8, n, n) / 255) ** 2
    for depth in range(DEPTHS):
        expected, tokens = task.attention(query_id, depth)
        assert query["tokens"] == tokens
        assert np.abs(weights[depth] - expected).max() < 0.004
    # The standard attention comes last. With four depths none has its temperature, but between the
    # second and the third lies its entropy.
    entropy = [-(one * np.log(one + 1e-9)).sum(-1).mean() for one in weights]
    assert entropy[1] < entropy[DEPTHS] < entropy[2]


def test_rankings_are_those_of_the_evaluation(payload, task):
    sample, queries = payload["sample"], task.collection.splits["test"]
    ids = [document["id"] for document in sample["documents"]]
    for place in range(DEPTHS + 1):
        depths = None if place == DEPTHS else torch.full((len(queries.ids),), place)
        embeddings = task.embedder.encode_queries(queries.texts, depths)
        evaluation, ranking = evaluate_embeddings(task.index, queries, embeddings, None, 10)
        for row, query in enumerate(sample["queries"]):
            shown = [ids[document] for document, _ in query["rankings"][place]]
            expected = [task.index.doc_ids[one] for one in ranking.documents[row].tolist()]
            assert shown == [name[:199] + "…" * (len(name) > 200) for name in expected]
            assert query["ndcg"][place] == pytest.approx(
                evaluation.per_query["nDCG@10"][row], abs=1e-4
            )
    relevant = [query["relevant"] for query in sample["queries"]]
    named = [{ids[int(place)][:2]: grade for place, grade in one.items()} for one in relevant]
    assert named == [{"d6": 2}, {"d7": 1}, {"d8": 1}, {"d9": 1}]


def test_half_of_the_queries_differ_most_and_half_are_spread():
    ndcg = np.zeros((9, 2), np.float32)
    ndcg[4, 0], ndcg[7, 1], ndcg[2] = 0.5, 1.0, 1.0
    # 7 and 4 differ; the first and the last of the rest are 0 and 8.
    assert sampled_queries(ndcg, 4).tolist() == [7, 0, 4, 8]
    assert sampled_queries(ndcg, 1).tolist() == [7]
    assert sorted(sampled_queries(ndcg, 50).tolist()) == list(range(9))
    assert sampled_queries(ndcg[:1], 40).tolist() == [0]


def test_attention_takes_no_more_than_its_room(task):
    bandit, chosen = Bandit(task.table("test")), np.zeros(4, np.int64)
    whole = looked_at(task, bandit, chosen, 40)["queries"]
    sizes = sorted(len(query["attention"]) for query in whole)
    some = looked_at(task, bandit, chosen, 40, limit=sum(sizes) - 1)
    assert len(some["queries"]) == 3
    assert some["of"] == 4
    assert looked_at(task, bandit, chosen, 40, limit=1)["queries"] == []


def test_long_curves_are_means_of_neighbours():
    short = curve("reward", {5: 3.0, 10: float("nan")})
    assert short == {"name": "reward", "steps": [5, 10], "values": [3.0, None]}
    long = curve("reward", {step: float(step) for step in range(800)})
    assert long["steps"][:2] == [1, 3]
    assert long["values"][:2] == [0.5, 2.5]
    assert len(long["steps"]) == 400


def test_data_holds_nothing_that_ends_a_script():
    content = {"a": f"{SCRIPT}<!-- ]]> & \u2028 ü \ud800", "b": [1, None, LONG]}
    block = data_block(content)
    assert not set("<>&\u2028") & set(block)
    assert block.isascii()
    assert json.loads(block) == content
    with pytest.raises(ValueError, match="Out of range float"):
        data_block(float("nan"))


def test_the_page_is_one_file_whose_policy_names_its_script_and_its_style(hostile):
    path = write_report_page(hostile)
    assert path == hostile / "report.html"
    text = path.read_text(encoding="ascii")
    assert len(text) < 10_000_000
    assert not re.search(r"\[\[[A-Z_]+\]\]", text)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    for name, kind in (("style", "style-src"), ("script", "script-src")):
        blocks = re.findall(rf"<{name}>(.*?)</{name}>", text, re.DOTALL)
        assert len(blocks) == 1
        digest = base64.b64encode(hashlib.sha256(blocks[0].encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    markup = text[: text.index('id="data"')]
    assert not re.search(r"\b(src|href)=\"(?!#)|url\(|@import", markup)


def test_the_command_writes_the_page_anew(hostile, capsys):
    path = hostile / "report.html"
    path.write_text("old")
    main(["report", str(hostile), "--queries", "2"])
    assert capsys.readouterr().out == f"{path}\n"
    content = re.search(r'id="data">(.*?)</script>', path.read_text(), re.DOTALL)[1]
    assert len(json.loads(content)["sample"]["queries"]) == 2


def test_a_page_that_is_too_large_is_refused():
    with pytest.raises(InputError, match=r"the page would have 10\d{6} bytes, more than 10000000"):
        rendered({"text": 10_000_000 * "x"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.json", '{"baselines": {"a": 3}}', "metrics.json is not that of a run"),
        ("metrics.json", '{"reward": {"mean": NaN}}', "metrics.json is not that of a run"),
        ("config.json", '{"settings": {"reward_weights": null}}', "reward_weights must be three"),
        ("router.safetensors", None, "router.safetensors"),
        ("encoder.safetensors", "", "encoder.safetensors"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(hostile, tmp_path, name, content, message):
    folder = shutil.copytree(
        hostile, tmp_path / "run", ignore=shutil.ignore_patterns(name, "*.html")
    )
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(InputError, match=rf"^.*{message}.*$"):
        write_report_page(folder)
    assert not (folder / "report.html").exists()
