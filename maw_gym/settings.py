"""Settings: frozen dataclasses whose fields pydantic checks when one is made.

A field's annotation is its check, the text below it the help of its flag::

    @checked
    class FitSettings:
        epochs: Count = 40
        '''passes over the training queries'''
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticKnownError

from maw_gym.errors import InputError, expanded, shown

Kind = TypeVar("Kind")


def _name_or_path(text: str) -> str:
    return str(expanded(text)) if text.startswith("~") else text


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticKnownError("int_type")
    return value


Whole = Annotated[int, BeforeValidator(_no_truth)]
Count = Annotated[Whole, Field(ge=1, le=2**24)]
Index = Annotated[Whole, Field(ge=0, le=2**24)]
Seed = Annotated[Whole, Field(ge=0, lt=2**32)]
Rate = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]  # of learning
Above0 = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Coefficient = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Folds = Annotated[Whole, Field(ge=2, le=1000)]
Share = Annotated[float, BeforeValidator(_no_truth), Field(ge=0, le=1, allow_inf_nan=False)]
HomePath = Annotated[Path, AfterValidator(expanded)]
HomeText = Annotated[str, AfterValidator(_name_or_path)]

WORDS = {"greater than or equal to": "at least", "less than or equal to": "at most"}
WORDS |= {"greater than": "above", "less than": "below"}


@dataclass_transform(frozen_default=True)
def checked(kind: type[Kind]) -> type[Kind]:
    """Make a class a frozen dataclass that raises an `InputError` of one line for a wrong value."""
    config = ConfigDict(use_attribute_docstrings=True, extra="forbid")
    made: Any = dataclass(frozen=True, config=config)(kind)
    init: Callable[..., None] = made.__init__

    @wraps(init)
    def __init__(self: Any, *args: Any, **values: Any) -> None:
        try:
            init(self, *args, **values)
        except ValidationError as error:
            first = error.errors()[0]
            if first["type"] == "unexpected_keyword_argument":
                known = ", ".join(field.name for field in fields(made))
                message = f"there is no setting {first['loc'][0]!r}; choose among {known}"
                raise InputError(message) from None
            raise InputError(one_line(error)) from None

    made.__init__ = __init__
    whole: type[Kind] = made
    return whole


def one_line(error: ValidationError, name: str | None = None) -> str:
    """What is wrong with the first wrong setting, or with the one of this name; with its value."""
    first = error.errors()[0]
    if first["type"] == "value_error":  # raised by a check of ours
        return str(first["ctx"]["error"])
    name = name or (str(first["loc"][0]) if first["loc"] else "settings")
    text = first["msg"].replace("Input should", f"{name} must", 1)
    for long, short in WORDS.items():
        text = text.replace(long, short)
    if not text.startswith(name):
        text = f"{name}: {text[0].lower()}{text[1:]}"
    return f"{text.partition(', unable to parse')[0]}, got {_shown(first['input'])}"


def _shown(value: Any) -> str:
    """A value on one line; a number from a command line, which comes as a text, as a number."""
    if isinstance(value, str):
        with suppress(ValueError):
            float(value)
            return value.strip()
    return shown(value)


def described(kind: type[Any]) -> dict[str, str]:
    """The text below each field, by name."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        for name, about in vars(base).get("__pydantic_fields__", {}).items():
            if about.description:
                texts[name] = " ".join(about.description.split())
    return texts
