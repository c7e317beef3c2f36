# ssd_backward: form chunked, sums, target cuda:sm_90:triton

import triton
import triton.language as tl


@triton.jit
def add(parts_ptr, sum_ptr, parts, count, block, PARTS: tl.constexpr, ELEMENTS: tl.constexpr):
    # One block of a result: none where the block is another's.
    if (block >= 0) & (block < (count + ELEMENTS - 1) // ELEMENTS):
        i = tl.cast(block, tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
        total = tl.full((ELEMENTS,), 0.0, tl.float32)
        for first in tl.range(0, parts, PARTS):
            k = first + tl.arange(0, PARTS)[:, None]
            here = (k < parts) & (i[None, :] < count)
            some = tl.load(parts_ptr + tl.cast(k, tl.int64) * count + i[None, :], mask=here, other=0.0)
            total += tl.reduce(some, 0, tl.standard._sum_combine)
        tl.store(sum_ptr + i, total, mask=i < count)


@triton.jit(do_not_specialize=["d_B_parts", "d_B_count", "d_C_parts", "d_C_count"])
def ssd_backward_sums_kernel(d_B_ptr, d_B_sum_ptr, d_C_ptr, d_C_sum_ptr, d_B_parts, d_B_count, d_C_parts, d_C_count):
    block = tl.program_id(0)
    add(d_B_ptr, d_B_sum_ptr, d_B_parts, d_B_count // 16 * 16, block, 4, 1024)
    block -= (d_B_count + 1023) // 1024
    add(d_C_ptr, d_C_sum_ptr, d_C_parts, d_C_count // 16 * 16, block, 4, 1024)
    block -= (d_C_count + 1023) // 1024
