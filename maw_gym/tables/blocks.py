"""Names of what a router can see and of what alignment can be; they need no torch."""

from collections.abc import Sequence
from typing import Final

from maw_gym.checks import checked_texts
from maw_gym.errors import InputError

BLOCKS: Final = ("attention", "profile", "retrieval", "content")
PER_DEPTH_BLOCKS: Final = ("profile", "retrieval")  # D numbers of each kind, one for each depth
ALIGNMENTS: Final = ("ndcg", "listwise")


def checked_blocks(blocks: Sequence[str] | str) -> tuple[str, ...]:
    """Names of observation blocks as a tuple; a single name may stand alone.

    Raises:
        InputError: no block, one named twice, or an unknown one.
    """
    names = (blocks,) if isinstance(blocks, str) else tuple(checked_texts(blocks, "blocks"))
    if not names or len(set(names)) != len(names):
        raise InputError(
            f"observation must name one or more different blocks of {', '.join(BLOCKS)};"
            f" got {names!r}"
        )
    for name in names:
        if name not in BLOCKS:
            raise InputError(f"unknown observation block {name!r}; choose from {', '.join(BLOCKS)}")
    return names
