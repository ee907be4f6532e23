"""Work in threads: results in order, errors where they belong, torch's settings as they were."""

import threading
from collections.abc import Iterator

import pytest
import torch

from maw_gym.threads import map_in_threads


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)


def test_results_are_in_order_whichever_is_ready_first() -> None:
    second = threading.Event()

    def square(number: int) -> int:
        if number == 1:
            second.set()
        # The first waits for the second, which one thread alone would never come to.
        assert second.wait(60)
        return number**2

    assert list(map_in_threads(square, range(5))) == [0, 1, 4, 9, 16]
    assert list(map_in_threads(square, [])) == []


def test_each_thread_computes_on_one_core() -> None:
    assert list(map_in_threads(lambda _: torch.get_num_threads(), range(8))) == [1] * 8


def test_one_thread_is_the_calling_one_with_all_cores() -> None:
    def where(_: int) -> tuple[threading.Thread, int]:
        return threading.current_thread(), torch.get_num_threads()

    assert list(map_in_threads(where, range(2), threads=1)) == [(threading.main_thread(), 3)] * 2


def test_items_are_taken_as_they_are_needed() -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    results = map_in_threads(lambda number: number, items(), threads=2)
    assert next(results) == 0
    assert taken == [0, 1, 2]
    results.close()  # type: ignore[attr-defined]
    assert taken == [0, 1, 2]


def test_an_error_is_raised_where_its_result_would_be() -> None:
    called = []

    def refuse(number: int) -> int:
        called.append(number)
        if number == 2:
            raise ValueError("two")
        return number

    results = map_in_threads(refuse, range(100), threads=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)
    assert max(called) < 6
