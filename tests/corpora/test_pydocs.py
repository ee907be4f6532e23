"""pydocs: docstrings as a collection; other packages by name, and files of what was read."""

import json
import shutil
import sys
import time

import ir_datasets
import numpy as np
import pytest
import torch
from mistakes import refused

from maw_gym import files
from maw_gym.corpora import docstrings, is_pydocs, load_collection
from maw_gym.corpora.docstrings import Docstring, named_packages
from maw_gym.corpora.pydocs import build, installed_pydocs, near_duplicates, write_pydocs
from maw_gym.corpora.text import normalised

# sha256 of the normalised text, as a fraction: the side is encoder under .6, train under .8,
# validation under .85.
OPEN = "Open the file for reading."  # .088 encoder
SUM = "Return the sum of all numbers."  # .409 encoder
LINE = "Read one line of text."  # .539 encoder
CLOSE = "Close the file at once."  # .775 train
SORT = "Sort the list in place."  # .822 validation
TEST = "Copy the graph at once."  # .971 test
TEXT = [f"w{i}" for i in range(20)]


def unlike(letter):
    return " ".join(f"{letter}{i}" for i in range(12))


def test_equal_texts_are_merged_and_like_ones_pull_their_component_together():
    built = build(
        [
            Docstring("a", CLOSE, unlike("a")),
            Docstring("b", CLOSE.lower(), unlike("b")),  # equal query: two relevant documents
            Docstring("c", SORT, unlike("b").upper()),  # equal document: shared
            Docstring("d", SORT, unlike("b")),  # equal in both: nothing new
            Docstring("e", SORT, " ".join(TEXT)),
            Docstring("f", LINE, " ".join([*TEXT, "more"])),  # a near-duplicate
            Docstring("g", OPEN, " ".join([*TEXT[:10], *unlike("g").split()])),  # 8 of 38
        ]
    )
    assert "".join(built.docs) == "abefg"
    assert (built.docs["b"], built.docs["e"]) == (unlike("b"), " ".join(TEXT))
    assert built.queries == {"a": CLOSE, "c": SORT, "f": LINE, "g": OPEN}
    assert built.relevance == {"a": ["a", "b"], "c": ["b", "e"], "f": ["f"], "g": ["g"]}
    # CLOSE - b - SORT - e - (near) - f - LINE: the smallest of the texts is "close ...".
    close, opened = "close the file at once", "open the file for reading"
    assert built.twins == {"a": close, "c": close, "f": close, "g": opened}
    assert built.sides == {"a": "train", "c": "train", "f": "train", "g": "encoder"}


def test_pairs_are_over_the_threshold_and_not_at_it():
    ten = list("abcdefghij")  # 8 word 3-grams
    texts = [
        ten,
        [*ten[:9], "x"],  # 7 of 9 in common with the first: .78
        [*ten[:9], "y", "z"],  # 7 of 10: exactly .7
        [*ten[:8], "x", "j"],  # 6 of 10
        ["a", "b"],
        [],
    ]
    assert list(near_duplicates(texts, 0.7)) == [(0, 1)]
    assert sorted(near_duplicates(texts, 0.69)) == [(0, 1), (0, 2), (1, 2)]
    # abc, bca, cab in both: repeated words count once.
    assert list(near_duplicates([list("abcabcabc"), list("bcabca")], 0.99)) == [(0, 1)]
    assert list(near_duplicates([], 0.7)) == []


def forget():
    """As if the process began now."""
    docstrings._importable.cache_clear()
    installed_pydocs.cache_clear()


@pytest.fixture
def installed(tmp_path, home, monkeypatch):
    """Packages that look installed: `left` of the project Left_Hand, and `right` of right."""
    site = tmp_path / "site"
    for package, project in (("left", "Left_Hand"), ("right", "right")):
        info = site / f"{project}-1.5.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.5\n")
        (info / "top_level.txt").write_text(f"{package}\n")
        (site / package).mkdir()
        (site / package / "__init__.py").write_text("raise SystemExit('imported')\n")
    texts = {"left/a": (OPEN, "a"), "left/b": (CLOSE, "b"), "right/d": (TEST, "d")}
    for path, (query, letter) in texts.items():
        (site / f"{path}.py").write_text(f'"""{query}\n\n{unlike(letter)}\n"""\n')
    # A near-duplicate of left.b: it goes where "close the file at once" goes.
    (site / "right" / "c.py").write_text(f'"""{SORT}\n\n{unlike("b")} more\n"""\n')
    monkeypatch.syspath_prepend(str(site))
    forget()
    yield site
    forget()


def cache_files(home, name="*"):
    return sorted((home / "pydocs").glob(f"{name}.safetensors"))


@pytest.mark.parametrize("names", ["left,right", " right ,left-hand", "Left.Hand,right,right"])
def test_named_packages_with_groups(installed, names):
    collection = load_collection(f"pydocs:{names}")
    assert collection.doc_ids == ("left.a", "left.b", "right.c", "right.d")
    assert {split: queries.ids for split, queries in collection.splits.items()} == {
        "encoder": ("left.a",),
        "train": ("left.b", "right.c"),
        "validation": (),
        "test": ("right.d",),
    }
    assert collection.query_groups("train") == ("left", "right")
    assert collection.groups.documents == {
        **dict.fromkeys(("left.a", "left.b"), "left"),
        **dict.fromkeys(("right.c", "right.d"), "right"),
    }
    assert collection.provenance["collection"] == {
        "versions": {"python": sys.version.split()[0], "left": "1.5", "right": "1.5"},
        **{"files": 6, "unreadable_files": 0, "docstrings": 4, "pairs": 4, "documents": 4},
        "queries": {"encoder": 1, "train": 2, "validation": 0, "test": 1},
    }
    assert is_pydocs(collection)
    assert ir_datasets.load("pydocs:left,right/train").docs_count() == 4
    assert load_collection("pydocs:left,right/test").splits["test"].ids == ("right.d",)


def test_packages_are_found_without_importing(installed):
    roots, versions = named_packages(["left", "default"])
    assert list(roots) == ["", "left", "numpy", "torch"]
    assert list(versions) == ["left", "numpy", "python", "torch"]
    for package, file in {"": "os.py", "numpy": "__init__.py", "torch": "nn/functional.py"}.items():
        assert (roots[package] / file).is_file()
    everything, _ = named_packages(["installed"])
    assert {"", "numpy", "torch", "left", "right", "pytest", "_pytest"} <= set(everything)
    assert "test" not in everything  # a folder of tests that a project has left there
    assert named_packages(["left"])[0] == {"left": installed / "left"}
    assert "left" not in sys.modules


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("pydocs:rihgt", ["'rihgt' is not installed", "did you mean 'right'"]),
        ("pydocs:left,qqqqqq", ["'qqqqqq' is not installed: install it"]),
        ("pydocs:left.a", ["'left.a' is not installed"]),
        ("pydocs:", ["unknown dataset 'pydocs:'"]),
        ("pydocs:,", ["'pydocs:,' names no package"]),
        ("pydocs:left/tset", ["unknown dataset 'pydocs:left/tset'"]),
        # None of its queries is on the test side.
        ("pydocs:left", ["'pydocs:left/test' has no query with a relevant document"]),
    ],
)
def test_names_that_are_none(installed, name, parts):
    refused(name, *parts)


def test_what_was_read_is_cached_and_sources_are_the_key(installed, home, monkeypatch):
    first = installed_pydocs("pydocs:left,right")
    installed_pydocs.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(docstrings, "read_docstrings", lambda *_: pytest.fail("read again"))
        assert installed_pydocs("pydocs:left,right") == first
    (installed / "left" / "e.py").write_text(f'"""{SUM}\n\n{unlike("e")}\n"""\n')
    installed_pydocs.cache_clear()
    assert "left.e" in installed_pydocs("pydocs:left,right").docs
    metadata = installed / "right-1.5.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("1.5", "1.6"))
    forget()
    assert installed_pydocs("pydocs:left,right").provenance["versions"]["right"] == "1.6"
    assert len(cache_files(home)) == 3


def test_the_cache_file_serves_where_the_packages_are_not(installed, home, monkeypatch):
    before = load_collection("pydocs:left,right")
    there = installed.parent / "carried.safetensors"
    shutil.copyfile(*cache_files(home, "left+right-*"), there)
    shutil.rmtree(installed)
    forget()
    monkeypatch.setenv("MAW_GYM_HOME", str(installed.parent / "another home"))
    collection = load_collection(str(there))
    for name in ("doc_texts", "splits", "groups"):
        assert getattr(collection, name) == getattr(before, name)
    assert collection.provenance["content"] == before.provenance["content"]
    # left.b and right.c, whose documents are nearly the same, are in one fold. In the order of the
    # hash: a .088; b and c, by "close the file at once", .775; d .971.
    folds = [load_collection(str(there), fold, folds=3).splits["test"].ids for fold in range(3)]
    assert folds == [("left.a",), ("left.b", "right.c"), ("right.d",)]
    found = installed_pydocs(str(there))
    write_pydocs(there, found._replace(docs=dict.fromkeys(found.docs, "new")))
    assert set(load_collection(str(there)).doc_texts) == {"new"}


WHOLE = {
    "docs": {"a": "text"},
    "queries": {"q": "text"},
    "relevance": {"q": ["a"]},
    "twins": {"q": "text"},
    "provenance": {"versions": {"python": "3"}},
}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([], "5 validation errors for Pydocs"),
        (WHOLE | {"docs": {"a": "\ud800"}}, "1 validation error"),
        (WHOLE | {"queries": {"q": "text", "r": "text"}}, "not every query has documents"),
        (WHOLE | {"relevance": {"q": ["b"]}}, "query 'q' has no documents"),
        (WHOLE | {"relevance": {"q": []}}, "query 'q' has no documents"),
        (WHOLE | {"provenance": {}}, "'versions'"),
        (WHOLE | {"provenance": {"versions": 3}}, "or they have no versions"),
    ],
)
def test_files_with_something_else_in_them(tmp_path, content, reason):
    path = tmp_path / "x.safetensors"
    data = np.frombuffer(json.dumps(content).encode(), np.uint8).copy()
    files.write(path, {"json": torch.from_numpy(data)}, "pydocs", {})
    refused(path, f"{path} is not a pydocs collection of this version (", reason)


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
    assert len(set(map(normalised, collection.queries.values()))) == total
    side_of_doc: dict[str, str] = {}
    for query_id, split in collection.sides.items():
        for doc_id in collection.relevance[query_id]:
            assert side_of_doc.setdefault(doc_id, split) == split
    assert set(side_of_doc) == set(collection.docs)
    assert len(set(map(normalised, collection.docs.values()))) == len(collection.docs)
    assert collection.queries["torch.nn.modules.linear.Bilinear"].startswith("Applies a bilin")
    assert not [name for name in collection.docs if " " in name or ".tests." in name]
    start = time.process_time()  # what else runs on the machine counts nothing
    installed_pydocs.cache_clear()
    assert installed_pydocs("pydocs:default") == collection
    assert time.process_time() - start < 1.5
