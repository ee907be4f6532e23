"""Docstrings of installed packages, read from their source files: nothing is imported."""

import ast
import inspect
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from tqdm import tqdm

from maw_gym.corpora.records import encodable
from maw_gym.corpora.splits import normalised

# Folders of tests, of copies of other projects, and of the standard library's tools.
TESTS: Final = ("test", "tests", "testing", "conftest")
COPIES: Final = ("vendor", "vendored", "_vendor", "_vendored", "extern", "externals", "third_party")
LEFT_OUT: Final = frozenset((*TESTS, *COPIES, "idlelib", "lib2to3", "ensurepip", "site_packages"))
QUERY_WORDS: Final = (4, 40)
DOCUMENT_WORDS: Final = 12


class Docstring(NamedTuple):
    """A docstring in two: `query` its first paragraph, `document` the rest, both on one line."""

    name: str
    query: str
    document: str


def source_files(root: Path) -> list[tuple[str, int]]:
    """Relative paths and sizes of the modules under `root`, sorted; "" where it is a file itself.

    A module is what can be imported by name: all parts of its path are identifiers. That leaves
    out site-packages, and with it whatever is installed inside the standard library's folder.
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
    """All docstrings that make a query and a document, sorted by name.

    Args:
        roots: source folders or files by the name of their package.
        files: `source_files` of each root.

    Returns:
        The docstrings, their names made unique by #2, #3 ...; and counts of files, of files that
        are not Python of this version, and of docstrings.
    """
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
