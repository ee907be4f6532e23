"""Prints constraints that hold every package at the lowest version that pyproject.toml allows."""

import re
import tomllib
from pathlib import Path

BOUND = re.compile(r"([\w.-]+)>=([^;,\s]+)")

if __name__ == "__main__":
    project = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    bounds = dict(found.groups() for one in needed if (found := BOUND.match(one)))
    print("\n".join(f"{name}=={version}" for name, version in bounds.items()))
