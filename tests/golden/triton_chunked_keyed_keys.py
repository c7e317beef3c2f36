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
    n = tl.arange(0, BN)[None, :]
    n_state = n
    p = tl.arange(0, BP)[None, :]
    p_state = tl.arange(0, BP)[:, None]
    first = ts
    in_time = tau < tl.minimum(t1 - ts, Q)
    g_2_stored = tl.load(g_ptr + i_b * g_b + i_h * g_h + first * g_l + tau * g_l + n * g_n, mask=in_time, other=0.0)  # [b l h n]
    g_2 = g_2_stored.to(tl.float32)
    mul = g_2 * 1.4426950408889634
    q_stored = tl.load(q_ptr + i_b * q_b + i_h * q_h + first * q_l + tau * q_l + n * q_n, mask=in_time, other=0.0)  # [b l h n]
    q = q_stored.to(tl.float32)
    k_stored = tl.load(k_ptr + i_b * k_b + i_h * k_h + first * k_l + tau * k_l + n * k_n, mask=in_time, other=0.0)  # [b l h n]
    k = k_stored.to(tl.float32)
    d_y_stored = tl.load(d_y_ptr + i_b * d_y_b + i_h * d_y_h + first * d_y_l + tau * d_y_l + p * d_y_p, mask=in_time, other=0.0)  # [b l h p]
    d_y = d_y_stored.to(tl.float32)
    mul_2 = tl.rsqrt(tl.cast(size_n, tl.int32) * 1.0) * d_y
    v_stored = tl.load(v_ptr + i_b * v_b + i_h * v_h + first * v_l + tau * v_l + p * v_p, mask=in_time, other=0.0)  # [b l h p]
    v = v_stored.to(tl.float32)
    mul_2_operand = tl.where(in_time, mul_2, 0.0).to(tl.bfloat16)
    up_to = tl.broadcast_to(tl.where(in_time, mul, 0.0), (Q, BN))
    behind = tl.full((Q, BN), 0.0, tl.float32)
    matrix = (tl.dot(mul_2_operand, tl.trans(v_stored))).to(tl.bfloat16)
    factor = tl.broadcast_to(tl.where(in_time, q, 0.0), (Q, BN))
    factor_2 = tl.broadcast_to(tl.where(in_time, k, 0.0), (Q, BN))
    of_later = tl.full((Q, BN), 0.0, tl.float32)
    of_earlier = tl.full((Q, BN), 0.0, tl.float32)
    reach, span = running(up_to, False), total(tl.abs(up_to), 0)
    whole_chunk = total(up_to, 0)
    span = tl.reduce(tl.reshape(span, (BN,)), 0, tl.standard._elementwise_max)
    if span <= 100.0:
        gap = reach - 0.5 * whole_chunk
        down = tl.exp2(-gap)
        up = tl.exp2(gap)
        here = tl.where(tau > sigma, matrix, 0.0)
        of_later = up * tl.dot(here, (factor_2 * down).to(tl.bfloat16))
        of_earlier = down * tl.dot(tl.trans(here), (factor * up).to(tl.bfloat16))
        up_to, behind = reach, whole_chunk - reach
    else:
        for level in tl.range(0, 4, num_stages=1):
            upper = ((tau >> level) & 1) == 1
            apart = upper & (sigma >> level == (tau >> level) - 1)
            decay = tl.exp2(tl.where(upper, up_to, behind))
            here = tl.where(apart, matrix, 0.0)
            of_later += decay * tl.dot(here, (factor_2 * decay).to(tl.bfloat16))
            of_earlier += decay * tl.dot(tl.trans(here), (factor * decay).to(tl.bfloat16))
            other = tl.gather(up_to + behind, tl.broadcast_to(tau ^ (1 << level), (Q, BN)), 0)
            up_to, behind = tl.where(upper, up_to + other, up_to), tl.where(upper, behind, behind + other)
    same = total(tl.where(tau == sigma, matrix, 0.0).to(tl.float32), 1)
    S_border = tl.load(border0_ptr + (ts // Q * (size_b * size_h) + (i_b * size_h + i_h)) * (PT * NT) + p_state * NT + n_state)
    entering = tl.dot(mul_2_operand, S_border) * tl.exp2(up_to)
    d_S_border = tl.load(border1_ptr + (ts // Q * (size_b * size_h) + (i_b * size_h + i_h)) * (PT * NT) + p_state * NT + n_state)
    leaving = tl.dot(v_stored, d_S_border) * tl.exp2(behind)
    d_q = of_later + entering + same * factor_2  # [b l h n]
    d_k = of_earlier + leaving + same * factor  # [b l h n]
    after = factor * (of_later + entering) - factor_2 * of_earlier
    before = factor_2 * leaving
    d_g = running(after, True) + running(before, False) - before + tl.exp2(up_to + behind) * total(S_border.to(tl.float32) * d_S_border.to(tl.float32), 0)  # [b l h n]
    tl.store(d_q_ptr + i_b * d_q_b + i_h * d_q_h + first * d_q_l + tau * d_q_l + n * d_q_n, d_q, mask=in_time)
    tl.store(d_k_ptr + i_b * d_k_b + i_h * d_k_h + first * d_k_l + tau * d_k_l + n * d_k_n, d_k, mask=in_time)
    tl.store(d_g_ptr + i_b * d_g_b + i_h * d_g_h + first * d_g_l + tau * d_g_l + n * d_g_n, d_g, mask=in_time)
