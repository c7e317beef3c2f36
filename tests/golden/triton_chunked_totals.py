    Q: tl.constexpr = 16  # steps of a chunk
    P: tl.constexpr = 16  # rows, axis p
    BP: tl.constexpr = 16  # rows a program carries at a time
    PT: tl.constexpr = 16  # rows padded
    N: tl.constexpr = 16  # columns, axis n
    BN: tl.constexpr = 16  # columns padded
    rest = tl.program_id(0)
    per_group = size_h // size_g
    blocks = (per_group + walked - 1) // walked
    block = rest % blocks
    rest = rest // blocks
    i_g = tl.cast(rest % size_g, tl.int64)
    rest = rest // size_g
    chunks = (size_l + Q - 1) // Q
    c = tl.cast(rest % chunks, tl.int64)
    rest = rest // chunks
    i_b = tl.cast(rest % size_b, tl.int64)
    rest = rest // size_b
    ts = c * Q
    t1 = size_l
    tau = tl.arange(0, Q)[:, None]
    sigma = tl.arange(0, Q)[None, :]
    causal = sigma >= tau
    n = tl.arange(0, BN)[None, :]
    n_row = tl.arange(0, BN)[:, None]
    p = tl.arange(0, BP)[None, :]
    first = ts
    in_time = tau < tl.minimum(t1 - ts, Q)
    C_stored = tl.load(C_ptr + i_b * C_b + i_g * C_g + first * C_l + tau * C_l + n * C_n, mask=in_time, other=0.0)  # [b l g n]
    C = C_stored.to(tl.float32)
    B_stored = tl.load(B_ptr + i_b * B_b + i_g * B_g + first * B_l + tau * B_l + n * B_n, mask=in_time, other=0.0)  # [b l g n]
    B = B_stored.to(tl.float32)
    mix = tl.full((Q, Q), 0.0, tl.float32)
    d_B_total = tl.full((Q, BN), 0.0, tl.float32)
    d_C_total = tl.full((Q, BN), 0.0, tl.float32)
    scores = tl.dot(B_stored, tl.trans(C_stored))
    for walking in tl.range(block * walked, tl.minimum(block * walked + walked, per_group), num_stages=2):
        i_h = tl.cast(i_g * per_group + walking, tl.int64)
        d_y_stored = tl.load(d_y_ptr + i_b * d_y_b + i_h * d_y_h + first * d_y_l + tau * d_y_l + p * d_y_p, mask=in_time, other=0.0)  # [b l h p]
        d_y = d_y_stored.to(tl.float32)
        x_stored = tl.load(x_ptr + i_b * x_b + i_h * x_h + first * x_l + tau * x_l + p * x_p, mask=in_time, other=0.0)  # [b l h p]
        x = x_stored.to(tl.float32)
        d_h_border = tl.load(border0_ptr + (c * (size_b * size_h) + (i_b * size_h + i_h)) * (BN * PT) + n_row * PT + p)
        h_border = tl.load(border1_ptr + (c * (size_b * size_h) + (i_b * size_h + i_h)) * (BN * PT) + n_row * PT + p)
        scores_2 = tl.dot(x_stored, tl.trans(d_y_stored))
        four = tl.load(sums_ptr + ((i_b * size_h + i_h) * padded + ts) * 4 + tau * 4 + tl.arange(0, 4)[None, :])
        one, two = tl.split(tl.reshape(four, (Q, 2, 2)))
        g_row, enter_row = tl.split(one)
        w_row, leave_row = tl.split(two)
        decays = tl.exp2(tl.where(causal, g_row[None, :] - g_row[:, None], float("-inf")))
        pairs = scores_2 * decays
        inside = scores * pairs
        tl.store(within1_ptr + (i_b * size_h + i_h) * padded + ts + sigma, total(inside * w_row[:, None], 0))
        tl.store(without1_ptr + (i_b * size_h + i_h) * padded + ts + tau, total(inside, 1))
        whole = tl.load(sums_ptr + ((i_b * size_h + i_h) * padded + ts) * 4 + (Q - 1) * 4 + 2)
        tl.store(across1_ptr + (i_b * size_h + i_h) * chunks + c + tl.full((1, 1), 0, tl.int32), total(total(tl.where(tl.arange(0, BP)[:, None] == tl.arange(0, BP)[None, :], tl.dot(tl.trans(h_border), d_h_border), 0.0), 1), 0) * whole)
        mix += pairs * w_row[:, None]
        leave_2 = leave_row[:, None]
        d_B_total = tl.dot((x * (leave_2 * w_row[:, None])).to(tl.bfloat16), tl.trans(d_h_border), d_B_total)
        enter_2 = enter_row[:, None]
        d_C_total = tl.dot((d_y * enter_2).to(tl.bfloat16), tl.trans(h_border), d_C_total)
    tl.store(d_B_ptr + block * d_B_part_block + i_b * d_B_b + i_g * d_B_g + first * d_B_l + tau * d_B_l + n * d_B_n, tl.dot((mix).to(tl.bfloat16), C_stored, d_B_total), mask=in_time)
    tl.store(d_C_ptr + block * d_C_part_block + i_b * d_C_b + i_g * d_C_g + first * d_C_l + tau * d_C_l + n * d_C_n, tl.dot((tl.trans(mix)).to(tl.bfloat16), B_stored, d_C_total), mask=in_time)
