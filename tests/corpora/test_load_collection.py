"""Datasets of ir_datasets, their subsets and folds, and mistakes with them."""

import json
import logging
import os
import shutil
import zipfile
from collections import namedtuple
from pathlib import Path

import ir_datasets
import pytest
from ir_datasets.datasets.base import Dataset
from ir_datasets.formats import GenericDoc, GenericQuery, TrecQrel
from mistakes import refused

from maw_gym.corpora import load_collection

Titled = namedtuple("Titled", "doc_id title text")
Bare = namedtuple("Bare", "doc_id query_id")
DOCS = (GenericDoc("1", "one"), GenericDoc("2", "two"))


class Body(namedtuple("Body", "doc_id body")):
    def default_text(self):
        return f"body {self.body}"


class Records:
    """What a dataset has of one kind: docs, queries or qrels; an exception is raised."""

    def __init__(self, kind, records):
        self.records = records
        setattr(self, f"{kind}_iter", self.read)
        setattr(self, f"{kind}_handler", lambda: self)
        setattr(self, f"{kind}_count", lambda: None)

    def read(self):
        for record in self.records:
            if isinstance(record, Exception):
                raise record
            yield record


@pytest.fixture
def register(monkeypatch):
    def enter(name, asked=None, judged=None, docs=DOCS):
        """Of a letter x the query `q-x`; judgments, or one grade of document 1 for every query."""
        parts = [Records("docs", docs)]
        if asked is not None:
            queries = [GenericQuery(f"q-{x}", x) if isinstance(x, str) else x for x in asked]
            parts.append(Records("queries", queries))
        if judged is not None:
            judged = [(f"q-{x}", "1", judged) for x in asked] if judged in (-1, 0, 1) else judged
            parts.append(Records("qrels", [TrecQrel(*judgment, "0") for judgment in judged]))
        registered = ir_datasets.registry._registered | {name: Dataset(*parts)}
        monkeypatch.setattr(ir_datasets.registry, "_registered", registered)

    return enter


def texts(collection):
    return {split: "".join(found.texts) for split, found in collection.splits.items()}


def test_subsets_are_found_from_the_base(register):
    register("x", "abcv")
    register("x/encoder", "z")  # without judgments: none
    register("x/train", "abc", 1)
    register("x/dev", "v", 1)
    register("x/test", "cd", 1)
    collection = load_collection("x")
    assert texts(collection) == {"encoder": "", "train": "ab", "validation": "v", "test": "cd"}
    assert collection.doc_ids == ("1", "2")
    subsets = {"train": "x/train", "validation": "x/dev", "test": "x/test"}
    assert collection.provenance["subsets"] == subsets
    assert collection.provenance["splits"] == {
        "parts": {"test": 2, "validation": 1, "train": 2},
        "dropped_recurring_texts": 1,
        "made": "the collection's own test subset",
        "outside_test": 3,
    }
    alone = {"encoder": "", "train": "", "validation": "", "test": "cd"}
    assert texts(load_collection("x/test")) == alone


def test_folds_over_all_queries_whatever_their_subsets(register):
    register("x", "abcv")
    register("x/train", "abcef", 1)
    register("x/test", "dghl", 1)
    folds = [load_collection("x", fold, folds=3) for fold in range(3)]
    # In the order of their hash: d, f, c, b, e, h, l, a, g.
    assert [set(texts(one)["test"]) for one in folds] == [set("dbl"), set("fea"), set("chg")]
    assert sorted("".join(texts(folds[0]).values())) == sorted("abcdefghl")
    made = {"made": "fold 1 of 3 is test", "fold": 1, "folds": 3, "outside_test": 6}
    assert folds[1].provenance["splits"].items() >= made.items()
    assert len({one.provenance["content"] for one in folds}) == 3
    refused("x", "folds must be a whole number of 2 or more, got 1", folds=1)
    refused("x", "fold must be a whole number from 0 to 2, got 3", fold=3, folds=3)
    register("y", "ab", 1)
    refused("y", "none is left for test fold 2", fold=2)


def test_texts_ids_and_grades(register):
    records = [Titled("1", "Title", "text"), Titled("2", "", "a \ud800"), Titled(3, None, "alone")]
    records += [Body("4", "inside"), Titled("1", "twice", "")]
    asked = ["a", "b", GenericQuery(7, "seven"), GenericQuery("q-a", "again")]
    judgments = [("q-a", "1", -1), ("q-a", "4", 3), ("q-a", "4", 2), (7, 3, 1.0)]
    judgments += [("q-b", "1", 0), ("q-b", "gone", 1), ("unknown", "1", 1)]
    register("x/test", asked, judgments, records)
    collection = load_collection("x/test")
    assert collection.doc_ids == ("1", "2", "3", "4")
    assert collection.doc_texts == ("Title text", "a \ufffd", "alone", "body inside")
    expected = (("q-a", "7"), ("a", "seven"), ({"1": 0, "4": 2}, {"3": 1}))
    assert collection.splits["test"] == expected
    assert collection.provenance["dropped"] == {
        "documents with an id seen before": 1,
        "queries with an id seen before": 1,
        "judgments that a later one contradicts": 1,
        "judgments of missing documents": 1,
        "judgments of missing queries": 1,
        "queries without a relevant document": 1,
    }


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("beir/scifakt", ["'beir/scifakt'", "'beir/scifact'", "corpus.jsonl", "path"]),
        ("scifact", ["'beir/scifact'"]),
        ("beir", ["no documents or queries or judgments", "'beir/arguana'"]),
        (None, ["a dataset is named by a text, not by None"]),
        ("empty", ["'empty' has no document"]),
        ("irrelevant", ["irrelevant has no query with a relevant document"]),
        ("broken", ["'broken' cannot be read: line one line two"]),
        ("badzip", ["'badzip' cannot be read: File is not a zip file"]),
        ("fieldless", ["'fieldless' cannot be read: 'dict' object has no attribute 'doc_id'"]),
        ("tested", ["'tested/test' has no query with a relevant document among its documents"]),
    ],
)
def test_mistakes_are_one_line_with_a_way_out(register, name, parts):
    register("empty", "a", 1, ())
    register("irrelevant", "a", -1)
    register("broken", "a", 1, [OSError("line one\nline two")])
    register("badzip", "a", 1, [zipfile.BadZipFile("File is not a zip file")])
    register("fieldless", "a", 1, [{"doc_id": "a", "text": "b"}])
    register("tested")
    register("tested/dev", "a", 1)  # no reason to test on it
    register("tested/test", "b", 0)
    refused(name, *parts)


NO_TEXT = "of the dataset has no text: give its class a field `text` or a method `default_text`"


@pytest.mark.parametrize(
    ("doc", "query", "judgment", "parts"),
    [
        (Bare("1", ""), "q", 1, [f"a Bare {NO_TEXT}"]),
        (Titled("1", 7, "x"), "q", 1, [f"a Titled {NO_TEXT}"]),
        (DOCS[0], Bare("", "q"), 1, [f"a Bare {NO_TEXT}"]),
        (DOCS[0], GenericQuery("q", float("nan")), 1, [f"a GenericQuery {NO_TEXT}"]),
        (GenericDoc("2\0", "x"), "q", 1, ["a document of 'x': an id must", r"got '2\x00'"]),
        (DOCS[0], GenericQuery(1.5, "x"), 1, ["a query of 'x/test': an id must", "got 1.5"]),
        (DOCS[0], "q", ("q-q", None, 1), ["a judgment of 'x/test': an id must", "got None"]),
        (DOCS[0], "q", ("q-q", "1", None), ["query 'q-q' of 'x/test': a grade must", "got None"]),
    ],
)
def test_records_of_other_types_are_refused(register, doc, query, judgment, parts):
    register("x", docs=[doc])
    register("x/test", [query], [("q-q", "1", 1) if judgment == 1 else judgment])
    refused("x", *parts)


def test_a_programming_error_is_not_hidden(register):
    register("x", "a", 1, [TypeError("a mistake")])
    with pytest.raises(TypeError, match="a mistake"):
        load_collection("x")


def test_settings_of_downloads_and_the_log_are_restored(register, monkeypatch):
    seen = {}

    def watching():
        seen.update(os.environ)
        yield from DOCS

    monkeypatch.setenv("IR_DATASETS_DL_TIMEOUT", "77")
    monkeypatch.delenv("IR_DATASETS_DL_TRIES", raising=False)
    register("x/test", "a", 1, watching())
    filters = list(logging.getLogger("ir_datasets").filters)
    load_collection("x/test")
    assert (seen["IR_DATASETS_DL_TRIES"], seen["IR_DATASETS_DL_TIMEOUT"]) == ("2", "77")
    assert "IR_DATASETS_DL_TRIES" not in os.environ
    assert logging.getLogger("ir_datasets").filters == filters


def test_a_failed_download_names_the_file_and_its_place(tmp_path, monkeypatch, run_python):
    # Nothing listens on the discard port: refused at once, with or without a network.
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        for variable in (name, name.upper()):
            monkeypatch.setenv(variable, "" if name == "no_proxy" else "http://127.0.0.1:9")
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path))
    program = """
import time
from maw_gym.corpora import load_collection
start = time.perf_counter()
for name in ("vaswani", "beir/fiqa"):
    try:
        load_collection(name)
    except ValueError as error:
        print(error)
print(time.perf_counter() - start)"""
    *messages, seconds = run_python(program).splitlines()
    failed = f"which cannot be downloaded (ProxyError): put it at {tmp_path}"
    vaswani = "http://ir.dcs.gla.ac.uk/resources/test_collections/npl/npl.tar.gz or"
    vaswani += " https://mirror.ir-datasets.com/23e5607081191b153738e81fbd834680"
    fiqa = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets/fiqa.zip"
    assert messages == [
        f"dataset 'vaswani' needs {vaswani}, {failed}/vaswani/npl.tar.gz",
        f"dataset 'beir/fiqa' needs {fiqa}, {failed}/beir/fiqa/source.zip",
    ]
    assert float(seconds) < 10


def test_without_a_home_for_ir_datasets_folders_can_be_used(tiny_folder, monkeypatch, run_python):
    monkeypatch.setenv("IR_DATASETS_HOME", "/dev/null/home")
    program = f"""
from maw_gym.corpora import load_collection
print(len(load_collection({str(tiny_folder)!r}).doc_ids))
try:
    load_collection("cranfield")
except ValueError as problem:
    print(problem)"""
    documents, message = run_python(program).splitlines()
    assert documents == "30"
    assert message.startswith("ir_datasets cannot make its folder ([Errno ")
    assert message.endswith("'/dev/null/home'); set IR_DATASETS_HOME to one that can be written")


@pytest.mark.parametrize("limit", [30, 31])
def test_a_collection_that_is_not_ranked_whole_says_so(tiny_folder, monkeypatch, caplog, limit):
    monkeypatch.setattr("maw_gym.corpora.collection.SMALL", limit)
    with caplog.at_level(logging.INFO):
        load_collection(str(tiny_folder))
    line = f"{tiny_folder} has 30 documents, and 50000 or more are not ranked whole"
    told = [record.name for record in caplog.records if record.getMessage().startswith(line)]
    assert told == ["maw_gym.progress"] * (limit == 30)  # which runners show


SCORE = """
import json
from maw_gym.corpora import load_collection
from maw_gym.corpora.splits import pooled
from maw_gym.retrieval.bm25 import BM25
from maw_gym.retrieval.evaluation import evaluate_rankings
found = {}
for name in ("beir/scifact", "cranfield"):
    collection = load_collection(name)
    splits = collection.splits
    queries = splits["test"] if name == "beir/scifact" else pooled(splits)
    ranking = BM25.of(collection.doc_ids, collection.doc_texts).rank(queries.texts, 100)
    ndcg = evaluate_rankings(queries, collection.doc_ids, ranking.documents).mean["nDCG@10"]
    counts = [len(queries.ids) for queries in splits.values()]
    found[name] = [ndcg, len(collection.doc_ids), *counts]
print(json.dumps(found))
"""


def test_real_collections_and_bm25(tmp_path, monkeypatch, run_python):
    names = ["beir/scifact/source.zip"]
    names += [f"cranfield/{name}.txt" for name in ("docs", "queries", "qrels")]
    homes = [Path(__file__).parents[3] / "shared" / "ir_datasets"]
    homes += [Path(os.environ[name]) for name in ("IR_DATASETS_HOME",) if name in os.environ]
    home = next((home for home in homes if all((home / name).is_file() for name in names)), None)
    if home is None:
        pytest.skip(f"scifact and cranfield are in none of {', '.join(map(str, homes))}")
    for name in names:  # ir_datasets writes beside its files
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(home / name, tmp_path / name)
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path))
    assert json.loads(run_python(SCORE)) == {
        "beir/scifact": [pytest.approx(0.679, abs=0.01), 5183, 586, 174, 47, 300],
        "cranfield": [pytest.approx(0.339, abs=0.01), 1400, 0, 162, 18, 45],
    }
