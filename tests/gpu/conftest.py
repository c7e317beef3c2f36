"""Tests in this folder need a GPU; without one there is nothing to collect."""

from __future__ import annotations

import torch

from scanc.codegen import build_cuda

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]
# CUDA C++ also needs CuPy, and a GPU of NVIDIA's.
collect_ignore = [] if build_cuda.available() else ["test_cuda.py"]
