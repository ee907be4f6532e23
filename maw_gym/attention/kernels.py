"""The Triton kernels behind gpu.py, and the block sizes they are tuned over.

A program takes one depth of one head of one text. Scores live in registers only; beside the weights
p of a row, with maximum m and normaliser Z, a program keeps the sum of p s:

    entropy of a row = ln Z + m - sum(p s) / Z        largest weight of a row = 1 / Z

`short_kernel` holds all keys of a text at once. Its scores stand transposed, keys by rows, so that
the normalised weights are multiplied by 16 columns from registers: the 8 cells of the rows and the
pooling weights. The 8 cells of the keys and V come once, in the end. `long_kernel` walks over the
keys as flash attention does (Dao et al. 2022, arXiv:2205.14135), with a running maximum.

Programs write partial results of their own and `finish_kernel` adds them up, in a fixed order: the
same input gives the same output. Notation as in reference.py.
"""

from typing import Any

import triton
import triton.language as tl

SMALLEST = 16  # tensor cores multiply 16 x 16 blocks at least


@triton.jit
def store_partial(  # type: ignore[no-untyped-def]
    state,
    entropy,
    focus,
    pooled,
    at,
    n,
    entropies,
    largest,
    cell_sum,
    output,
    cells: tl.constexpr,
    padded_cells: tl.constexpr,
    width: tl.constexpr,
    padded_width: tl.constexpr,
):
    """Means of what one program has summed, to its place in the partial results."""
    column = tl.arange(0, padded_width)
    cell = tl.arange(0, padded_cells)
    count = tl.maximum(n, 1).to(tl.float32)
    tl.store(entropy + at, tl.sum(entropies, 0) / count)
    tl.store(focus + at, tl.sum(largest, 0) / count)
    tl.store(pooled + at * width + column, output, mask=column < width)
    last = ((cell + 1) * n + cells - 1) // cells
    tokens_in = tl.maximum(last - cell * n // cells, 1).to(tl.float32)
    mean = cell_sum / (tokens_in[:, None] * tokens_in[None, :])
    kept = (cell[:, None] < cells) & (cell[None, :] < cells)
    tl.store(state + at * cells * cells + cell[:, None] * cells + cell[None, :], mean, mask=kept)


@triton.jit
def short_kernel(  # type: ignore[no-untyped-def]
    projected,  # (B S, d, 2, H e): queries and keys of d of the D depths
    unit,  # (1,) float32: what a product of a query and a key is multiplied by
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
    keys_at_once: tl.constexpr,  # the whole bucket
):
    """One depth of one head of a text that has at most `keys_at_once` tokens."""
    program = tl.program_id(0)
    head = program % heads
    depth = (program // heads) % depths
    text = (program // heads // depths).to(tl.int64)
    n = tl.load(lengths + text).to(tl.int32)
    stride = depths * 2 * heads * width
    queries = projected + text * size * stride + (depth * 2 * heads + head) * width
    keys = queries + heads * width
    scale *= tl.load(unit)

    column = tl.arange(0, padded_width)
    inside = column < width
    cell = tl.arange(0, padded_cells)
    first = cell * n // cells
    last = tl.where(cell < cells, ((cell + 1) * n + cells - 1) // cells, 0)  # exclusive
    token = tl.arange(0, keys_at_once)
    known = token < n
    there = known[:, None] & inside[None, :]
    k = tl.load(keys + token[:, None] * stride + column[None, :], mask=there, other=0.0)

    into = tl.zeros([keys_at_once, padded_cells], tl.float32)  # weights by cell of the row
    entropies = tl.zeros([rows_at_once], tl.float32)
    largest = tl.zeros([rows_at_once], tl.float32)
    # Where one block holds the text, constant bounds leave no loop at all.
    last_row = n if bucket > rows_at_once else rows_at_once
    for from_row in range(0, last_row, rows_at_once):
        row = from_row + tl.arange(0, rows_at_once)
        real = row < n
        q = tl.load(
            queries + row[:, None] * stride + column[None, :],
            mask=real[:, None] & inside[None, :],
            other=0.0,
        )
        s = tl.dot(k, tl.trans(q), input_precision=precision) * scale  # (keys, rows), in bits
        s = tl.where(known[:, None], s, -1.0e30)
        top = tl.max(s, 0)
        p = tl.exp2(s - top[None, :])
        total = tl.sum(p, 0)
        share = tl.where(real, 1.0 / total, 0.0)
        mean = tl.sum(p * s, 0) * share
        entropies += tl.where(real, tl.log2(total) + top - mean, 0.0)
        largest += share
        weight = tl.load(pooling + text * size + row, mask=real, other=0.0)
        of_row = (row[:, None] >= first[None, :]) & (row[:, None] < last[None, :])
        right = tl.where(cell[None, :] == cells, weight[:, None], of_row.to(tl.float32))
        right = (right * share[:, None]).to(k.dtype)
        into += tl.dot(p.to(k.dtype), right, input_precision=precision)

    into = tl.where(known[:, None], into, 0.0)
    of_key = (token[:, None] >= first[None, :]) & (token[:, None] < last[None, :])
    cell_sum = tl.dot(tl.trans(into), of_key.to(tl.float32), input_precision=precision)
    weight = tl.sum(tl.where(cell[None, :] == cells, into, 0.0), 1)
    values = value + (text * heads + head) * size * width
    v = tl.load(values + token[:, None] * width + column[None, :], mask=there, other=0.0)
    output = tl.sum(v.to(tl.float32) * weight[:, None], 0)
    at = (text * all_depths + first_depth + depth) * heads + head
    store_partial(
        state,
        entropy,
        focus,
        pooled,
        at,
        n,
        entropies,
        largest,
        cell_sum,
        output,
        cells,
        padded_cells,
        width,
        padded_width,
    )


@triton.jit
def long_kernel(  # type: ignore[no-untyped-def]
    projected,  # as in short_kernel, and so all other arguments
    unit,
    value,
    pooling,
    lengths,
    state,
    entropy,
    focus,
    pooled,
    size,
    depths,
    first_depth,
    all_depths,
    scale,
    heads: tl.constexpr,
    width: tl.constexpr,
    cells: tl.constexpr,
    bucket: tl.constexpr,
    padded_width: tl.constexpr,
    padded_cells: tl.constexpr,
    precision: tl.constexpr,
    rows_at_once: tl.constexpr,
    keys_at_once: tl.constexpr,
):
    """One depth of one head of one text of any length."""
    program = tl.program_id(0)
    head = program % heads
    depth = (program // heads) % depths
    text = (program // heads // depths).to(tl.int64)
    n = tl.load(lengths + text).to(tl.int32)
    stride = depths * 2 * heads * width
    queries = projected + text * size * stride + (depth * 2 * heads + head) * width
    keys = queries + heads * width
    scale *= tl.load(unit)
    values = value + (text * heads + head) * size * width

    column = tl.arange(0, padded_width)
    inside = column < width
    cell = tl.arange(0, padded_cells)
    first = cell * n // cells
    last = tl.where(cell < cells, ((cell + 1) * n + cells - 1) // cells, 0)  # exclusive

    cell_sum = tl.zeros([padded_cells, padded_cells], tl.float32)
    row_sum = tl.zeros([padded_width], tl.float32)
    entropies = tl.zeros([rows_at_once], tl.float32)
    largest = tl.zeros([rows_at_once], tl.float32)
    # Where one block holds the text, constant bounds leave no loop at all.
    last_row = n if bucket > rows_at_once else rows_at_once
    last_key = n if bucket > keys_at_once else keys_at_once
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
            s = tl.dot(q, tl.trans(k), input_precision=precision) * scale  # in bits
            s = tl.where(known[None, :], s, -1.0e30)
            new_top = tl.maximum(top, tl.max(s, 1))
            shrink = tl.exp2(top - new_top)
            p = tl.exp2(s - new_top[:, None])
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
        entropies += tl.where(real, tl.log2(total) + top - product * share, 0.0)
        largest += share
        in_cell = (row[None, :] >= first[:, None]) & (row[None, :] < last[:, None])
        cell_sum += tl.dot(
            in_cell.to(tl.float32), into_cells * share[:, None], input_precision=precision
        )
        weight = tl.load(pooling + text * size + row, mask=real, other=0.0) * share
        row_sum += tl.sum(output * weight[:, None], 0)

    at = (text * all_depths + first_depth + depth) * heads + head
    store_partial(
        state,
        entropy,
        focus,
        pooled,
        at,
        n,
        entropies,
        largest,
        cell_sum,
        row_sum,
        cells,
        padded_cells,
        width,
        padded_width,
    )


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


def configurations(*blocks: tuple[int, int, int, int]) -> list[triton.Config]:
    """What a kernel is tuned over: rows and keys at once, warps, stages of the pipeline."""
    return [
        triton.Config(
            {"rows_at_once": rows, "keys_at_once": keys}, num_warps=warps, num_stages=stages
        )
        for rows, keys, warps, stages in blocks
    ]


# At most two warps: with four, Triton 3.6 multiplies through Hopper's asynchronous instructions,
# and with several block sizes the product with the cells then reads outside shared memory.
SHORT = configurations(
    (16, 16, 1, 1),
    (16, 32, 1, 1),
    (32, 32, 1, 1),
    (16, 64, 1, 1),
    (16, 64, 2, 1),
    (32, 64, 2, 1),
    (16, 128, 2, 1),
)
LONG = configurations(
    (16, 16, 1, 1),
    (32, 32, 1, 1),
    (64, 32, 2, 1),
    (32, 128, 1, 1),
    (64, 64, 2, 2),
)


def whole_bucket(
    blocks: list[triton.Config], arguments: dict[str, Any], **others: Any
) -> list[triton.Config]:
    """Blocks that hold all keys of a text, and no more rows than it has."""
    bucket: int = {**arguments, **others}["bucket"]
    return [
        block
        for block in blocks
        if block.kwargs["keys_at_once"] == bucket and block.kwargs["rows_at_once"] <= bucket
    ]


def filled(
    blocks: list[triton.Config], arguments: dict[str, Any], **others: Any
) -> list[triton.Config]:
    """Blocks that a text of the bucket's length fills; a pipeline only where a loop has turns."""
    bucket: int = {**arguments, **others}["bucket"]
    return [
        block
        for block in blocks
        if max(block.kwargs.values()) <= bucket
        and 4 * block.kwargs["rows_at_once"] >= min(bucket, 128)
        and (block.num_stages == 1 or block.kwargs["keys_at_once"] < bucket)
    ]


KEY = ["bucket", "heads", "width", "precision"]
tuned_short_kernel = triton.autotune(
    SHORT, key=KEY, prune_configs_by={"early_config_prune": whole_bucket}
)(short_kernel)
tuned_long_kernel = triton.autotune(LONG, key=KEY, prune_configs_by={"early_config_prune": filled})(
    long_kernel
)
