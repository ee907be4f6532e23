"""The Triton kernel against the float64 reference.

Without a GPU it runs in Triton's interpreter, in float32 and with given block sizes; with one, it
runs there, tuned and in bfloat16 too.
"""

import os
from types import ModuleType

import pytest
import torch
from random_inputs import random_inputs, reference

from maw_gym.attention.reference import Inputs, depth_statistics
from maw_gym.errors import InputError

CUDA = torch.cuda.is_available()
if not CUDA:
    # Triton reads this once, when it is imported: its own library is compiled or interpreted too.
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton")

needs_cuda = pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
SHAPES = [
    # lengths, depths, heads, width, blocks
    ((5, 3), 3, 2, 32, (16, 16)),
    ((17, 1, 0, 9), 2, 2, 16, (16, 16)),
    ((33, 20), 2, 1, 24, (16, 32)),
    ((41,), 1, 3, 48, (32, 16)),
    ((1,), 2, 1, 4, (16, 16)),
    # the width and heads of MiniLM
    ((32, 20), 2, 12, 384, (32, 32)),
    ((128, 64), 1, 12, 384, (64, 64)),
]


@pytest.fixture(scope="module")
def cuda() -> ModuleType:
    from maw_gym.attention import gpu

    return gpu


def fresh_inputs(lengths: tuple[int, ...], depths: int, heads: int, width: int) -> Inputs:
    """Others on every run, which a failure shows the seed of; two tokens of padding everywhere."""
    seed = torch.seed() % 2**31
    print("seed", seed)
    inputs = random_inputs(lengths, depths, heads, width, seed, padding=2)
    return Inputs(*(tensor.cuda() for tensor in inputs)) if CUDA else inputs


@pytest.mark.parametrize(("lengths", "depths", "heads", "width", "blocks"), SHAPES)
def test_the_kernel_equals_the_reference_in_float32(
    cuda: ModuleType,
    lengths: tuple[int, ...],
    depths: int,
    heads: int,
    width: int,
    blocks: tuple[int, int],
) -> None:
    inputs = fresh_inputs(lengths, depths, heads, width)
    found = cuda.fused_statistics(inputs, exact=True, blocks=blocks)
    for got, want in zip(found, reference(inputs), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("blocks", [(16, 16), (16, 32)])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_the_kernel_writes_every_number(
    cuda: ModuleType, poison: float, blocks: tuple[int, int]
) -> None:
    lengths, depths, heads, width = (17, 0, 5), 2, 2, 32
    x, mask, query_weight, key_weight, value, pooling = fresh_inputs(lengths, depths, heads, width)
    out = cuda.empty_partial(len(lengths), depths, heads, width // heads, x.device)
    for tensor in out:
        tensor.fill_(poison)
    weight = torch.cat([query_weight.view(2, 32, 32), key_weight.view(2, 32, 32)], 1).flatten(0, 1)
    projected = x.flatten(0, 1) @ weight.T
    projected[~mask.flatten()] = poison  # whatever lies on padding is not read either
    value = value.masked_fill(~mask[:, None, :, None], poison)
    beside = cuda.columns(value, mask, exact=True)
    unit = x.new_ones(mask.numel())
    cuda.launch(projected, unit, beside, pooling, out, exact=True, blocks=blocks)
    for tensor in out:
        assert tensor.isfinite().all()


def test_depths_in_several_launches_give_the_same(
    cuda: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = fresh_inputs((6, 4), 5, 2, 32)
    together = cuda.fused_statistics(inputs, exact=True, blocks=(16, 16))
    monkeypatch.setattr(cuda, "PROJECTED", 4 * inputs.x.numel())
    apart = cuda.fused_statistics(inputs, exact=True, blocks=(16, 16))
    for one, many in zip(together, apart, strict=True):
        torch.testing.assert_close(one, many, atol=1e-6, rtol=1e-6)


def test_the_same_input_gives_the_same_bits(cuda: ModuleType) -> None:
    inputs = fresh_inputs((9, 7), 3, 2, 32)
    first, second = (cuda.fused_statistics(inputs, exact=True, blocks=(16, 16)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_every_text_has_blocks_to_tune_over() -> None:
    from maw_gym.attention import kernels

    def blocks(bucket: int) -> set[tuple[int, ...]]:
        fitting = kernels.fitting(kernels.configurations(), {}, bucket=bucket)
        return {tuple(one.kwargs.values()) for one in fitting}

    assert blocks(16) == {(16, 16)}
    assert blocks(32) == {(16, 16), (32, 32)}
    assert (128, 128) in blocks(128)
    assert (16, 16) not in blocks(128)
    assert all(blocks(1 << power) for power in range(4, 14))


def test_unknown_kernels_and_gradients_are_refused() -> None:
    inputs = fresh_inputs((3,), 1, 1, 16)
    with pytest.raises(InputError, match="unknown kernel 'fast'; choose one of auto"):
        depth_statistics(inputs, kernel="fast")
    inputs.query_weight.requires_grad_()
    with pytest.raises(InputError, match="no gradients"):
        depth_statistics(inputs, kernel="triton")


@needs_cuda
@pytest.mark.parametrize(("heads", "width"), [(8, 256), (12, 384)])
@pytest.mark.parametrize("size", [24, 32, 100, 128, 300])
def test_the_tuned_kernel_in_bfloat16(cuda: ModuleType, size: int, heads: int, width: int) -> None:
    inputs = fresh_inputs((size, size // 2, 1, 0), 4, heads, width)
    for got, want in zip(depth_statistics(inputs), reference(inputs), strict=True):
        assert got.dtype == torch.float32
        error = (got.double() - want).norm() / want.norm()
        assert error < 1e-2, f"relative error {error:.1e}"


@needs_cuda
@pytest.mark.parametrize(("heads", "width"), [(8, 64), (12, 384)])
@pytest.mark.parametrize("size", [30, 64, 128, 300])
def test_exact_statistics_on_the_device_equal_the_reference(
    size: int, heads: int, width: int
) -> None:
    inputs = fresh_inputs((size, 7, 0), 4, heads, width)
    for kernel in ("torch", "exact"):
        for got, want in zip(
            depth_statistics(inputs, kernel=kernel), reference(inputs), strict=True
        ):
            torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=0)


@needs_cuda
def test_the_whole_tensor_is_never_held() -> None:
    inputs = fresh_inputs((254,) * 16, 32, 8, 256)
    depth_statistics(inputs)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    depth_statistics(inputs)
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < 16 * 8 * 256 * 256 * 32 * 4 / 4
