"""`pydocs:NAME`: docstrings of packages by name, and files of what was read."""

import json
import shutil
import sys

import ir_datasets
import numpy as np
import pytest
import torch

from maw_gym import files
from maw_gym.corpora import docstrings, is_pydocs, load_collection, pydocs
from maw_gym.corpora.docstrings import default_packages, named_packages
from maw_gym.errors import InputError

# The side of a text is that of its sha256, as a fraction.
OPEN = "Open the file for reading."  # .088 encoder
CLOSE = "Close the file at once."  # .775 train
SORT = "Sort the list in place."  # .822 validation
TEST = "Copy the graph at once."  # .971 test


def unlike(letter):
    return " ".join(f"{letter}{i}" for i in range(12))


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Packages that look installed: `left` of the project Left_Hand, and `right` of right."""
    monkeypatch.setenv("MAW_GYM_HOME", str(tmp_path / "home"))
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
    _forget()
    yield tmp_path
    _forget()


def _forget():
    docstrings._importable.cache_clear()
    pydocs.installed_pydocs.cache_clear()


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
        "left.a": "left",
        "left.b": "left",
        "right.c": "right",
        "right.d": "right",
    }
    assert collection.provenance["collection"]["versions"] == {
        "python": sys.version.split()[0],
        "left": "1.5",
        "right": "1.5",
    }
    assert is_pydocs(collection)


def test_its_splits_are_datasets_of_ir_datasets(installed):
    train = ir_datasets.load("pydocs:left,right/train")
    assert [query.query_id for query in train.queries_iter()] == ["left.b", "right.c"]
    assert train.docs_count() == 4
    assert load_collection("pydocs:left,right/test").splits["test"].ids == ("right.d",)


def test_one_package_among_the_default_ones(installed, monkeypatch):
    standard = named_packages(["left", "default"])
    assert list(standard.roots) == ["", "left", "numpy", "torch"]
    assert list(standard.versions) == ["left", "numpy", "python", "torch"]
    assert standard.label == "default+left"
    assert named_packages(["right", "Left_Hand"]).label == "left+right"
    everything = named_packages(["installed"])
    assert {"", "numpy", "torch", "left", "right", "pytest", "_pytest"} <= set(everything.roots)
    assert "test" not in everything.roots  # a folder of tests that a project has left there


def test_sources_are_found_without_importing(installed):
    roots = default_packages().roots
    assert list(roots) == ["", "numpy", "torch"]
    for package, file in {"": "os.py", "numpy": "__init__.py", "torch": "nn/functional.py"}.items():
        assert (roots[package] / file).is_file()
    assert named_packages(["left"]).roots == {"left": installed / "site" / "left"}
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
        (
            "pydocs:left",
            ["'pydocs:left/test' has no query with a relevant document"],
        ),  # none of its queries is on the test side
    ],
)
def test_names_that_are_none(installed, name, parts):
    with pytest.raises(InputError) as caught:
        load_collection(name)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_the_cache_file_serves_where_the_packages_are_not(installed, monkeypatch):
    here = load_collection("pydocs:left,right")
    (file,) = (installed / "home" / "pydocs").glob("left+right-*.safetensors")
    there = installed / "carried.safetensors"
    shutil.copyfile(file, there)
    shutil.rmtree(installed / "site")
    _forget()
    monkeypatch.setenv("MAW_GYM_HOME", str(installed / "another home"))
    collection = load_collection(str(there))
    assert collection.doc_texts == here.doc_texts
    assert collection.splits == here.splits
    assert collection.groups == here.groups
    assert collection.provenance["content"] == here.provenance["content"]
    assert is_pydocs(collection)


def test_twins_share_a_fold(installed):
    """left.b and right.c have documents that are nearly the same, in whichever fold they are."""
    folds = [load_collection("pydocs:left,right", fold, folds=3) for fold in range(3)]
    # In the order of the hash: a .088; b and c, by "close the file at once", .775; d .971.
    tests = [("left.a",), ("left.b", "right.c"), ("right.d",)]
    assert [one.splits["test"].ids for one in folds] == tests
    (file,) = (installed / "home" / "pydocs").glob("left+right-*.safetensors")
    again = load_collection(str(file), fold=1, folds=3)
    assert again.provenance["content"] == folds[1].provenance["content"]


WHOLE = {
    "docs": [["a", "text"]],
    "queries": [["q", "text", "test", ["a"]]],
    "provenance": {"versions": {"python": "3"}},
}
NO_QUERY = "query 'q' has no documents or no split"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([], "has no JSON object in it"),
        ({}, "KeyError: 'docs'"),
        (WHOLE | {"docs": [["a", 1]]}, "TypeError"),
        (WHOLE | {"docs": [["a"]]}, "ValueError"),
        (WHOLE | {"docs": [["a", "x"], ["a", "y"]]}, "an id is given twice"),
        (WHOLE | {"queries": [["q", "x", "tset", ["a"]]]}, NO_QUERY),
        (WHOLE | {"queries": [["q", "x", ["test"], ["a"]]]}, NO_QUERY),
        (WHOLE | {"queries": [["q", "x", "test", ["b"]]]}, NO_QUERY),
        (WHOLE | {"queries": [["q", "x", "test", []]]}, NO_QUERY),
        (WHOLE | {"queries": 7}, "TypeError"),
        (WHOLE | {"provenance": {}}, "KeyError: 'versions'"),
        (WHOLE | {"provenance": {"versions": {"python": 3}}}, "TypeError"),
    ],
    ids=range(12),
)
def test_files_with_something_else_in_them(tmp_path, content, reason):
    path = tmp_path / "x.safetensors"
    data = np.frombuffer(json.dumps(content).encode(), np.uint8).copy()
    files.write(path, {"json": torch.from_numpy(data)}, "pydocs", {})
    with pytest.raises(InputError) as caught:
        load_collection(str(path))
    assert reason in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_of_another_kind_and_damaged_ones(tmp_path):
    path = tmp_path / "x.safetensors"
    files.write(path, {"json": torch.zeros(2)}, "encoder", {})
    with pytest.raises(InputError, match="holds a 'encoder', not a 'pydocs'"):
        load_collection(str(path))
    files.write(path, {"json": torch.zeros(2)}, "pydocs", {})
    with pytest.raises(InputError, match="has no JSON object in it"):
        load_collection(str(path))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="is not a readable safetensors file"):
        load_collection(str(path))
