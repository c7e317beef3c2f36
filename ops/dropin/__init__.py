"""Functions with the names, signatures and shapes of mamba_ssm and causal_conv1d, on scanc's ops.

    selective_scan_interface   selective_scan_fn, mamba_inner_fn and their references
    selective_state_update     one decode step, in place, with slots
    causal_conv1d              the short convolution: whole sequences, decoding, packed sequences
    layernorm_gated            norms with a gate              layer_norm   norms with a residual
    mamba_simple               the Mamba block as a module

They are plain functions with named parameters and can be imported from here. ``scanc.dropin`` makes them importable under the
rivals' own module names.
"""
