"""Work in threads: results in order, errors where they belong, torch's settings as they were."""

import threading
from collections.abc import Iterator

import pytest
import torch

from maw_gym.threads import ThreadAside, map_in_threads


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


def test_things_are_done_aside_in_turn_and_all_in_the_end() -> None:
    done: list[object] = []
    with ThreadAside(waiting=3) as thread:
        results = [thread.submit(done.append, number) for number in range(20)]
        where = thread.submit(threading.current_thread)
    assert done == list(range(20))
    assert where.result() is not threading.main_thread()
    assert all(result.done() for result in results)


def test_who_has_much_done_aside_waits_for_it() -> None:
    go_on, started = threading.Event(), []

    def work(number: int) -> None:
        started.append(number)
        assert go_on.wait(60)

    with ThreadAside(waiting=2) as thread:
        thread.submit(work, 0)
        thread.submit(work, 1)  # neither is done, and the caller goes on
        third = threading.Thread(target=thread.submit, args=(work, 2))
        third.start()
        third.join(0.1)
        assert third.is_alive()
        go_on.set()
        third.join(60)
    assert started == [0, 1, 2]


def failing_aside(times: int, own: type[Exception] | None = None) -> None:
    go_on = threading.Event()

    def fail() -> None:
        assert go_on.wait(60)
        raise ZeroDivisionError

    with ThreadAside(waiting=1) as thread:
        thread.submit(fail)
        go_on.set()
        for _ in range(times - 1):
            thread.submit(fail)
        if own is not None:
            raise own


@pytest.mark.parametrize("times", [1, 3])
def test_what_fails_aside_is_raised_later(times: int) -> None:
    with pytest.raises(ZeroDivisionError):
        failing_aside(times)


def test_of_two_errors_the_callers_own_is_seen() -> None:
    with pytest.raises(KeyError):
        failing_aside(1, KeyError)
