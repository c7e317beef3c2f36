    matrix = (tl.dot(mul_operand, tl.trans(v_stored))).to(tl.bfloat16)
    g_2_stored = tl.load(g_ptr + i_b * g_b + i_h * g_h + first * g_l + tau * g_l + n * g_n, mask=in_time, other=0.0)  # [b l h n]
    g_2 = g_2_stored.to(tl.float32)
    mul_2 = g_2 * 1.4426950408889634
    q_stored = tl.load(q_ptr + i_b * q_b + i_h * q_h + first * q_l + tau * q_l + n * q_n, mask=in_time, other=0.0)  # [b l h n]
    q = q_stored.to(tl.float32)
    k_stored = tl.load(k_ptr + i_b * k_b + i_h * k_h + first * k_l + tau * k_l + n * k_n, mask=in_time, other=0.0)  # [b l h n]
    k = k_stored.to(tl.float32)
    up_to = tl.broadcast_to(tl.where(in_time, mul_2, 0.0), (Q, BN))
    behind = tl.full((Q, BN), 0.0, tl.float32)
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
        for level in tl.range(0, 4, num_stages=1):
            upper = ((tau >> level) & 1) == 1
            apart = upper & (sigma >> level == (tau >> level) - 1)
            decay = tl.exp2(tl.where(upper, up_to, behind))
            here = tl.where(apart, matrix, 0.0)
            of_later += decay * tl.dot(here, (factor_4 * decay).to(tl.bfloat16))
            of_earlier += decay * tl.dot(tl.trans(here), (factor_3 * decay).to(tl.bfloat16))
            other = tl.gather(up_to + behind, tl.broadcast_to(tau ^ (1 << level), (Q, BN)), 0)
            up_to, behind = tl.where(upper, up_to + other, up_to), tl.where(upper, behind, behind + other)
    same = total(tl.where(tau == sigma, matrix, 0.0).to(tl.float32), 1)
    S_border = tl.load(border0_ptr + (ts // Q * (size_b * size_h) + (i_b * size_h + i_h)) * (PT * NT) + p_state * NT + n_state)
    entering = tl.dot(mul_operand, S_border) * tl.exp2(up_to)
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
