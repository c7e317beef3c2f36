"""``python -m scanc.cli.speed SCAN``: tokens a second of one training step of the demo's model, as JSON; a process of its own.

The demo runs it three times: with the schedules it tuned, with a cache that knows none, and with the reference.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass

from scanc.cli.demo import BATCH, LENGTH


@dataclass(frozen=True)
class Speed:
    """Tokens a second of a training step, and the step's milliseconds."""

    scan: str
    tokens_per_s: float
    ms: float


def training_speed(scan: str, budget_ms: float) -> Speed:
    """Times forward and backward of the demo's model on random bytes, scanning by ``scan``: "scanc" or "reference"."""
    import torch

    from scanc.models import BYTE_MODEL, Mamba
    from scanc.perf.timing import measure

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = Mamba(BYTE_MODEL).to(device).use_scan(scan)
    tokens = torch.randint(256, (BATCH, LENGTH + 1), device=device)

    def step() -> None:
        logits, _ = model(tokens[:, :-1])
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        model.zero_grad(set_to_none=True)

    found = measure(step, device, warmup=1, budget_ms=budget_ms)
    # The fastest tenth: three processes are compared, and what else the machine does meanwhile should not decide.
    return Speed(scan, BATCH * LENGTH / found.ms_p10 * 1e3, found.ms_p10)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("scan", choices=("scanc", "reference"))
    parser.add_argument("--budget-ms", type=float, default=1000.0)
    given = parser.parse_args()
    try:
        print(json.dumps(vars(training_speed(given.scan, given.budget_ms))))
    except KeyboardInterrupt:  # the demo was interrupted, and says so itself
        sys.exit(130)


if __name__ == "__main__":
    main()
