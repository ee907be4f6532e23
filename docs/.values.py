"""Defaults in the signatures of the reference as values: 'exact' and not DEFAULTS.kl."""

from importlib import import_module
from inspect import signature
from typing import Any

import griffe


class Values(griffe.Extension):
    """Asks the imported function, where its source names a constant."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Put the value of a constant in the place of its name."""
        named = [one for one in func.parameters if isinstance(one.default, griffe.Expr)]
        if named:
            found: Any = import_module(func.module.path)
            for name in func.path.removeprefix(func.module.path + ".").split("."):
                found = getattr(found, name)
            values = signature(found).parameters
            for one in named:
                value = values[one.name].default
                if not callable(value):
                    one.default = repr(value)
