    Q: tl.constexpr = 16  # steps of a chunk
    HEADS: tl.constexpr = 16  # heads a program has at a time
    tau = tl.arange(0, Q)[:, None]
    across = tl.arange(0, HEADS)[None, :]
    rest = tl.program_id(0)
    blocks = (size_h + HEADS - 1) // HEADS
    block = rest % blocks
    i_h = tl.minimum(block * HEADS + across, size_h - 1).to(tl.int64)
    in_heads = across < size_h - block * HEADS
    rest = rest // blocks
    chunks = padded // Q
    c = (rest % chunks).to(tl.int64)
    ts = c * Q
    rest = rest // chunks
    i_b = tl.cast(rest % size_b, tl.int64)
    rest = rest // size_b
    t1 = size_l
    first = ts
    in_time = tau < tl.minimum(t1 - ts, Q)
    dt_stored = tl.load(dt_ptr + i_b * dt_b + i_h * dt_h + first * dt_l + tau * dt_l, mask=in_time, other=0.0)  # [b l h]
    dt = dt_stored.to(tl.float32)
    A = tl.load(A_ptr + i_h * A_h)  # [h]
    mul = dt * (A * 1.4426950408889634)
    e = tl.broadcast_to(tl.where(in_time, tl.maximum(mul, -160.0, propagate_nan=tl.PropagateNan.ALL), 0.0), (Q, HEADS)).to(tl.float32)
    g = running(e, False)
    enter = tl.exp2(g)
    leave = tl.where(in_time, tl.exp2(total(e, 0) - g), 0.0)
    four = tl.join(tl.join(g, enter), tl.join(tl.broadcast_to(tl.where(in_time, dt, 0.0), (Q, HEADS)).to(tl.float32), leave))
    four = tl.permute(tl.reshape(four, (Q, HEADS, 4)), (1, 0, 2))
    at = tl.trans(sums_ptr + ((i_b * size_h + i_h) * padded + ts) * 4 + tau * 4)
    tl.store(at[:, :, None] + tl.arange(0, 4)[None, None, :], four)
