"""The Triton kernels behind gpu.py, and the block sizes they are tuned over.

`statistics_kernel` takes one depth of one head of one text. It walks over the keys as flash
attention does (Dao et al. 2022, arXiv:2205.14135), with a running maximum m, normaliser Z, the sum
of p s, and the product of the weights p with V and, in further columns beside V, with the 8 cells
of the state. So scores live in registers only:

    entropy of a row = ln Z + m - sum(p s) / Z        largest weight of a row = 1 / Z

A block of rows is then reduced by one product from the left: 8 rows for the cells, one for the
pooling weights.

Exact statistics are made from halves: a float32 number is the sum of two of float16, times a scale.
The product of such sums, less that of the small parts, is as exact as float32's, and tensor cores
make it (Markidis et al. 2018, arXiv:1803.04014). Small parts come first, since tensor cores cut
their sums off.

Programs write partial results of their own and `finish_kernel` adds them up, in a fixed order: the
same input gives the same output. Notation as in reference.py.
"""

from typing import Any

import triton
import triton.language as tl

SMALLEST = 16  # tensor cores multiply 16 x 16 blocks at least


@triton.jit
def halves(x):  # type: ignore[no-untyped-def]
    """Large and small parts in float16; their sum is `x`, of at most 2^15, to 22 bits."""
    large = x.to(tl.float16)
    return large, (x - large.to(tl.float32)).to(tl.float16)


@triton.jit
def scale_of(largest):  # type: ignore[no-untyped-def]
    """What numbers of at most `largest` are multiplied by before they are cut into halves."""
    return 1024.0 / tl.maximum(largest, 1.0e-30)


@triton.jit
def tokens_kernel(  # type: ignore[no-untyped-def]
    x,  # (B S, h)
    weight_unit,  # (1,) float32, what the weights' halves are multiples of
    parts,  # (B S, 3 h) float16
    unit,  # (B S,) float32, what a row's products with the weights' halves are multiples of
    width: tl.constexpr,  # h
    padded_width: tl.constexpr,
):
    """Halves of one token's hidden state: small, large, large."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, padded_width)
    inside = column < width
    numbers = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
    scale = scale_of(tl.max(tl.abs(numbers), 0))
    large, small = halves(numbers * scale)
    at = parts + row * 3 * width + column
    tl.store(at, small, mask=inside)
    tl.store(at + width, large, mask=inside)
    tl.store(at + 2 * width, large, mask=inside)
    tl.store(unit + row, tl.load(weight_unit) / scale)


@triton.jit
def values_kernel(  # type: ignore[no-untyped-def]
    value,  # (B, H, S, e)
    mask,  # (B, S) bool
    lengths,  # (B,) int32
    columns,  # (B, H, S, columns), or (B, H, S, 2, columns) of large and small halves
    unit,  # (B H,) float32, what halves are multiples of
    size,  # S
    text_stride,
    head_stride,
    token_stride,
    column_stride,
    heads: tl.constexpr,
    width: tl.constexpr,
    cells: tl.constexpr,
    padded_columns: tl.constexpr,
    exact: tl.constexpr,
    at_once: tl.constexpr,
):
    """V of one head of one text beside the cells that each token is in, and the text's length."""
    program = tl.program_id(0).to(tl.int64)
    text = program // heads
    values = value + text * text_stride + (program % heads) * head_stride
    counts = tl.zeros([at_once], tl.int32)
    for start in range(0, size, at_once):
        token = start + tl.arange(0, at_once)
        counts += tl.load(mask + text * size + token, mask=token < size, other=0).to(tl.int32)
    n = tl.sum(counts, 0)
    tl.store(lengths + text, n)

    column = tl.arange(0, padded_columns)
    scale = 1.0
    if exact:
        largest = tl.zeros([at_once], tl.float32)
        for start in range(0, n, at_once):
            token = start + tl.arange(0, at_once)
            at = values + token[:, None] * token_stride + column[None, :] * column_stride
            there = (token < n)[:, None] & (column < width)[None, :]
            v = tl.load(at, mask=there, other=0.0).to(tl.float32)
            largest = tl.maximum(largest, tl.max(tl.abs(v), 1))
        scale = scale_of(tl.max(largest, 0))
        tl.store(unit + program, 1.0 / scale)
    stride = 2 * padded_columns if exact else padded_columns
    cell = column - width
    first = cell * n // cells
    last = ((cell + 1) * n + cells - 1) // cells  # exclusive
    is_cell = (cell >= 0) & (cell < cells)
    for start in range(0, n, at_once):
        token = start + tl.arange(0, at_once)
        at = values + token[:, None] * token_stride + column[None, :] * column_stride
        real = (token < n)[:, None]
        there = real & (column < width)[None, :]
        v = tl.load(at, mask=there, other=0.0).to(tl.float32) * scale
        in_cell = (token[:, None] >= first[None, :]) & (token[:, None] < last[None, :])
        numbers = tl.where((in_cell & is_cell[None, :]), 1.0, v)
        out = columns + (program * size + token)[:, None] * stride + column[None, :]
        if exact:
            large, small = halves(numbers)
            tl.store(out, large, mask=real)
            tl.store(out + padded_columns, small, mask=real)
        else:
            tl.store(out, numbers.to(tl.bfloat16), mask=real)


@triton.jit
def statistics_kernel(  # type: ignore[no-untyped-def]
    projected,  # (B S, d 2 H e), queries and keys of d of the D depths
    unit,  # (B S,) float32, what those of a token are multiples of; read where exact
    columns,  # (B, H, S, columns) of `values_kernel`
    value_unit,  # (B H,) float32
    pooling,  # (B, S) float32
    lengths,  # (B,) int32
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
    padded_columns: tl.constexpr,
    padded_width: tl.constexpr,
    padded_cells: tl.constexpr,
    exact: tl.constexpr,
    rows_at_once: tl.constexpr,
    keys_at_once: tl.constexpr,
):
    """One depth of one head of one text: its pooled attention, entropy, focus, pooled output."""
    program = tl.program_id(0)
    head = program % heads
    depth = (program // heads) % depths
    text = (program // heads // depths).to(tl.int64)
    n = tl.load(lengths + text)
    stride = depths * 2 * heads * width
    queries = projected + text * size * stride + (depth * 2 * heads + head) * width
    keys = queries + heads * width
    columns_stride = 2 * padded_columns if exact else padded_columns
    values = columns + (text * heads + head) * size * columns_stride
    whole: tl.constexpr = bucket <= keys_at_once  # all keys are held at once
    # Weights and what multiplies them are cut into halves of 2^10 times as much.
    bits: tl.constexpr = 10 if exact else 0

    place = tl.arange(0, padded_width)
    inside = (place < width)[None, :]
    column = tl.arange(0, padded_columns)
    cell = tl.arange(0, padded_cells)
    first = cell * n // cells
    last = tl.where(cell < cells, ((cell + 1) * n + cells - 1) // cells, 0)  # exclusive

    token = tl.arange(0, keys_at_once)
    if whole:
        known = token < n
        there = known[:, None] & inside
        k = tl.load(keys + token[:, None] * stride + place[None, :], mask=there, other=0.0)
        at = values + token[:, None] * columns_stride
        v = tl.load(at + column[None, :], mask=known[:, None], other=0.0)
        if exact:
            k *= tl.load(unit + text * size + token, mask=known, other=0.0)[:, None]
            k_scale = scale_of(tl.max(tl.abs(k)))
            k, k_small = halves(k * k_scale)
            v_small = tl.load(at + padded_columns + column[None, :], mask=known[:, None], other=0.0)

    reduced = tl.zeros([padded_cells, padded_columns], tl.float32)
    entropies = tl.zeros([rows_at_once], tl.float32)
    largest = tl.zeros([rows_at_once], tl.float32)
    # Where one block holds the text, constant bounds leave no loop at all.
    last_row = n if bucket > rows_at_once else rows_at_once
    last_key = n if bucket > keys_at_once else keys_at_once
    for from_row in range(0, last_row, rows_at_once):
        row = from_row + tl.arange(0, rows_at_once)
        real = row < n
        q = tl.load(
            queries + row[:, None] * stride + place[None, :], mask=real[:, None] & inside, other=0.0
        )
        if exact:
            q *= tl.load(unit + text * size + row, mask=real, other=0.0)[:, None]
            q_scale = scale_of(tl.max(tl.abs(q)))
            q, q_small = halves(q * q_scale)
        # Finite, and above masked scores: a text without tokens has weights of 0.
        top = tl.full([rows_at_once], -1.0e20, tl.float32)
        total = tl.zeros([rows_at_once], tl.float32)
        product = tl.zeros([rows_at_once], tl.float32)  # sum of p s
        output = tl.zeros([rows_at_once, padded_columns], tl.float32)
        for from_key in range(0, last_key, keys_at_once):
            if not whole:
                token = from_key + tl.arange(0, keys_at_once)
                known = token < n
                there = known[:, None] & inside
                k = tl.load(keys + token[:, None] * stride + place[None, :], mask=there, other=0.0)
                at = values + token[:, None] * columns_stride
                v = tl.load(at + column[None, :], mask=known[:, None], other=0.0)
                if exact:
                    k *= tl.load(unit + text * size + token, mask=known, other=0.0)[:, None]
                    k_scale = scale_of(tl.max(tl.abs(k)))
                    k, k_small = halves(k * k_scale)
                    v_small = tl.load(
                        at + padded_columns + column[None, :], mask=known[:, None], other=0.0
                    )
            if exact:
                s = tl.dot(q_small, tl.trans(k))
                s = tl.dot(q, tl.trans(k_small), s)
                s = tl.dot(q, tl.trans(k), s) * (1.0 / (q_scale * k_scale))
            else:
                s = tl.dot(q, tl.trans(k))
            s = tl.where(known[None, :], s, -1.0e30)
            new_top = tl.maximum(top, tl.max(s, 1))
            p = tl.exp2(s * scale - (new_top * scale - bits)[:, None])
            if not whole:
                shrink = tl.exp2((top - new_top) * scale)
                total *= shrink
                product *= shrink
                output *= shrink[:, None]
            total += tl.sum(p, 1)
            product += tl.sum(p * s, 1)
            if exact:
                p, p_small = halves(p)
                output = tl.dot(p_small, v, output)
                output = tl.dot(p, v_small, output)
                output = tl.dot(p, v, output)
            else:
                output = tl.dot(p.to(tl.bfloat16), v, output)
            top = new_top
        share = tl.where(real, 1.0 / total, 0.0)
        entropies += tl.where(real, tl.log2(total) - bits + (top - product * share) * scale, 0.0)
        largest += share
        weight = tl.load(pooling + text * size + row, mask=real, other=0.0)
        left = (row[None, :] >= first[:, None]) & (row[None, :] < last[:, None])
        left = tl.where(cell[:, None] == cells, weight[None, :], left.to(tl.float32))
        output *= share[:, None]
        if exact:
            output, output_small = halves(output)
            left, left_small = halves(left * 1024.0)
            reduced = tl.dot(left_small, output, reduced)
            reduced = tl.dot(left, output_small, reduced)
            reduced = tl.dot(left, output, reduced)
        else:
            reduced += tl.dot(left, output, input_precision="tf32")

    count = tl.maximum(n, 1).to(tl.float32)
    at = (text * all_depths + first_depth + depth) * heads + head
    tl.store(entropy + at, tl.sum(entropies, 0) / count)
    tl.store(focus + at, tl.sum(largest, 0) * (1 << bits) / count)
    if exact:
        reduced *= 1.0 / 1024.0
    row_of_pooling = tl.sum(tl.where((cell == cells)[:, None], reduced, 0.0), 0)
    if exact:
        row_of_pooling *= tl.load(value_unit + text * heads + head)
    tl.store(pooled + at * width + column, row_of_pooling, mask=column < width)
    other = column - width
    of_row = 1.0 / tl.maximum(last - first, 1).to(tl.float32)
    of_key = ((other + 1) * n + cells - 1) // cells - other * n // cells
    of_key = 1.0 / tl.maximum(of_key, 1).to(tl.float32)
    mean = reduced * of_row[:, None] * of_key[None, :]
    kept = (cell < cells)[:, None] & ((other >= 0) & (other < cells))[None, :]
    tl.store(state + at * cells * cells + cell[:, None] * cells + other[None, :], mean, mask=kept)


@triton.jit
def finish_kernel(  # type: ignore[no-untyped-def]
    partial_state,  # (B, D, H, 8, 8)
    partial_entropy,  # (B, D, H)
    partial_focus,  # (B, D, H)
    lengths,  # (B,) int32
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


_BLOCKS = (
    # rows and keys at once, warps, stages of the pipeline, registers of a thread
    (16, 16, 1, 1, None),
    (32, 32, 1, 1, None),
    (32, 32, 1, 1, 96),
    (64, 64, 4, 1, None),
    (64, 128, 4, 1, 168),
    (128, 128, 4, 1, 168),
    (128, 64, 4, 2, None),
    (128, 64, 4, 3, None),
)


def configurations() -> list[triton.Config]:
    """What the kernel is tuned over."""
    return [
        triton.Config(
            {"rows_at_once": rows, "keys_at_once": keys},
            num_warps=warps,
            num_stages=stages,
            maxnreg=registers,
        )
        for rows, keys, warps, stages, registers in _BLOCKS
    ]


def fitting(
    configurations: list[triton.Config], arguments: dict[str, Any], **others: Any
) -> list[triton.Config]:
    """Blocks that a text of the bucket's length fills; a pipeline only where a loop has turns."""
    bucket: int = {**arguments, **others}["bucket"]
    return [
        one
        for one in configurations
        if max(one.kwargs.values()) <= bucket
        and 2 * one.kwargs["rows_at_once"] >= min(bucket, 128)
        and (one.num_stages == 1 or one.kwargs["keys_at_once"] < bucket)
    ]


tuned_statistics_kernel = triton.autotune(
    configurations(),
    key=["bucket", "heads", "width", "exact"],
    prune_configs_by={"early_config_prune": fitting},
)(statistics_kernel)
