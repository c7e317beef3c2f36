    LANES: tl.constexpr = 4  # lanes of d a program carries at a time
    N: tl.constexpr = 2  # states, axis n
    BN: tl.constexpr = 2  # N padded to a power of two
    rest = tl.program_id(0)
    slot = tl.cast(rest % slots, tl.int64)
    rest = rest // slots
    i_group = tl.cast(rest % size_g, tl.int64)
    rest = rest // size_g
    i_b = tl.cast(rest % size_b, tl.int64)
    rest = rest // size_b
    seg = tl.cast(rest, tl.int64)
    lane = tl.cast(tl.arange(0, LANES), tl.int64)[:, None]
    n = tl.cast(tl.arange(0, BN), tl.int64)[None, :]
    t0 = seg * segment
    t1 = tl.minimum(t0 + segment, size_l)
    block = slot
    in_lanes = lane < per_group - block * LANES
    i_d = i_group * per_group + block * LANES + lane
    A = tl.load(A_ptr + i_d * A_d + n * A_n, mask=in_lanes, other=0.0)  # [d n]
    mul = A * 1.4426950408889634
    delta_at = delta_ptr + i_b * delta_b + i_d * delta_d
    u_at = u_ptr + i_b * u_b + i_d * u_d
    B_at = B_ptr + i_b * B_b + i_group * B_g + n * B_n
    C_at = C_ptr + i_b * C_b + i_group * C_g + n * C_n
    y_at = y_ptr + i_b * y_b + i_d * y_d
    h_carry = tl.full((LANES, BN), 0.0, tl.float32)
    for t in range(t0, t1):
        t = tl.cast(t, tl.int64)  # the interpreter counts in Python's numbers, whose products with strides would be narrow
        delta = tl.load(delta_at + t * delta_l, mask=in_lanes, other=0.0)  # [b d l]
        a = tl.exp2(delta * mul)  # [b d l n]
        u = tl.load(u_at + t * u_l, mask=in_lanes, other=0.0)  # [b d l]
        B = tl.load(B_at + t * B_l)  # [b g n l]
        mul_2 = (delta * u) * B
        h = (a * h_carry) + mul_2  # [b d l n]
        C = tl.load(C_at + t * C_l)  # [b g n l]
        mul_3 = C * h
        sum = total(mul_3, 1)
        tl.store(y_at + t * y_l, sum, mask=in_lanes)
        h_carry = h
    tl.store(last_state_ptr + i_b * last_state_b + i_d * last_state_d + n * last_state_n, h_carry, mask=in_lanes & (seg == segments - 1))
