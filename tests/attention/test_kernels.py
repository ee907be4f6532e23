"""The Triton kernels against the float64 reference.

Without a GPU they run in Triton's interpreter, in float32 and with given block sizes; with one they
run there, in bfloat16 too.
"""

import os

import pytest
import torch
from random_inputs import random_inputs, reference

from maw_gym.attention.reference import Inputs, depth_statistics

CUDA = torch.cuda.is_available()
if not CUDA:
    # Triton reads this once, when it is imported: its own library is compiled or interpreted too.
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton")
from maw_gym.attention import gpu  # noqa: E402

needs_cuda = pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
SMALL = (16, 16, 1, 1, None, 1)  # rows and keys of a block, warps, stages, registers, depths


def fresh_inputs(lengths, depths, heads, width):
    """Others on every run, which a failure shows the seed of; two tokens of padding everywhere."""
    seed = torch.seed() % 2**31
    print("seed", seed)
    inputs = random_inputs(lengths, depths, heads, width, seed, padding=2)
    return Inputs(*(tensor.cuda() for tensor in inputs)) if CUDA else inputs


def assert_exact(inputs, blocks=SMALL):
    found = gpu.fused_statistics(inputs, exact=True, blocks=blocks)
    for got, want in zip(found, reference(inputs), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("shape", "rows", "keys"),
    [  # lengths, depths, heads, width
        (((5, 3), 3, 2, 32), 16, 16),
        (((17, 1, 0, 9), 2, 2, 16), 16, 16),
        (((33, 20), 2, 1, 24), 16, 32),
        (((41,), 1, 3, 48), 32, 16),
        (((1,), 2, 1, 4), 16, 16),
        (((20, 0, 30), 2, 2, 16), 16, 32),  # all keys at once, and the rows in turn
        # the width and heads of MiniLM
        (((32, 20), 1, 12, 384), 32, 32),
        (((128, 64), 1, 12, 384), 64, 64),
        (((126,), 1, 2, 16), 64, 128),
    ],
)
def test_exact_statistics_equal_the_reference(shape, rows, keys):
    assert_exact(fresh_inputs(*shape), (rows, keys, 2, 1, None, 2))


@pytest.mark.parametrize("keys", [16, 32])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_every_number_is_written_and_none_of_padding_read(poison, keys, monkeypatch):
    inputs = fresh_inputs((17, 0, 5), 2, 2, 32)
    padding = ~inputs.mask
    inputs = inputs._replace(
        x=inputs.x.masked_fill(padding[..., None], poison),
        value=inputs.value.masked_fill(padding[:, None, :, None], poison),
    )
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **how: empty(*shape, **how).fill_(poison))
    for got in gpu.fused_statistics(inputs, exact=True, blocks=(16, keys, 1, 1, None, 2)):
        assert got.isfinite().all()


def test_depths_in_several_launches_and_weights_that_change_in_place(monkeypatch):
    inputs = fresh_inputs((6, 4), 5, 2, 32)
    monkeypatch.setattr(gpu, "PROJECTED", 4 * inputs.x.numel())
    for factor in (1, 3):
        inputs.key_weight.mul_(factor)
        assert_exact(inputs)


def test_the_same_input_gives_the_same_bits_wherever_it_lies():
    inputs = fresh_inputs((9, 7), 3, 2, 32)
    # Views one number into their memory, whose addresses are no multiple of 16 bytes.
    moved = Inputs(*(t.new_empty(t.numel() + 1)[1:].view(t.shape).copy_(t) for t in inputs))
    moved = moved._replace(value=inputs.value.transpose(1, 2).contiguous().transpose(1, 2))
    first, *others = (
        gpu.fused_statistics(one, exact=True, blocks=SMALL)
        for one in (inputs, inputs, moved, moved)
    )
    for other in others:
        for one, same in zip(first, other, strict=True):
            assert torch.equal(one, same)


@needs_cuda
@pytest.mark.parametrize(("heads", "width"), [(8, 256), (12, 384)])
@pytest.mark.parametrize("size", [10, 24, 32, 60, 64, 100, 126, 300])
def test_each_length_exact_and_in_bfloat16(size, heads, width):
    inputs = fresh_inputs((size, size // 2, 1, 0), 4, heads, width)
    assert_exact(inputs, blocks=None)
    for got, want in zip(depth_statistics(inputs), reference(inputs), strict=True):
        assert got.dtype == torch.float32
        error = (got.double() - want).norm() / want.norm()
        assert error < 1e-2, f"relative error {error:.1e}"


@needs_cuda
def test_the_whole_tensor_is_never_held():
    inputs = fresh_inputs((254,) * 16, 32, 8, 256)
    depth_statistics(inputs)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    depth_statistics(inputs)
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < 16 * 8 * 256 * 256 * 32 * 4 / 4
