"""LazyInfos: a step's information, of which the costly part is gathered when it is asked for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any


class LazyInfos(dict[str, Any]):
    """A dict some of whose values are made when one of them is first asked for.

    Ids and final observations are objects all over memory: to gather those of a large batch takes
    longer than everything else beside its observations, and many callers read none. Whatever a dict
    can be asked for is answered as if all values were there; a copy is a plain dict.

    Args:
        ready: values by key.
        names: keys of the others.
        make: their values, in that order; called once, or never.
    """

    __slots__ = ("_make", "_names")

    def __init__(
        self, ready: Mapping[str, Any], names: Sequence[str], make: Callable[[], Sequence[Any]]
    ) -> None:
        super().__init__(ready)
        super().update(dict.fromkeys(names))
        self._names = names
        self._make = make

    def complete(self) -> None:
        """Make what is not made yet."""
        names, self._names = self._names, ()
        if names:
            super().update(zip(names, self._make(), strict=True))

    def __getitem__(self, key: str) -> Any:
        if key in self._names:
            self.complete()
        return super().__getitem__(key)

    def __iter__(self) -> Iterator[str]:
        # Defined, since dict(infos) and {**infos} else read the values past __getitem__.
        return super().__iter__()

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (dict(self),)


def _completing(name: str) -> Callable[..., Any]:
    method = getattr(dict, name)

    @wraps(method)
    def complete_first(*arguments: Any, **keywords: Any) -> Any:
        for one in arguments:  # what it is called on, and what that is compared with
            if isinstance(one, LazyInfos):
                one.complete()
        return method(*arguments, **keywords)

    return complete_first


for _name in ("clear", "copy", "get", "items", "pop", "popitem", "setdefault", "update", "values"):
    setattr(LazyInfos, _name, _completing(_name))
for _name in ("eq", "ne", "or", "ror", "ior", "repr", "setitem", "delitem"):
    setattr(LazyInfos, f"__{_name}__", _completing(f"__{_name}__"))
