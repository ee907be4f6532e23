"""pydocs serves the whole interface of ir_datasets."""

import ir_datasets
import pytest
from ir_datasets.formats import GenericDoc, GenericQuery, TrecQrel

from maw_gym.corpora import irds
from maw_gym.corpora.pydocs import Pydocs

PYDOCS = Pydocs(
    docs={name: f"text {name}" for name in "abcde"},
    queries={name: f"query {name}" for name in ("a", "b", "e")},
    relevance={"a": ["a"], "b": ["b", "c"], "e": ["e"]},
    # .088 is encoder; .971 test
    twins={"a": "open the file for reading", **dict.fromkeys("be", "copy the graph at once")},
    provenance={},
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(irds, "installed_pydocs", {"pydocs": PYDOCS}.__getitem__)


def ids(docs):
    return "".join(doc.doc_id for doc in docs)


def test_the_whole_and_a_subset():
    whole, test = ir_datasets.load("pydocs"), ir_datasets.load("pydocs/test")
    assert ids(whole.docs_iter()) == ids(test.docs_iter()) == "abcde"
    assert [query.query_id for query in whole.queries_iter()] == ["a", "b", "e"]
    assert list(test.queries_iter()) == [GenericQuery("b", "query b"), GenericQuery("e", "query e")]
    judgments = [TrecQrel(*pair, 1, "0") for pair in ("bb", "bc", "ee")]
    assert list(test.qrels_iter()) == judgments
    assert (test.docs_count(), test.queries_count(), test.qrels_count()) == (5, 2, 3)
    assert (whole.docs_count(), whole.queries_count(), whole.qrels_count()) == (5, 3, 4)
    assert list(ir_datasets.load("pydocs/validation").queries_iter()) == []


def test_single_documents_and_slices():
    docs = ir_datasets.load("pydocs").docs_iter()
    slices = [docs[1:][:2], docs[::2], docs[1 / 2 : 1.0], docs[99:]]
    assert list(map(ids, slices)) == ["bc", "ace", "cde", ""]
    assert docs[3].doc_id + docs[-1].doc_id + next(docs).doc_id == "dea"
    assert ids(docs) == "bcde"
    with pytest.raises(IndexError):
        docs[5]
    store = ir_datasets.load("pydocs/train").docs_store()
    assert store.get("c", field="text") == "text c"
    some = {name: GenericDoc(name, f"text {name}") for name in "ea"}
    assert store.get_many(["e", "none", "a"]) == some
    assert store.count() == 5
    assert ir_datasets.load("pydocs").docs_store(field="text").get("text b").doc_id == "b"


def test_what_is_told_of_it():
    dataset = ir_datasets.load("pydocs/train")
    kinds = dataset.docs_cls(), dataset.queries_cls(), dataset.qrels_cls()
    assert kinds == (GenericDoc, GenericQuery, TrecQrel)
    assert set(dataset.qrels_defs()) == {1}
    assert dataset.docs_lang() == dataset.queries_lang() == "en"
    assert dataset.docs_namespace() == dataset.queries_namespace() == "pydocs"
    assert ir_datasets.docs_parent_id("pydocs/train") == "pydocs"
    assert dataset.docs_calc_metadata(verbose=False)["count"] == 5


def test_importing_reads_nothing_and_may_be_repeated(run_python, home):
    program = """
import importlib
import maw_gym.corpora.irds as irds, ir_datasets
importlib.reload(irds)
dataset = ir_datasets.load("pydocs/test")
dataset.has_docs(), dataset.docs_handler(), dataset.queries_handler(), repr(dataset)
print(*(name for name in ir_datasets.registry if name.startswith("pydocs")))
print(irds.installed_pydocs.cache_info().currsize)"""
    names = "pydocs pydocs/encoder pydocs/train pydocs/validation pydocs/test"
    assert run_python(program).splitlines() == [names, "0"]
