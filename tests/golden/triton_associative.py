    LANES: tl.constexpr = 2  # lanes of d a program carries at a time
    TILE: tl.constexpr = 8  # time steps combined at once
    rest = tl.program_id(0)
    slot = tl.cast(rest % slots, tl.int64)
    rest = rest // slots
    i_b = tl.cast(rest % size_b, tl.int64)
    rest = rest // size_b
    seg = tl.cast(rest, tl.int64)
    lane = tl.cast(tl.arange(0, LANES), tl.int64)[:, None]
    t0 = tl.multiple_of(seg * segment, TILE)
    t1 = tl.minimum(t0 + segment, size_l)
    block = slot
    in_lanes = lane < per_group - block * LANES
    i_d = block * LANES + lane
    a_at = a_ptr + i_b * a_b + i_d * a_d
    b_at = b_ptr + i_b * b_b + i_d * b_d
    h_at = h_ptr + i_b * h_b + i_d * h_d
    h_carry = tl.full((LANES, 1), 0.0, tl.float32)
    tau = tl.cast(tl.arange(0, TILE), tl.int64)[None, :]
    tiles = (t1 - t0 + TILE - 1) // TILE
    for step in range(0, tiles):
        tile = step
        ts = t0 + tile * TILE
        t = ts + tau
        in_time = t < t1
        steps = tl.minimum(t1 - ts, TILE)
        a = tl.load(a_at + t * a_l, mask=in_lanes & in_time, other=0.0)  # [b d l]
        b = tl.load(b_at + t * b_l, mask=in_lanes & in_time, other=0.0)  # [b d l]
        h_a = a
        h_b_2 = b
        h_A, h_B = tl.associative_scan((h_a, h_b_2), 1, compose)
        h = h_carry * h_A + h_B  # [b d l]
        tl.store(h_at + t * h_l, h, mask=in_lanes & in_time)
        h_carry = total(tl.where(tau == steps - 1, h, 0.0), 1)
    tl.store(last_state_ptr + i_b * last_state_b + i_d * last_state_d, h_carry, mask=in_lanes & (seg == segments - 1))
