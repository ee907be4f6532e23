"""Docstrings of installed packages, read from their source files: nothing is imported."""

import ast
import contextlib
import difflib
import functools
import importlib.metadata
import importlib.util
import inspect
import os
import platform
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from tqdm import tqdm

from maw_gym.corpora.text import encodable, words
from maw_gym.errors import InputError

# Folders of tests, of copies of other projects, and of the standard library's tools.
TESTS: Final = ("test", "tests", "testing", "conftest")
COPIES: Final = ("vendor", "vendored", "_vendor", "_vendored", "extern", "externals", "third_party")
LEFT_OUT: Final = frozenset((*TESTS, *COPIES, "idlelib", "lib2to3", "ensurepip", "site_packages"))
QUERY_WORDS: Final = (4, 40)
DOCUMENT_WORDS: Final = 12
DEFAULT: Final = "default"  # the standard library, numpy and torch
INSTALLED: Final = "installed"  # these, and everything else that is installed
STANDARD_LIBRARY: Final = "python"  # its version, and the group of its texts
DEFINITIONS: Final = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Docstring(NamedTuple):
    """A docstring in two: `query` its first paragraph, `document` the rest, both on one line."""

    name: str
    query: str
    document: str


def named_packages(names: Iterable[str]) -> tuple[dict[str, Path], dict[str, str]]:
    """Folders, or files of modules, by import name ("" is the standard library); and versions."""
    roots: dict[str, Path] = {}
    versions = {STANDARD_LIBRARY: platform.python_version()}
    for name in names:
        if name in (DEFAULT, INSTALLED):
            roots[""] = Path(sysconfig.get_path("stdlib"))
        found = {}
        for module, distributions in _modules(name).items():
            if root := _root(module):
                found[module] = root
                numbers = {importlib.metadata.version(one) for one in distributions}
                versions[module] = "+".join(sorted(numbers))
        if not found:
            raise InputError(f"package {name!r} has no Python source to read; leave it out")
        roots |= found
    return dict(sorted(roots.items())), dict(sorted(versions.items()))


def _modules(name: str) -> Mapping[str, list[str]]:
    """Top-level modules of a package, each with its distributions."""
    if name == DEFAULT:
        return {"numpy": ["numpy"], "torch": ["torch"]}
    importable = _importable()
    if name == INSTALLED:
        return importable
    if name in importable:
        return {name: importable[name]}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        project = importlib.metadata.distribution(name).name
        return {module: found for module, found in importable.items() if project in found}
    known = {*importable, *(one for several in importable.values() for one in several)}
    close = difflib.get_close_matches(name.lower(), sorted(known), n=3)
    question = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    raise InputError(
        f"package {name!r} is not installed: {question}install it, or name others, such as"
        " pydocs:default,scipy"
    )


@functools.cache
def _importable() -> Mapping[str, list[str]]:
    """Top-level modules of all that is installed, each with its distributions."""
    return {
        module: distributions
        for module, distributions in importlib.metadata.packages_distributions().items()
        if module.isidentifier() and module not in LEFT_OUT
    }


def _root(module: str) -> Path | None:
    """The folder of a package, or the file of a module; None without Python source."""
    with contextlib.suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(module)  # of a name without dots: finds, and does not run
        if spec is not None and spec.submodule_search_locations:
            return Path(next(iter(spec.submodule_search_locations)))
        if spec is not None and spec.origin and spec.origin.endswith(".py"):
            return Path(spec.origin)
    return None


def source_files(root: Path) -> list[tuple[str, int]]:
    """Relative paths and sizes of the modules below `root`; "" where it is a file itself."""
    if root.is_file():
        return [("", root.stat().st_size)]
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name.isidentifier() and name not in LEFT_OUT]
        for name in files:
            stem = name.removesuffix(".py")
            a_test = stem.startswith("test_") or stem.endswith("_test") or stem == "conftest"
            if name != stem and stem.isidentifier() and not a_test:
                path = Path(folder, name)
                found.append((path.relative_to(root).as_posix(), path.stat().st_size))
    return sorted(found)


def read_docstrings(
    roots: Mapping[str, Path], files: Mapping[str, Sequence[tuple[str, int]]]
) -> tuple[list[Docstring], dict[str, int]]:
    """All docstrings that make a query and a document, sorted by name; and counts."""
    found: list[Docstring] = []
    counts: Counter[str] = Counter(files=0, unreadable_files=0, docstrings=0)
    names: Counter[str] = Counter()
    paths = [(package, path) for package in sorted(roots) for path, _ in files[package]]
    bar = tqdm(paths, "reading docstrings", unit="file", delay=2, leave=False, disable=None)
    for package, path in bar:
        counts["files"] += 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes are their authors' business
                tree = ast.parse((roots[package] / path).read_bytes())
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
            counts["unreadable_files"] += 1
            continue
        parts = [part for part in (package, *path.removesuffix(".py").split("/")) if part]
        if parts[-1] == "__init__" and len(parts) > 1:
            parts.pop()
        for name, text in _docstrings(tree, ".".join(parts)):
            counts["docstrings"] += 1
            if pair := query_and_document(text):
                names[name] += 1
                again = f"#{names[name]}" if names[name] > 1 else ""
                found.append(Docstring(name + again, *pair))
    return sorted(found), dict(counts)


def query_and_document(docstring: str) -> tuple[str, str] | None:
    """First paragraph and the rest, or None where either has not the words that it needs."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(docstring).strip(), maxsplit=1)
    if len(paragraphs) < 2:
        return None
    query, document = (" ".join(encodable(paragraph).split()) for paragraph in paragraphs)
    least, most = QUERY_WORDS
    if not least <= len(words(query)) <= most or len(words(document)) < DOCUMENT_WORDS:
        return None
    return query, document


def _docstrings(tree: ast.Module, module: str) -> Iterator[tuple[str, str]]:
    """Qualified names and docstrings of a module, and of the classes and functions in it."""
    left: list[tuple[Any, str]] = [(tree, module)]
    while left:
        node, name = left.pop()
        if isinstance(node, (ast.Module, *DEFINITIONS)):
            text = ast.get_docstring(node, clean=False)
            if text:
                yield name, text
        # Statements only: expressions define nothing, and are most of a tree.
        fields = ("body", "handlers", "orelse", "finalbody", "cases")
        for child in reversed([child for field in fields for child in getattr(node, field, ())]):
            defines = isinstance(child, DEFINITIONS)
            left.append((child, f"{name}.{child.name}" if defines else name))
