"""Tests in this folder need a GPU; without one there is nothing to collect."""

from __future__ import annotations

import torch

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]
