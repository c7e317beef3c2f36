    Q: tl.constexpr = 16  # steps of a chunk
    P: tl.constexpr = 16  # rows, axis p
    BP: tl.constexpr = 16  # rows a program carries at a time
    PT: tl.constexpr = 16  # rows padded
    N: tl.constexpr = 16  # columns, axis n
    BN: tl.constexpr = 16  # columns padded
    HEADS: tl.constexpr = 1  # heads a program carries
    rest = tl.program_id(0)
    i_h = tl.cast(rest % (size_h // HEADS), tl.int64)
    rest = rest // (size_h // HEADS)
    i_b = tl.cast(rest % size_b, tl.int64)
    rest = rest // size_b
    seg = tl.cast(rest, tl.int64)
    t0 = seg * segment
    t1 = tl.minimum(t0 + segment, size_l)
    tau = tl.arange(0, Q)[:, None]
    sigma = tl.arange(0, Q)[None, :]
    causal = tau >= sigma
    n = tl.arange(0, BN)[None, :]
    n_row = tl.arange(0, BN)[:, None]
    p = tl.arange(0, BP)[None, :]
    h_carry = tl.full((BN, BP), 0.0, tl.float32)
    chunks = (t1 - t0 + Q - 1) // Q
    for step_back in tl.range(0, chunks, num_stages=2):
        c = step_back
        ts = t0 + c * Q
        first = ts
        in_time = tau < tl.minimum(t1 - ts, Q)
        B_stored = tl.load(B_ptr + i_b * B_b + (i_h // (size_h // size_g)) * B_g + first * B_l + tau * B_l + n * B_n, mask=in_time, other=0.0)  # [b l g n]
        B = B_stored.to(tl.float32)
        C_stored = tl.load(C_ptr + i_b * C_b + (i_h // (size_h // size_g)) * C_g + first * C_l + tau * C_l + n * C_n, mask=in_time, other=0.0)  # [b l g n]
        C = C_stored.to(tl.float32)
        x_stored = tl.load(x_ptr + i_b * x_b + i_h * x_h + first * x_l + tau * x_l + p * x_p, mask=in_time, other=0.0)  # [b l h p]
        x = x_stored.to(tl.float32)
        carried = h_carry.to(tl.bfloat16)
        scores = tl.dot(C_stored, tl.trans(B_stored))
        four = tl.load(sums_ptr + ((i_b * size_h + i_h) * padded + ts) * 4 + tau * 4 + tl.arange(0, 4)[None, :])
        one, two = tl.split(tl.reshape(four, (Q, 2, 2)))
        g_row, enter_row = tl.split(one)
        w_row, leave_row = tl.split(two)
        decays = tl.exp2(tl.where(causal, g_row[:, None] - g_row[None, :], float("-inf")))
        mixed = (scores * decays * w_row[None, :]).to(tl.bfloat16)
        enter_2 = enter_row[:, None]
        from_border = tl.dot(C_stored, carried)
        y = tl.dot(mixed, x_stored, from_border * enter_2)  # [b l h p]
        tl.store(y_ptr + i_b * y_b + i_h * y_h + first * y_l + tau * y_l + p * y_p, y, mask=in_time)
        leave_2 = leave_row[:, None]
        whole = tl.load(sums_ptr + ((i_b * size_h + i_h) * padded + ts) * 4 + (Q - 1) * 4 + 2)
        h_carry = tl.dot(tl.trans(B_stored), (x * (leave_2 * w_row[:, None])).to(tl.bfloat16), h_carry * whole)
    tl.store(last_state_ptr + i_b * last_state_b + i_h * last_state_h + n_row * last_state_n + p * last_state_p, h_carry, mask=((seg == segments - 1) & (n_row < N)))
