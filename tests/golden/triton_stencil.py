    LANES: tl.constexpr = 2  # lanes of d a program carries at a time
    TILE: tl.constexpr = 8  # time steps of a tile
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
    w0 = tl.load(w0_ptr + i_d * w0_d, mask=in_lanes, other=0.0)  # [d]
    w1 = tl.load(w1_ptr + i_d * w1_d, mask=in_lanes, other=0.0)  # [d]
    bias = tl.load(bias_ptr + i_d * bias_d, mask=in_lanes, other=0.0)  # [d]
    x_at = x_ptr + i_b * x_b + i_d * x_d
    y_at = y_ptr + i_b * y_b + i_d * y_d
    tau = tl.cast(tl.arange(0, TILE), tl.int64)[None, :]
    all_lanes = block * LANES + LANES <= per_group
    for tile in range(0, (t1 - t0 + TILE - 1) // TILE):
        ts = t0 + tile * TILE
        t = ts + tau
        if (ts >= 1) & (ts + TILE <= size_l) & all_lanes:
            x = tl.load(x_at + t * x_l)  # [b d l]
            seen = tl.load(x_at + (t - 1) * x_l)  # [b d l]
            y = ((w0 * x) + (w1 * seen)) + bias  # [b d l]
            tl.store(y_at + t * y_l, y)
        else:
            in_time = t < t1
            x = tl.load(x_at + t * x_l, mask=in_lanes & in_time, other=0.0)  # [b d l]
            seen = tl.load(x_at + (t - 1) * x_l, mask=in_lanes & in_time & (t >= 1), other=0.0)  # [b d l]
            y = ((w0 * x) + (w1 * seen)) + bias  # [b d l]
            tl.store(y_at + t * y_l, y, mask=in_lanes & in_time)
