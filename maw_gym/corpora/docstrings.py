"""Docstrings of installed packages, read from their source files: nothing is imported."""

import ast
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

from maw_gym.corpora.collection import encodable
from maw_gym.corpora.splits import normalised
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
LONGEST_LABEL: Final = 80  # characters


class Packages(NamedTuple):
    """Source code to read.

    Attributes:
        roots: by the name that modules are imported by, "" for the standard library: the package's
            folder, or the file of a module that stands alone.
        versions: of Python, under "python", and of each package.
    """

    roots: dict[str, Path]
    versions: dict[str, str]

    @property
    def label(self) -> str:
        """The names for people, such as "default+scipy"; cut to a length that files may have."""
        standard = {"", "numpy", "torch"} if "" in self.roots else set()
        names = [DEFAULT] * bool(standard) + [name for name in self.roots if name not in standard]
        return "+".join(names)[:LONGEST_LABEL]


def default_packages() -> Packages:
    """The standard library, numpy and torch."""
    versions = {STANDARD_LIBRARY: platform.python_version()}
    roots = {"": Path(sysconfig.get_path("stdlib"))}
    for name in ("numpy", "torch"):
        versions[name] = importlib.metadata.version(name)
        root = _root(name)
        if root is not None:
            roots[name] = root
    return Packages(roots, versions)


def named_packages(names: Iterable[str]) -> Packages:
    """The packages of these names."""
    roots: dict[str, Path] = {}
    versions = {STANDARD_LIBRARY: platform.python_version()}
    for name in names:
        if name in (DEFAULT, INSTALLED):
            standard = default_packages()
            roots |= standard.roots
            versions |= standard.versions
        modules = [] if name == DEFAULT else _modules(name)
        found = {module: root for module in modules if (root := _root(module)) is not None}
        if modules and not found:
            raise InputError(f"package {name!r} has no Python source to read; leave it out")
        roots |= found
        versions |= {module: _version(module) for module in found if module not in versions}
    # In one order, however they were named: equal packages are one collection.
    return Packages(dict(sorted(roots.items())), dict(sorted(versions.items())))


def _modules(name: str) -> list[str]:
    """Names that a package is imported by; of "installed", all there are."""
    importable = _importable()
    if name == INSTALLED:
        return sorted(importable)
    if name in importable:
        return [name]
    by_distribution: dict[str, list[str]] = {}
    for module, distributions in importable.items():
        for distribution in distributions:
            by_distribution.setdefault(_canonical(distribution), []).append(module)
    modules = by_distribution.get(_canonical(name))
    if modules:
        return sorted(modules)
    known = {*importable, *by_distribution, DEFAULT, INSTALLED}
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


def _canonical(distribution: str) -> str:
    """A distribution's name as indices compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _root(module: str) -> Path | None:
    """The folder of a package, or the file of a module; None without Python source."""
    try:
        spec = importlib.util.find_spec(module)  # of a name without dots: finds, and does not run
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None


def _version(module: str) -> str:
    return "+".join(sorted({importlib.metadata.version(name) for name in _importable()[module]}))


class Docstring(NamedTuple):
    """A docstring in two: `query` its first paragraph, `document` the rest, both on one line."""

    name: str
    query: str
    document: str


def source_files(root: Path) -> list[tuple[str, int]]:
    """Relative paths and sizes of the modules under `root`, sorted; "" where it is a file
    itself.
    """
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
    """All docstrings that make a query and a document, sorted by name."""
    found: list[Docstring] = []
    counts: Counter[str] = Counter(files=0, unreadable_files=0, docstrings=0)
    paths = [(package, path) for package in sorted(roots) for path, _ in files[package]]
    for package, path in tqdm(
        paths, desc="reading docstrings", unit="file", delay=2, leave=False, disable=None
    ):
        counts["files"] += 1
        try:
            with warnings.catch_warnings():
                # Invalid escapes and the like are the business of that file's authors.
                warnings.simplefilter("ignore")
                tree = ast.parse((roots[package] / path).read_bytes())
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
            counts["unreadable_files"] += 1
            continue
        for name, text in _docstrings(tree, _module(package, path)):
            counts["docstrings"] += 1
            pair = query_and_document(text)
            if pair:
                found.append(Docstring(name, *pair))
    seen: Counter[str] = Counter()
    for row, docstring in enumerate(found):
        seen[docstring.name] += 1
        if seen[docstring.name] > 1:
            found[row] = docstring._replace(name=f"{docstring.name}#{seen[docstring.name]}")
    return sorted(found), dict(counts)


def query_and_document(docstring: str) -> tuple[str, str] | None:
    """First paragraph and the rest, or None where either has not the words that it needs."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(docstring).strip(), maxsplit=1)
    if len(paragraphs) < 2:
        return None
    query, document = (" ".join(encodable(paragraph).split()) for paragraph in paragraphs)
    words = len(normalised(query).split())
    if not QUERY_WORDS[0] <= words <= QUERY_WORDS[1]:
        return None
    if len(normalised(document).split()) < DOCUMENT_WORDS:
        return None
    return query, document


def _module(package: str, path: str) -> str:
    parts = [package] if package else []
    parts += path.removesuffix(".py").split("/") if path else []
    if parts[-1] == "__init__" and len(parts) > 1:
        parts.pop()
    return ".".join(parts)


def _docstrings(node: Any, name: str) -> Iterator[tuple[str, str]]:
    """Qualified name and docstring of a module, class or function and of all defined within."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node, clean=False)
        if text:
            yield name, text
    # Statements only: expressions define nothing, and are most of a tree.
    for field in ("body", "handlers", "orelse", "finalbody", "cases"):
        for child in getattr(node, field, ()):
            defines = isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            yield from _docstrings(child, f"{name}.{child.name}" if defines else name)
