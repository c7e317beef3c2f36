    LANES: tl.constexpr = 4  # lanes of d a program carries at a time
    rest = tl.program_id(0)
    slot = tl.cast(rest % slots, tl.int64)
    rest = rest // slots
    i_b = tl.cast(rest % size_b, tl.int64)
    rest = rest // size_b
    seg = tl.cast(rest, tl.int64)
    lane = tl.cast(tl.arange(0, LANES), tl.int64)
    t0 = seg * segment
    t1 = tl.minimum(t0 + segment, size_l)
    block = slot
    in_lanes = lane < per_group - block * LANES
    i_d = block * LANES + lane
    a_at = a_ptr + i_b * a_b + i_d * a_d
    b_at = b_ptr + i_b * b_b + i_d * b_d
    h_at = h_ptr + i_b * h_b + i_d * h_d
    h_carry = tl.full((LANES,), 0.0, tl.float32)
    for t in tl.range(t0, t1, loop_unroll_factor=2):
        t = tl.cast(t, tl.int64)  # the interpreter counts in Python's numbers, whose products with strides would be narrow
        a = tl.load(a_at + t * a_l, mask=in_lanes, other=0.0)  # [b d l]
        b = tl.load(b_at + t * b_l, mask=in_lanes, other=0.0)  # [b d l]
        h = (a * h_carry) + b  # [b d l]
        tl.store(h_at + t * h_l, h, mask=in_lanes)
        h_carry = h
    tl.store(last_state_ptr + i_b * last_state_b + i_d * last_state_d, h_carry, mask=in_lanes & (seg == segments - 1))
