"""Installed packages by name: where their sources lie and which version they are.

Nothing is imported: names are looked up in the metadata of what is installed.
"""

import difflib
import functools
import importlib.metadata
import importlib.util
import platform
import re
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from maw_gym.corpora.docstrings import LEFT_OUT
from maw_gym.errors import InputError

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
    """The packages of these names.

    Args:
        names: "default", "installed", what is imported ("sklearn") or what is installed
            ("scikit-learn"), in any order.

    Raises:
        InputError: a name is none of these, or has no Python source.
    """
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
