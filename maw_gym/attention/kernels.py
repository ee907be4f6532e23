"""The Triton kernels behind gpu.py, and the block sizes they are tuned over.

A program takes one depth of one head of one text. It walks over the text's tokens as flash
attention does (Dao et al. 2022, arXiv:2205.14135), with a running maximum m, normaliser Z and the
product of the weights with V, and beside them the sum of p s for the entropy and the product with
the 8 cells of the state. So the scores live in registers only:

    entropy of a row = ln Z + m - sum(p s) / Z        largest weight of a row = 1 / Z

Programs write partial results of their own and a second kernel adds them up, in a fixed order: the
same input gives the same output. Notation as in reference.py.
"""

from typing import Any

import triton
import triton.language as tl

SMALLEST = 16  # tensor cores multiply 16 x 16 blocks at least


@triton.jit
def statistics_kernel(  # type: ignore[no-untyped-def]
    query,  # (B S, d H e), d of the D depths
    key,  # (B S, d H e)
    value,  # (B, H, S, e)
    pooling,  # (B, S) float32
    lengths,  # (B,) int64
    state,  # (B, D, H, 8, 8)
    entropy,  # (B, D, H)
    focus,  # (B, D, H)
    pooled,  # (B, D, H, e)
    size,  # S
    depths,  # d
    first_depth,
    all_depths,  # D
    scale,  # log2(e) / sqrt(e): of scores into bits, since the hardware's exponential is exp2
    heads: tl.constexpr,
    width: tl.constexpr,  # e
    cells: tl.constexpr,  # 8
    bucket: tl.constexpr,  # S rounded up to a power of 2
    padded_width: tl.constexpr,
    padded_cells: tl.constexpr,
    precision: tl.constexpr,
    rows_at_once: tl.constexpr,
    keys_at_once: tl.constexpr,
):
    """One depth of one head of one text: its pooled attention, entropy, focus, pooled output."""
    program = tl.program_id(0)
    head = program % heads
    depth = (program // heads) % depths
    text = (program // heads // depths).to(tl.int64)
    n = tl.load(lengths + text).to(tl.int32)
    stride = depths * heads * width
    here = text * size * stride + (depth * heads + head) * width
    queries, keys = query + here, key + here
    values = value + (text * heads + head) * size * width

    column = tl.arange(0, padded_width)
    inside = column < width
    cell = tl.arange(0, padded_cells)
    first = cell * n // cells
    last = tl.where(cell < cells, ((cell + 1) * n + cells - 1) // cells, 0)  # exclusive

    cell_sum = tl.zeros([padded_cells, padded_cells], tl.float32)
    row_sum = tl.zeros([padded_width], tl.float32)
    entropy_sum = tl.zeros([rows_at_once], tl.float32)
    focus_sum = tl.zeros([rows_at_once], tl.float32)
    # Where one block holds the text, constant bounds leave no loop at all.
    last_row = size if bucket > rows_at_once else rows_at_once
    last_key = size if bucket > keys_at_once else keys_at_once
    for from_row in range(0, last_row, rows_at_once):
        row = from_row + tl.arange(0, rows_at_once)
        real = row < n
        q = tl.load(
            queries + row[:, None] * stride + column[None, :],
            mask=real[:, None] & inside[None, :],
            other=0.0,
        )
        # A finite start: the difference of two infinities is not a number.
        top = tl.full([rows_at_once], -1.0e30, tl.float32)
        total = tl.zeros([rows_at_once], tl.float32)
        product = tl.zeros([rows_at_once], tl.float32)  # sum of p s
        into_cells = tl.zeros([rows_at_once, padded_cells], tl.float32)
        output = tl.zeros([rows_at_once, padded_width], tl.float32)
        for from_key in range(0, last_key, keys_at_once):
            token = from_key + tl.arange(0, keys_at_once)
            known = token < n
            there = known[:, None] & inside[None, :]
            k = tl.load(keys + token[:, None] * stride + column[None, :], mask=there, other=0.0)
            v = tl.load(values + token[:, None] * width + column[None, :], mask=there, other=0.0)
            s = tl.dot(q, tl.trans(k), input_precision=precision)
            s = tl.where(known[None, :], s, -1.0e30)
            new_top = tl.maximum(top, tl.max(s, 1))
            shrink = tl.exp2((top - new_top) * scale)
            p = tl.exp2(s * scale - (new_top * scale)[:, None])
            total = total * shrink + tl.sum(p, 1)
            product = product * shrink + tl.sum(p * s, 1)
            of_cell = (token[:, None] >= first[None, :]) & (token[:, None] < last[None, :])
            p = p.to(v.dtype)
            into_cells = into_cells * shrink[:, None]
            into_cells += tl.dot(p, of_cell.to(v.dtype), input_precision=precision)
            output = output * shrink[:, None] + tl.dot(p, v, input_precision=precision)
            top = new_top
        share = tl.where(real, 1.0 / total, 0.0)
        # Of a text without tokens the sums may be infinite, and infinity times 0 is not a number.
        into_cells = tl.where(real[:, None], into_cells, 0.0)
        output = tl.where(real[:, None], output, 0.0)
        entropy_sum += tl.where(real, tl.log2(total) + (top - product * share) * scale, 0.0)
        focus_sum += share
        in_cell = (row[None, :] >= first[:, None]) & (row[None, :] < last[:, None])
        cell_sum += tl.dot(
            in_cell.to(tl.float32), into_cells * share[:, None], input_precision=precision
        )
        weight = tl.load(pooling + text * size + row, mask=real, other=0.0) * share
        row_sum += tl.sum(output * weight[:, None], 0)

    count = tl.maximum(n, 1).to(tl.float32)
    at = (text * all_depths + first_depth + depth) * heads + head
    tl.store(entropy + at, tl.sum(entropy_sum, 0) / count)
    tl.store(focus + at, tl.sum(focus_sum, 0) / count)
    tl.store(pooled + at * width + column, row_sum, mask=inside)
    tokens_in = tl.maximum(last - first, 1).to(tl.float32)
    mean = cell_sum / (tokens_in[:, None] * tokens_in[None, :])
    kept = (cell[:, None] < cells) & (cell[None, :] < cells)
    tl.store(state + at * cells * cells + cell[:, None] * cells + cell[None, :], mean, mask=kept)


@triton.jit
def finish_kernel(  # type: ignore[no-untyped-def]
    partial_state,  # (B, D, H, 8, 8)
    partial_entropy,  # (B, D, H)
    partial_focus,  # (B, D, H)
    lengths,  # (B,) int64
    state,  # (B, 64 H)
    entropy,  # (B, D)
    focus,  # (B, D)
    depths,  # D
    heads: tl.constexpr,
    numbers: tl.constexpr,  # 64 H
    padded_heads: tl.constexpr,
    padded_numbers: tl.constexpr,
    depths_at_once: tl.constexpr,
):
    """One text: its state summed over depths, of unit length; entropy and focus over heads."""
    text = tl.program_id(0).to(tl.int64)
    number = tl.arange(0, padded_numbers)
    head = tl.arange(0, padded_heads)
    n = tl.load(lengths + text)
    # A single token has entropy 0.
    most_bits = tl.log2(tl.maximum(n, 2).to(tl.float32))
    total = tl.zeros([padded_numbers], tl.float32)
    for start in range(0, depths, depths_at_once):
        depth = start + tl.arange(0, depths_at_once)
        known = depth < depths
        at = text * depths + depth
        there = known[:, None] & (number < numbers)[None, :]
        where = at[:, None] * numbers + number[None, :]
        total += tl.sum(tl.load(partial_state + where, mask=there, other=0.0), 0)
        there = known[:, None] & (head < heads)[None, :]
        where = at[:, None] * heads + head[None, :]
        bits = tl.sum(tl.load(partial_entropy + where, mask=there, other=0.0), 1) / heads
        bits = tl.minimum(tl.maximum(bits / most_bits, 0.0), 1.0)
        tl.store(entropy + at, bits, mask=known)
        largest = tl.sum(tl.load(partial_focus + where, mask=there, other=0.0), 1) / heads
        tl.store(focus + at, tl.minimum(tl.maximum(largest, 0.0), 1.0), mask=known)
    length = tl.maximum(tl.sqrt(tl.sum(total * total, 0)), 1e-12)
    tl.store(state + text * numbers + number, total / length, mask=number < numbers)


# At most two warps: with four, Triton 3.6 multiplies through Hopper's asynchronous instructions,
# and with several block sizes the product with the cells then reads outside shared memory. The
# fastest block size that did not was 12% faster than these.
_BLOCKS = (
    # rows and keys at once, warps, stages of the pipeline
    (16, 16, 1, 1),
    (32, 32, 1, 1),
    (32, 64, 1, 1),
    (64, 32, 2, 2),
    (64, 64, 2, 1),
    (64, 64, 2, 2),
    (64, 128, 2, 1),
)


def configurations() -> list[triton.Config]:
    """What the kernel is tuned over."""
    return [
        triton.Config(
            {"rows_at_once": rows, "keys_at_once": keys}, num_warps=warps, num_stages=stages
        )
        for rows, keys, warps, stages in _BLOCKS
    ]


def fitting(
    configurations: list[triton.Config], arguments: dict[str, Any], **others: Any
) -> list[triton.Config]:
    """Blocks that a text of the bucket's length fills; a pipeline only where a loop has turns.

    Float32 products are no work for tensor cores: in registers alone, blocks above 32 x 32 spill,
    and take seconds to compile.
    """
    told = {**arguments, **others}
    bucket: int = told["bucket"]
    largest = min(bucket, 32) if told["precision"] == "ieee" else bucket
    return [
        configuration
        for configuration in configurations
        if max(configuration.kwargs.values()) <= largest
        and 4 * configuration.kwargs["rows_at_once"] >= min(bucket, 128)
        and (configuration.num_stages == 1 or configuration.kwargs["keys_at_once"] < bucket)
    ]


tuned_statistics_kernel = triton.autotune(
    configurations(),
    key=["bucket", "heads", "width", "precision"],
    prune_configs_by={"early_config_prune": fitting},
)(statistics_kernel)
