import gzip
import json
import os
import subprocess
import sys
import time

import pytest

from maw_gym.corpora import pydocs
from maw_gym.corpora.docstrings import Docstring, default_packages
from maw_gym.corpora.pydocs import build, installed_pydocs, read_pydocs
from maw_gym.corpora.splits import normalised

TEXT = [f"w{i}" for i in range(20)]
LONG = " ".join(TEXT)
# sha256 of the normalised text, as a fraction: the side is encoder under .6, train under .8,
# validation under .85.
OPEN = "Open the file for reading."  # .088 encoder
CLOSE = "Close the file at once."  # .775 train
SORT = "Sort the list in place."  # .822 validation
SUM = "Return the sum of all numbers."  # .409 encoder
LINE = "Read one line of text."  # .539 encoder


def unlike(letter):
    return " ".join(f"{letter}{i}" for i in range(12))


def test_the_hash_of_a_query_decides_its_side():
    found = [
        Docstring("a", OPEN, unlike("a")),
        Docstring("b", CLOSE, unlike("b")),
        Docstring("c", SORT, unlike("c")),
    ]
    assert build(found) == {
        "docs": [["a", unlike("a")], ["b", unlike("b")], ["c", unlike("c")]],
        "queries": [
            ["a", OPEN, "encoder", ["a"]],
            ["b", CLOSE, "train", ["b"]],
            ["c", SORT, "validation", ["c"]],
        ],
    }


def test_equal_texts_are_merged_and_pull_their_component_together():
    found = [
        Docstring("a", CLOSE, unlike("a")),
        Docstring("b", CLOSE.lower(), unlike("b")),  # equal query: two relevant documents
        Docstring("c", SORT, unlike("b").upper()),  # equal document: shared
        Docstring("d", SORT, unlike("b")),  # equal in both: nothing new
        Docstring("e", OPEN, unlike("e")),
    ]
    # "close ..." < "sort ...": both queries are on the side of "close the file at once".
    assert build(found) == {
        "docs": [["a", unlike("a")], ["b", unlike("b")], ["e", unlike("e")]],
        "queries": [
            ["a", CLOSE, "train", ["a", "b"]],
            ["c", SORT, "train", ["b"]],
            ["e", OPEN, "encoder", ["e"]],
        ],
    }


def test_near_duplicate_documents_pull_their_component_together():
    near = " ".join([*TEXT[:-1], "other"])  # 17 of 19 word 3-grams: .89
    far = " ".join([*TEXT[:10], *(f"v{i}" for i in range(10))])  # 8 of 28
    found = [
        Docstring("a", SUM, LONG),
        Docstring("b", CLOSE, near),
        Docstring("c", SORT, far),
    ]
    content = build(found)
    assert [query[2] for query in content["queries"]] == ["train", "train", "validation"]
    assert len(content["docs"]) == 3


def test_chains_of_components():
    # LINE - b - CLOSE - (near) - SORT: the smallest is "close ..."; SUM stays apart.
    found = [
        Docstring("a", LINE, unlike("a")),
        Docstring("b", LINE, unlike("b")),
        Docstring("c", CLOSE, unlike("b")),
        Docstring("d", CLOSE, LONG),
        Docstring("e", SORT, " ".join([*TEXT, "more"])),
        Docstring("f", SUM, unlike("f")),
    ]
    assert [query[:3] for query in build(found)["queries"]] == [
        ["a", LINE, "train"],
        ["c", CLOSE, "train"],
        ["e", SORT, "train"],
        ["f", SUM, "encoder"],
    ]


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.setenv("MAW_GYM_HOME", str(tmp_path / "home"))
    root = tmp_path / "pkg"
    root.mkdir()
    (root / "a.py").write_text(f'"""{OPEN}\n\n{unlike("a")}\n"""\n')
    (root / "b.py").write_text(f'"""{CLOSE}\n\n{unlike("b")}\n"""\n')
    return root


def cache_files(tmp_path):
    return sorted((tmp_path / "home" / "pydocs").glob("*.safetensors"))


def test_reading_and_the_cache(tree, tmp_path, monkeypatch):
    first = read_pydocs({"pkg": tree}, {"pkg": "1"})
    assert first.docs["pkg.a"].text == unlike("a")
    assert first.queries["pkg.b"].text == CLOSE
    assert first.sides == {"pkg.a": "encoder", "pkg.b": "train"}
    assert first.relevance == {"pkg.a": ["pkg.a"], "pkg.b": ["pkg.b"]}
    assert first.provenance == {
        "versions": {"pkg": "1"},
        "files": 2,
        "unreadable_files": 0,
        "docstrings": 2,
        "pairs": 2,
        "documents": 2,
        "queries": {"encoder": 1, "train": 1, "validation": 0, "test": 0},
    }
    (path,) = cache_files(tmp_path)
    stored = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(pydocs.docstrings, "read_docstrings", lambda *_: pytest.fail("read again"))
        assert read_pydocs({"pkg": tree}, {"pkg": "1"}) == first
    path.unlink()
    assert read_pydocs({"pkg": tree}, {"pkg": "1"}) == first
    assert path.read_bytes() == stored


def test_versions_sources_and_settings_are_the_key(tree, tmp_path, monkeypatch):
    read_pydocs({"pkg": tree}, {"pkg": "1"})
    read_pydocs({"pkg": tree}, {"pkg": "2"})
    assert len(cache_files(tmp_path)) == 2
    (tree / "c.py").write_text(f'"""{SORT}\n\n{unlike("c")}\n"""\n')
    assert "pkg.c" in read_pydocs({"pkg": tree}, {"pkg": "2"}).docs
    assert len(cache_files(tmp_path)) == 3
    monkeypatch.setattr(pydocs, "NEAR_DUPLICATE", 0.8)
    read_pydocs({"pkg": tree}, {"pkg": "2"})
    assert len(cache_files(tmp_path)) == 4


@pytest.mark.parametrize("damage", ["empty", "truncated", "foreign", "checksum", "gzip bomb"])
def test_a_damaged_cache_is_noticed_and_built_anew(tree, tmp_path, caplog, damage):
    first = read_pydocs({"pkg": tree}, {"pkg": "1"})
    (path,) = cache_files(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "truncated": whole[: len(whole) // 2],
            "foreign": b"no container",
            "checksum": whole.replace(b"Open", b"Shut"),
            "gzip bomb": gzip.compress(bytes(10**7)),
        }[damage]
    )
    assert read_pydocs({"pkg": tree}, {"pkg": "1"}) == first
    assert path.read_bytes() == whole
    assert f"{path} " in caplog.text
    assert "it is made anew" in caplog.text


def test_without_a_place_for_the_cache_it_is_read_all_the_same(tree, tmp_path, caplog):
    (tmp_path / "home").write_text("a file, not a folder")
    assert len(read_pydocs({"pkg": tree}, {"pkg": "1"}).docs) == 2
    assert caplog.messages == [
        f"pydocs is not cached: the cache {tmp_path / 'home' / 'pydocs'} cannot be written: Not a"
        " directory; set MAW_GYM_HOME to a folder that can"
    ]


def test_the_installed_collection():
    """The real one: counts, shares, no text on two sides, and a quick second reading."""
    collection = installed_pydocs()
    counts = collection.provenance["queries"]
    total = sum(counts.values())
    assert 7_000 < total < 11_000
    assert 7_000 < len(collection.docs) < 11_000
    for split, share in {"encoder": 0.60, "train": 0.20, "validation": 0.05, "test": 0.15}.items():
        assert counts[split] / total == pytest.approx(share, abs=0.02)
    assert collection.provenance["unreadable_files"] < 20
    texts = [normalised(query.text) for query in collection.queries.values()]
    assert len(set(texts)) == total
    side_of_doc: dict[str, str] = {}
    for query_id, split in collection.sides.items():
        for doc_id in collection.relevance[query_id]:
            assert side_of_doc.setdefault(doc_id, split) == split
    assert set(side_of_doc) == set(collection.docs)
    documents = [normalised(doc.text) for doc in collection.docs.values()]
    assert len(set(documents)) == len(documents)
    assert collection.queries["torch.nn.modules.linear.Bilinear"].text.startswith("Applies a bilin")
    assert not [name for name in collection.docs if " " in name or ".tests." in name]
    versions = collection.provenance["versions"]
    start = time.process_time()  # what else runs on the machine counts nothing
    again = read_pydocs(default_packages().roots, versions)
    assert time.process_time() - start < 1
    assert again == collection
    assert installed_pydocs("pydocs:default") == collection


def test_import_reads_nothing_and_may_be_repeated(tmp_path):
    script = """
import importlib, json
import maw_gym.corpora, maw_gym.corpora.pydocs_dataset as registration
import ir_datasets
registered = [name for name in ir_datasets.registry if name.startswith("pydocs")]
importlib.reload(registration)
registration.register()
importlib.reload(maw_gym.corpora)
dataset = ir_datasets.load("pydocs/test")
dataset.has_docs(), dataset.docs_handler(), dataset.queries_handler(), repr(dataset)
from maw_gym.corpora.pydocs import installed_pydocs
print(json.dumps([registered, installed_pydocs.cache_info().currsize]))
"""
    env = os.environ | {"MAW_GYM_HOME": str(tmp_path), "IR_DATASETS_HOME": str(tmp_path / "irds")}
    command = [sys.executable, "-W", "error", "-c", script]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    names = ["pydocs", *(f"pydocs/{s}" for s in ("encoder", "train", "validation", "test"))]
    registered, read = json.loads(run.stdout)
    assert registered == names
    assert read == 0
    assert run.stderr == ""
    assert not (tmp_path / "pydocs").exists()
