    Q: tl.constexpr = 16  # steps of a chunk
    P: tl.constexpr = 16  # rows, axis p
    BP: tl.constexpr = 16  # rows a program carries at a time
    PT: tl.constexpr = 16  # rows padded
    N: tl.constexpr = 16  # columns, axis n
    BN: tl.constexpr = 16  # columns padded
    NT: tl.constexpr = 16  # columns padded, of all tiles
    rest = tl.program_id(0)
    i_h = tl.cast(rest % size_h, tl.int64)
    rest = rest // size_h
    i_b = tl.cast(rest % size_b, tl.int64)
    rest = rest // size_b
    ts = tl.cast(rest, tl.int64) * Q
    t1 = size_l
    tau = tl.arange(0, Q)[:, None]
    sigma = tl.arange(0, Q)[None, :]
    causal = tau >= sigma
    p = tl.arange(0, BP)[None, :]
    p_state = tl.arange(0, BP)[:, None]
    first = ts
    in_time = tau < tl.minimum(t1 - ts, Q)
    matrix = tl.full((Q, Q), 0.0, tl.float32)
    n = tl.arange(0, BN)[None, :]
    n_state = n
    g_2_stored = tl.load(g_ptr + i_b * g_b + i_h * g_h + first * g_l + tau * g_l + n * g_n, mask=in_time, other=0.0)  # [b l h n]
    g_2 = g_2_stored.to(tl.float32)
    mul = g_2 * 1.4426950408889634
    q_stored = tl.load(q_ptr + i_b * q_b + i_h * q_h + first * q_l + tau * q_l + n * q_n, mask=in_time, other=0.0)  # [b l h n]
    q = q_stored.to(tl.float32)
    k_stored = tl.load(k_ptr + i_b * k_b + i_h * k_h + first * k_l + tau * k_l + n * k_n, mask=in_time, other=0.0)  # [b l h n]
    k = k_stored.to(tl.float32)
    up_to = tl.broadcast_to(tl.where(in_time, mul, 0.0), (Q, BN))
    behind = tl.full((Q, BN), 0.0, tl.float32)
    factor = tl.broadcast_to(tl.where(in_time, q, 0.0), (Q, BN))
    factor_2 = tl.broadcast_to(tl.where(in_time, k, 0.0), (Q, BN))
    reach, span = running(up_to, False), total(tl.abs(up_to), 0)
    whole_chunk = total(up_to, 0)
    span = tl.reduce(tl.reshape(span, (BN,)), 0, tl.standard._elementwise_max)
    if span <= 100.0:
        gap = reach - 0.5 * whole_chunk
        down = tl.exp2(-gap)
        up = tl.exp2(gap)
        matrix += tl.where(tau >= sigma, tl.dot((factor * up).to(tl.bfloat16), tl.trans((factor_2 * down).to(tl.bfloat16))), 0.0)
        up_to, behind = reach, whole_chunk - reach
    else:
        g_anew_stored = tl.load(g_ptr + i_b * g_b + i_h * g_h + first * g_l + tau * g_l + n * g_n, mask=in_time, other=0.0)  # [b l h n]
        g_anew = g_anew_stored.to(tl.float32)
        mul_anew = g_anew * 1.4426950408889634
        q_anew_stored = tl.load(q_ptr + i_b * q_b + i_h * q_h + first * q_l + tau * q_l + n * q_n, mask=in_time, other=0.0)  # [b l h n]
        q_anew = q_anew_stored.to(tl.float32)
        k_anew_stored = tl.load(k_ptr + i_b * k_b + i_h * k_h + first * k_l + tau * k_l + n * k_n, mask=in_time, other=0.0)  # [b l h n]
        k_anew = k_anew_stored.to(tl.float32)
        up_to = tl.broadcast_to(tl.where(in_time, mul_anew, 0.0), (Q, BN))
        behind = tl.full((Q, BN), 0.0, tl.float32)
        factor_3 = tl.broadcast_to(tl.where(in_time, q_anew, 0.0), (Q, BN))
        factor_4 = tl.broadcast_to(tl.where(in_time, k_anew, 0.0), (Q, BN))
        same = total(factor_3 * factor_4, 1)
        matrix += tl.where(tau == sigma, same, 0.0)
        for level in tl.range(0, 4, num_stages=1):
            upper = ((tau >> level) & 1) == 1
            apart = upper & (sigma >> level == (tau >> level) - 1)
            decay = tl.exp2(tl.where(upper, up_to, behind))
            matrix += tl.where(apart, tl.dot((factor_3 * decay).to(tl.bfloat16), tl.trans((factor_4 * decay).to(tl.bfloat16))), 0.0)
            other = tl.gather(up_to + behind, tl.broadcast_to(tau ^ (1 << level), (Q, BN)), 0)
            up_to, behind = tl.where(upper, up_to + other, up_to), tl.where(upper, behind, behind + other)
    tl.store(enters_ptr + ((i_b * size_h + i_h) * padded + ts + tau) * NT + n, factor * tl.exp2(up_to))
    tl.store(leaves_ptr + ((i_b * size_h + i_h) * padded + ts + tau) * NT + n, factor_2 * tl.exp2(behind))
    tl.store(whole_ptr + ((i_b * size_h + i_h) * (padded // Q) + ts // Q) * NT + n + tau * 0, tl.exp2(up_to + behind), mask=tau == 0)
    tl.store(pairs_ptr + ((i_b * size_h + i_h) * padded + ts) * Q + tau * Q + sigma, matrix)
