"""The Triton kernels behind gpu.py.

`statistics_kernel` takes some depths of one head of one text in turn, so that the next one is read
while the last is computed. It walks over the keys as flash attention does (Dao et al. 2022,
arXiv:2205.14135), with a running maximum m, normaliser Z, the sum of p s, and the product of the
weights p with V and, in further columns beside V, with the 8 cells of the state and with ones,
which is Z. So scores live in registers only:

    entropy of a row = ln Z + m - sum(p s) / Z        largest weight of a row = 1 / Z

A block of rows is then reduced by one product from the left: 8 rows for the cells, one for the
pooling weights. Where a block holds all keys, that product comes first, since its 9 rows are fewer
than a block's.

Exact statistics are made from halves: a float32 number is the sum of two of float16, times a scale.
The product of such sums, less that of the small parts, is as exact as float32's, and tensor cores
make it (Markidis et al. 2018, arXiv:1803.04014). Small parts come first, since tensor cores cut
their sums off.

Programs write partial results of their own and `finish_kernel` adds them up, in a fixed order: the
same input gives the same output. Notation as in reference.py; "columns" are V, the cells, ones.
"""

import triton
import triton.language as tl

SMALLEST = 16  # tensor cores multiply 16 x 16 blocks at least
CELLS = tl.constexpr(8)  # of a side of the state


@triton.jit
def tokens_of(cell, n):  # type: ignore[no-untyped-def]
    """The first token of a cell of the state, and the one after its last."""
    return cell * n // CELLS, ((cell + 1) * n + CELLS - 1) // CELLS


@triton.jit
def scale_of(largest):  # type: ignore[no-untyped-def]
    """What numbers of at most `largest` are multiplied by before they are cut into halves."""
    return 1024.0 / tl.maximum(largest, 1.0e-30)


@triton.jit
def added(to, left, left_small, right, right_small, exact: tl.constexpr):  # type: ignore[no-untyped-def]
    """``to + left @ right``, of halves where exact."""
    if exact:
        to = tl.dot(left_small, right, to)
        to = tl.dot(left, right_small, to)
    return tl.dot(left, right, to)


@triton.jit
def operands(x, exact: tl.constexpr):  # type: ignore[no-untyped-def]
    """`x` in bfloat16 twice; or, of at most 2^15, halves whose sum it is to 22 bits."""
    if exact:
        large = x.to(tl.float16)
        small = (x - large.to(tl.float32)).to(tl.float16)
    else:
        large = x.to(tl.bfloat16)
        small = large
    return large, small


@triton.jit(do_not_specialize=["size", "texts"])
def prepare_kernel(  # type: ignore[no-untyped-def]
    x,  # (B, S, h)
    mask,  # (B, S) bool
    value,  # (B, H, S, e)
    pooling,  # (B, S)
    weight_unit,  # (1,) float32, what the weights' halves are multiples of
    tokens,  # (B S, h) bfloat16, or (B S, 3 h) float16: small, large and large halves
    columns,  # (B H, S, columns) bfloat16, or (B H, S, 2, columns) float16: large and small halves
    of_token,  # (B S, 2) float32: what queries and keys are multiples of, and the pooling weight
    of_text,  # (B H, 2) float32: what halves of V are multiples of, and the length of the text
    size,  # S
    texts,  # B
    text_stride,
    head_stride,
    token_stride,
    column_stride,
    heads: tl.constexpr,  # H
    width: tl.constexpr,  # e
    hidden: tl.constexpr,  # h
    padded_columns: tl.constexpr,
    padded_width: tl.constexpr,  # where the cells begin
    padded_hidden: tl.constexpr,
    exact: tl.constexpr,
):
    """Operands of the products: the first B H programs make `columns`, the others a token each."""
    at_once: tl.constexpr = 32
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, padded_columns)
    if program < texts * heads:
        text = program // heads
        values = value + text * text_stride + (program % heads) * head_stride
        counts = tl.zeros([at_once], tl.int32)
        for start in range(0, size, at_once):
            token = start + tl.arange(0, at_once)
            counts += tl.load(mask + text * size + token, mask=token < size, other=0).to(tl.int32)
        n = tl.sum(counts, 0)
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
        tl.store(of_text + 2 * program, 1.0 / scale)
        tl.store(of_text + 2 * program + 1, n.to(tl.float32))
        stride = 2 * padded_columns if exact else padded_columns
        cell = column - padded_width
        first, last = tokens_of(cell, n)
        is_cell = (cell >= 0) & (cell < CELLS)
        for start in range(0, n, at_once):
            token = start + tl.arange(0, at_once)
            at = values + token[:, None] * token_stride + column[None, :] * column_stride
            real = (token < n)[:, None]
            v = tl.load(at, mask=real & (column < width)[None, :], other=0.0).to(tl.float32)
            in_cell = (token[:, None] >= first[None, :]) & (token[:, None] < last[None, :])
            is_one = (in_cell & is_cell[None, :]) | (cell == CELLS)[None, :]
            numbers = tl.where(is_one, 1.0, v * scale)
            out = columns + (program * size + token)[:, None] * stride + column[None, :]
            large, small = operands(numbers, exact)
            tl.store(out, large, mask=real)
            if exact:
                tl.store(out + padded_columns, small, mask=real)
    else:
        row = program - texts * heads
        place = tl.arange(0, padded_hidden)
        inside = place < hidden
        real = inside & (tl.load(mask + row) != 0)
        numbers = tl.load(x + row * hidden + place, mask=real, other=0.0).to(tl.float32)
        scale = scale_of(tl.max(tl.abs(numbers), 0)) if exact else 1.0
        large, small = operands(numbers * scale, exact)
        at = tokens + row * (3 * hidden if exact else hidden) + place
        tl.store(at, small, mask=inside)
        if exact:
            tl.store(at + hidden, large, mask=inside)
            tl.store(at + 2 * hidden, large, mask=inside)
            tl.store(of_token + 2 * row, tl.load(weight_unit) / scale)
        tl.store(of_token + 2 * row + 1, tl.load(pooling + row).to(tl.float32))


@triton.jit
def columns_of(columns, token, n, exact: tl.constexpr, padded_columns: tl.constexpr):  # type: ignore[no-untyped-def]
    """Operands of these tokens, (keys, some columns)."""
    known = (token < n)[:, None]
    at = columns + token[:, None] * (padded_columns * (2 if exact else 1))
    v = tl.load(at, mask=known, other=0.0)
    v_small = v
    if exact:
        v_small = tl.load(at + padded_columns, mask=known, other=0.0)
    return v, v_small


@triton.jit
def halves_of(at, of_token, token, n, inside, stride: tl.constexpr, exact: tl.constexpr):  # type: ignore[no-untyped-def]
    """Operands of these tokens' queries or keys, (tokens, e), and what scales them."""
    k = tl.load(at + token[:, None] * stride, mask=(token < n)[:, None] & inside, other=0.0)
    k_small, scale = k, 1.0
    if exact:
        k *= tl.load(of_token + 2 * token, mask=token < n, other=0.0)[:, None]
        scale = scale_of(tl.max(tl.abs(k)))
        k, k_small = operands(k * scale, exact)
    return k, k_small, scale


@triton.jit
def store_cells(state, cells, other, n):  # type: ignore[no-untyped-def]
    """Means of the cells from their sums, (16, columns), where `other` is a column's cell."""
    cell = tl.arange(0, 16)
    first, last = tokens_of(cell, n)
    first_key, last_key = tokens_of(other, n)
    area = tl.maximum(last - first, 1)[:, None] * tl.maximum(last_key - first_key, 1)[None, :]
    kept = (cell < CELLS)[:, None] & ((other >= 0) & (other < CELLS))[None, :]
    at = state + cell[:, None] * CELLS + other[None, :]
    tl.store(at, cells / area.to(tl.float32), mask=kept)


@triton.jit(do_not_specialize=["size", "first_depth", "all_depths"])
def statistics_kernel(  # type: ignore[no-untyped-def]
    projected,  # (B S, d 2 H e), queries and keys of d of the D depths
    columns,  # these three of `prepare_kernel`
    of_token,
    of_text,
    state,  # (B, D, H, 8, 8), the pooled attention
    sums,  # (B, D, H, 2), entropy in bits and focus, means over rows
    pooled,  # (B, D, H, e), the pooled attention output
    size,  # S
    first_depth,
    all_depths,  # D
    scale,  # log2(e) / sqrt(e): of scores into bits, since the hardware's exponential is exp2
    depths: tl.constexpr,  # d
    heads: tl.constexpr,
    width: tl.constexpr,  # e
    bucket: tl.constexpr,  # S rounded up to a power of 2
    padded_columns: tl.constexpr,
    padded_width: tl.constexpr,
    exact: tl.constexpr,
    rows_at_once: tl.constexpr,
    keys_at_once: tl.constexpr,
    in_turn: tl.constexpr,  # depths of a program, a divisor of d
):
    """Some depths of one head of one text: pooled attention, entropy, focus, pooled output."""
    program = tl.program_id(0)
    head = program % heads
    turns: tl.constexpr = depths // in_turn
    turn = (program // heads) % turns
    text = (program // heads // turns).to(tl.int64)
    n = tl.load(of_text + 2 * (text * heads + head) + 1).to(tl.int32)
    whole: tl.constexpr = bucket <= keys_at_once  # all keys are held at once
    by_keys: tl.constexpr = bucket <= keys_at_once and bucket <= 64  # rows are reduced first
    apart: tl.constexpr = by_keys and bucket <= 32  # V and cells, whose one product is quicker else
    # Weights and what multiplies them are cut into halves of 2^10 times as much.
    bits: tl.constexpr = 10 if exact else 0

    stride: tl.constexpr = depths * 2 * heads * width
    place = tl.arange(0, padded_width)
    inside = (place < width)[None, :]
    projected += text * size * stride + head * width + place[None, :]
    of_token += 2 * text * size
    columns += (text * heads + head) * size * (2 * padded_columns if exact else padded_columns)
    cell = tl.arange(0, 16)
    column = tl.arange(0, padded_width if apart else padded_columns)
    v_at = columns + column[None, :]
    first, last = tokens_of(cell, n)
    token = tl.arange(0, keys_at_once)
    if whole:
        v, v_small = columns_of(v_at, token, n, exact, padded_columns)
    if apart:
        cells_at = columns + padded_width + cell[None, :]
        cells, cells_small = columns_of(cells_at, token, n, exact, padded_columns)
    # Where one block holds the text, constant bounds leave no loop at all.
    last_row = n if bucket > rows_at_once else rows_at_once
    last_key = n if bucket > keys_at_once else keys_at_once
    for depth in range(turn * in_turn, (turn + 1) * in_turn):
        queries = projected + depth * 2 * heads * width
        keys = queries + heads * width
        if whole:
            k, k_small, k_scale = halves_of(keys, of_token, token, n, inside, stride, exact)
            by_key = tl.zeros([16, keys_at_once], tl.float32)
        reduced = tl.zeros([16, column.shape[0]], tl.float32)
        entropies = tl.zeros([rows_at_once], tl.float32)
        largest = tl.zeros([rows_at_once], tl.float32)
        for from_row in range(0, last_row, rows_at_once):
            row = from_row + tl.arange(0, rows_at_once)
            real = row < n
            q, q_small, q_scale = halves_of(queries, of_token, row, n, inside, stride, exact)
            # Finite, and above masked scores: a text without tokens has weights of 0.
            top = tl.full([rows_at_once], -1.0e20, tl.float32)
            total = tl.zeros([rows_at_once], tl.float32)
            weighted = tl.zeros([rows_at_once], tl.float32)  # sum of p s
            output = tl.zeros([rows_at_once, column.shape[0]], tl.float32)
            large, small = operands(tl.zeros([rows_at_once, keys_at_once], tl.float32), exact)
            for from_key in range(0, last_key, keys_at_once):
                if not whole:
                    token = from_key + tl.arange(0, keys_at_once)
                    k, k_small, k_scale = halves_of(keys, of_token, token, n, inside, stride, exact)
                    v, v_small = columns_of(v_at, token, n, exact, padded_columns)
                s = tl.zeros([rows_at_once, keys_at_once], tl.float32)
                s = added(s, q, q_small, tl.trans(k), tl.trans(k_small), exact)
                if exact:
                    s *= 1.0 / (q_scale * k_scale)
                # Where one block has all keys, halves leave no register for a choice.
                if (exact and whole) or from_key + keys_at_once > n:
                    s = tl.where((token < n)[None, :], s, -1.0e30)
                new_top = tl.maximum(top, tl.max(s, 1))
                p = tl.exp2(s * scale - (new_top * scale - bits)[:, None])
                if not whole:
                    shrink = tl.exp2((top - new_top) * scale)
                    total *= shrink
                    weighted *= shrink
                    output *= shrink[:, None]
                if by_keys or exact:  # else the column of ones has it
                    total += tl.sum(p, 1)
                weighted += tl.sum(p * s, 1)
                large, small = operands(p, exact)
                if not by_keys:
                    output = added(output, large, small, v, v_small, exact)
                top = new_top
            if not (by_keys or exact):
                is_sum = (column == padded_width + CELLS)[None, :]
                total = tl.sum(tl.where(is_sum, output, 0.0), 1)
            share = tl.where(real, 1.0 / total, 0.0)
            bits_of_row = tl.log2(total) - bits + (top - weighted * share) * scale
            entropies += tl.where(real, bits_of_row, 0.0)
            largest += share
            weight = tl.load(of_token + 2 * row + 1, mask=real, other=0.0)
            left = (row[None, :] >= first[:, None]) & (row[None, :] < last[:, None])
            left = tl.where(cell[:, None] == CELLS, weight[None, :], left.to(tl.float32))
            if by_keys:
                # Shares are of 2^-10 at most where exact.
                left, left_small = operands(left * share[None, :] * (1 << 2 * bits), exact)
                by_key = added(by_key, left, left_small, large, small, exact)
            else:
                output, output_small = operands(output * share[:, None], exact)
                left, left_small = operands(left * (1 << bits), exact)
                reduced = added(reduced, left, left_small, output, output_small, exact)

        at = (text * all_depths + first_depth + depth) * heads + head
        cells_of_depth = state + at * CELLS * CELLS
        unit = 1.0 / (1 << bits)
        if by_keys:
            by_key_scale = scale_of(tl.max(tl.abs(by_key))) if exact else 1.0
            by_key, by_key_small = operands(by_key * by_key_scale, exact)
            unit = 1.0 / by_key_scale / (1 << 2 * bits)
            reduced = added(reduced, by_key, by_key_small, v, v_small, exact)
            if apart:
                by_cell = tl.zeros([16, 16], tl.float32)
                by_cell = added(by_cell, by_key, by_key_small, cells, cells_small, exact)
        row_of_pooling = tl.sum(tl.where((cell == CELLS)[:, None], reduced, 0.0), 0)
        row_of_pooling *= unit * tl.load(of_text + 2 * (text * heads + head))
        tl.store(pooled + at * width + column, row_of_pooling, mask=column < width)
        count = tl.maximum(n, 1).to(tl.float32)
        tl.store(sums + 2 * at, tl.sum(entropies, 0) / count)
        tl.store(sums + 2 * at + 1, tl.sum(largest, 0) * (1 << bits) / count)
        # Last: before, ptxas runs out of registers.
        if apart:
            store_cells(cells_of_depth, by_cell * unit, cell, n)
        else:
            store_cells(cells_of_depth, reduced * unit, column - padded_width, n)


@triton.jit(do_not_specialize=["depths"])
def finish_kernel(  # type: ignore[no-untyped-def]
    of_text,  # these three as above
    state_parts,
    sums,
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
    n = tl.load(of_text + 2 * text * heads + 1)
    most_bits = tl.log2(tl.maximum(n, 2.0))  # a single token has entropy 0
    total = tl.zeros([padded_numbers], tl.float32)
    for start in range(0, depths, depths_at_once):
        depth = start + tl.arange(0, depths_at_once)
        known = depth < depths
        at = text * depths + depth
        there = known[:, None] & (number < numbers)[None, :]
        where = at[:, None] * numbers + number[None, :]
        total += tl.sum(tl.load(state_parts + where, mask=there, other=0.0), 0)
        there = known[:, None] & (head < heads)[None, :]
        where = sums + 2 * (at[:, None] * heads + head[None, :])
        bits = tl.sum(tl.load(where, mask=there, other=0.0), 1) / heads
        bits = tl.minimum(tl.maximum(bits / most_bits, 0.0), 1.0)
        tl.store(entropy + at, bits, mask=known)
        largest = tl.sum(tl.load(where + 1, mask=there, other=0.0), 1) / heads
        tl.store(focus + at, tl.minimum(tl.maximum(largest, 0.0), 1.0), mask=known)
    length = tl.maximum(tl.sqrt(tl.sum(total * total, 0)), 1e-12)
    tl.store(state + text * numbers + number, total / length, mask=number < numbers)
