"""How long one query takes through a method, beside the encoder's standard attention."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

QUERIES: Final = 40
WARM_UP: Final = 3

Encode = Callable[[list[str]], Any]


def added_latency(encode: Encode, standard: Encode, texts: Sequence[str]) -> float:
    """Median milliseconds that `encode` takes longer than `standard` for one query.

    The two take turns on every query, so that a machine that slows down slows both.

    Args:
        encode: a list of one query to whatever is ranked with; results must lie on the CPU, or
            reading them must wait for the device.
        standard: the same for what is compared with.
        texts: the first 40 are used.
    """
    chosen = list(texts[:QUERIES])
    for text in chosen[:WARM_UP]:
        encode([text])
        standard([text])
    differences = [_seconds(encode, text) - _seconds(standard, text) for text in chosen]
    return 1000 * statistics.median(differences)


def _seconds(encode: Encode, text: str) -> float:
    start = time.perf_counter()
    encode([text])
    return time.perf_counter() - start
