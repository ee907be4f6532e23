"""The long ones, by themselves: `pytest -m slow tests/endurance -n 0`."""

import pytest
from kills import main as kill
from side_by_side import main as side_by_side
from soak import main as soak


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thirty_kills_end_like_runs_left_alone():
    assert kill(30, 0) == 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_memory_stays_flat():
    found = soak(2_000_000, 200)
    assert found["MB per 100,000 environment steps"] < 1
    assert found["MB per 100,000 training steps"] < 1
    assert found["file handles more than after the first training"] == 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_runs_side_by_side_leave_a_result_each():
    assert side_by_side(20, 4) == (80, [0, 2, 2, 2])
