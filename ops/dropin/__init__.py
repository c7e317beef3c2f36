"""Functions with the names, signatures and shapes of mamba_ssm and causal_conv1d, on scanc's ops.

    selective_scan_interface   selective_scan_fn, mamba_inner_fn and their references
    selective_state_update     one decode step, in place, with slots
    speculative                several decode steps, and the state after each
    ssd_combined               Mamba-2's scan over whole sequences, and its block
    ssd_chunks                 the parts of that scan, chunk by chunk
    causal_conv1d              the short convolution: whole sequences, decoding, packed sequences
    layernorm_gated            norms with a gate              layer_norm   norms with a residual
    flashfftconv, fftconv      long convolutions with gates
    cauchy, vandermonde, hippo what S4's kernels are made of
    mamba_simple, mamba2       the Mamba and Mamba-2 blocks as modules

They are plain functions with named parameters and can be imported from here. ``scanc.dropin`` makes them importable under the
rivals' own module names.
"""
