"""Recordings of launches: with a recorder that needs no GPU, and, where there is one, as graphs."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from maw_gym.attention.depth_attention import depth_statistics
from maw_gym.attention.records import Inputs
from maw_gym.attention.replays import GraphRecorder, Replays, recordable

CUDA = torch.cuda.is_available()
needs_cuda = pytest.mark.skipif(not CUDA, reason="needs a CUDA device")


class Again:
    """Records by remembering the function, which it runs again into the same memory."""

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        self.recorded += 1
        result = function()

        def replay() -> None:
            self.replayed += 1
            result.copy_(function())

        return result, replay


def total(left: Tensor, right: Tensor) -> Tensor:
    return left + 10 * right


def pair(left: float, right: float) -> tuple[Tensor, Tensor]:
    return torch.tensor([left]), torch.tensor([right])


def test_the_third_call_is_recorded_and_the_results_are_those_of_its_own_inputs() -> None:
    record = Again()
    replays = Replays(record, direct=2)
    results = [replays.run("total", total, pair(number, 1.0)) for number in range(5)]
    assert [result.item() for result in results] == [10, 11, 12, 13, 14]
    assert (record.recorded, record.replayed, len(replays)) == (1, 3, 1)


def test_inputs_may_change_in_place_and_results_may_be_written_to() -> None:
    record = Again()
    replays = Replays(record, direct=0)
    left, right = pair(1.0, 2.0)
    first = replays.run("total", total, (left, right))
    left += 1
    second = replays.run("total", total, (left, right))
    first += 100
    second += 100
    assert replays.run("total", total, (left, right)).item() == 22
    assert (first.item(), second.item(), record.recorded) == (121, 122, 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor[:, :2],
        lambda tensor: tensor.double(),
        lambda tensor: tensor.T.contiguous().T,
        lambda tensor: tensor.reshape(-1),
    ],
    ids=["shape", "type", "strides", "dimensions"],
)
def test_inputs_of_another_form_have_a_recording_of_their_own(
    change: Callable[[Tensor], Tensor],
) -> None:
    record = Again()
    replays = Replays(record, direct=0)
    tensor = torch.arange(12.0).view(3, 4)
    for given in (tensor, change(tensor), tensor):
        found = replays.run("twice", lambda one: 2 * one, (given,))
        assert torch.equal(found, 2 * given)
        assert found.dtype == given.dtype
    assert (record.recorded, record.replayed) == (2, 3)


def test_the_recording_not_used_for_longest_goes_and_has_to_recur_anew() -> None:
    record = Again()
    replays = Replays(record, most=2, direct=1)

    def call(key: str) -> int:
        before = record.recorded
        assert replays.run(key, total, pair(3.0, 4.0)).item() == 43
        return record.recorded - before

    assert [call(key) for key in "aabba"] == [0, 1, 0, 1, 0]
    assert [call(key) for key in "cc"] == [0, 1]  # b goes
    assert len(replays) == 2
    assert [call(key) for key in "abb"] == [0, 0, 1]
    assert len(replays) == 2


def test_where_recording_fails_calls_are_made_directly(caplog: pytest.LogCaptureFixture) -> None:
    attempts = []

    def refuse(function: Callable[[], Tensor]) -> Any:
        attempts.append(function)
        raise RuntimeError("operation not permitted when stream is capturing")

    replays = Replays(refuse, direct=1)
    with caplog.at_level(logging.WARNING):
        results = [replays.run("total", total, pair(n, 0.0)).item() for n in range(4)]
    assert results == [0, 1, 2, 3]
    assert (len(attempts), len(replays), len(caplog.records)) == (1, 0, 1)
    assert "not permitted" in caplog.text


def test_recorded_in_inference_mode_and_used_outside() -> None:
    replays = Replays(Again(), direct=0)
    with torch.inference_mode():
        assert replays.run("total", total, pair(1.0, 0.0)).item() == 1
    assert replays.run("total", total, pair(2.0, 0.0)).item() == 2


def test_nothing_is_recorded_on_a_cpu() -> None:
    assert not recordable(torch.zeros(1))


def problem(seed: int, batch: int = 3, size: int = 24, heads: int = 4) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    width, depths = 32 * heads, 4

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    lengths = torch.randint(1, size + 1, (batch,), generator=generator)
    lengths[0] = size
    mask = torch.arange(size) < lengths[:, None]
    value = normal(batch, size, heads, 32).transpose(1, 2)  # as an encoder splits it
    inputs = [normal(batch, size, width), mask]
    inputs += [normal(depths * width, width) / width**0.5 for _ in range(2)]
    return Inputs(*(one.cuda() for one in (*inputs, value, mask / lengths[:, None])))


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> Replays:
    """Fresh recordings behind the statistics; the third call of a shape makes one."""
    from maw_gym.attention import statistics_cuda

    fresh = Replays(GraphRecorder(), most=3)
    monkeypatch.setattr(statistics_cuda, "_replays", fresh)
    return fresh


def directly(inputs: Inputs, kernel: str) -> list[Tensor]:
    """Launched on a stream of its own, where nothing is replayed."""
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        found = depth_statistics(inputs, kernel=kernel)
    torch.cuda.synchronize()
    return list(found)


@needs_cuda
@pytest.mark.parametrize("kernel", ["auto", "exact"])
def test_replayed_statistics_are_those_of_launches_bit_for_bit(
    replays: Replays, kernel: str
) -> None:
    first = problem(0)
    weights = {"query_weight": first.query_weight, "key_weight": first.key_weight}
    problems = [problem(seed)._replace(**weights) for seed in range(6)]
    found = [depth_statistics(inputs, kernel=kernel) for inputs in problems]
    assert len(replays) == 1
    for inputs, results in zip(problems, found, strict=True):
        for got, want in zip(results, directly(inputs, kernel), strict=True):
            assert torch.equal(got, want)


@needs_cuda
def test_weights_changed_in_place_are_read_anew(replays: Replays) -> None:
    inputs = problem(0)
    before = [depth_statistics(inputs) for _ in range(4)][-1]
    assert len(replays) == 1
    inputs.query_weight.mul_(-1)
    after = depth_statistics(inputs)
    assert len(replays) == 1
    assert not torch.equal(before[1], after[1])
    for got, want in zip(after, directly(inputs, "auto"), strict=True):
        assert torch.equal(got, want)


@needs_cuda
def test_shapes_take_turns_within_bounded_memory(replays: Replays) -> None:
    problems = [problem(seed, batch=seed + 1, size=16 + seed) for seed in range(6)]
    wanted = [directly(inputs, "auto") for inputs in problems]
    for _ in range(3):  # compiled, tuned, recorded and dropped
        for inputs in problems:
            for _ in range(3):
                depth_statistics(inputs)
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    for _ in range(4):
        for inputs, want in zip(problems, wanted, strict=True):
            for _ in range(4):
                found = depth_statistics(inputs)
            assert all(torch.equal(*both) for both in zip(found, want, strict=True))
    del found
    assert len(replays) == 3
    assert torch.cuda.memory_allocated() <= held + 2**20


@needs_cuda
def test_large_batches_and_other_recordings_are_launched_directly(
    replays: Replays, monkeypatch: pytest.MonkeyPatch
) -> None:
    from maw_gym.attention import statistics_cuda

    inputs = problem(0)
    monkeypatch.setattr(statistics_cuda, "RECORDED", inputs.x.numel() * 4 - 1)
    for _ in range(4):
        depth_statistics(inputs)
    assert len(replays) == 0
    monkeypatch.undo()
    graph = torch.cuda.CUDAGraph()
    wanted = [one.clone() for one in depth_statistics(inputs)]
    with torch.cuda.graph(graph):
        found = depth_statistics(inputs)
    graph.replay()
    assert all(torch.equal(*both) for both in zip(found, wanted, strict=True))
