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
    scores = tl.dot(B_stored, tl.trans(C_stored))
    for walking in tl.range(block * walked, tl.minimum(block * walked + walked, per_group), num_stages=1):
        i_h = tl.cast(i_g * per_group + walking, tl.int64)
        four = tl.load(sums_ptr + ((i_b * size_h + i_h) * padded + ts) * 4 + tau * 4 + tl.arange(0, 4)[None, :])
        one, two = tl.split(tl.reshape(four, (Q, 2, 2)))
        g_row, enter_row = tl.split(one)
        w_row, leave_row = tl.split(two)
        dt = w_row[:, None]  # [b l h]
        d_y_stored = tl.load(d_y_ptr + i_b * d_y_b + i_h * d_y_h + first * d_y_l + tau * d_y_l + p * d_y_p, mask=in_time, other=0.0)  # [b l h p]
        d_y = d_y_stored.to(tl.float32)
        x_stored = tl.load(x_ptr + i_b * x_b + i_h * x_h + first * x_l + tau * x_l + p * x_p, mask=in_time, other=0.0)  # [b l h p]
        x = x_stored.to(tl.float32)
        d_h_border = tl.load(border0_ptr + (c * (size_b * size_h) + (i_b * size_h + i_h)) * (BN * PT) + n_row * PT + p)
        h_border = tl.load(border1_ptr + (c * (size_b * size_h) + (i_b * size_h + i_h)) * (BN * PT) + n_row * PT + p)
        decays = tl.exp2(tl.where(causal, g_row[None, :] - g_row[:, None], float("-inf")))
        mixed = (scores * decays).to(tl.bfloat16)
        from_border = tl.dot(C_stored, h_border)
        enter_2 = enter_row[:, None]
        tl.store(enters1_ptr + (i_b * size_h + i_h) * padded + ts + tau, total(from_border * d_y, 1) * enter_2)
        from_border_2 = tl.dot(B_stored, d_h_border)
        leave_2 = leave_row[:, None]
        tl.store(leaves1_ptr + (i_b * size_h + i_h) * padded + ts + tau, total(from_border_2 * x, 1) * leave_2)
        sum = from_border_2 * leave_2 + tl.dot(mixed, d_y_stored)
        d_x = sum * dt  # [b l h p]
        tl.store(d_x_ptr + i_b * d_x_b + i_h * d_x_h + first * d_x_l + tau * d_x_l + p * d_x_p, d_x, mask=in_time)
