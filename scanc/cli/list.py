"""``scanc list``: the ops, and what can be done with each."""

from __future__ import annotations

from typing import Any

from scanc.cli.common import Json, load_ops, print_json, print_table


def list_ops(json: Json = False) -> None:
    """Ops with their transition class, their forms, the backends that run here, and whether they are tuned for this machine.

    Examples:

        scanc list

        scanc list --json
    """
    import torch

    from scanc.perf.suite import usable_targets

    device = "cuda" if torch.cuda.is_available() else "cpu"
    backends = [t.backend for t in usable_targets(device)]
    rows = [describe(name, device, backends) for name in sorted(load_ops())]
    if json:
        print_json(rows)
        return
    print_table("Ops", ("op", "inputs", "class", "forms", "backends here", "tuned for this machine"),
                [(r["op"], r["inputs"], r["class"], ", ".join(r["forms"]), ", ".join(r["backends"]), _tuned(r["tuned"])) for r in rows])


def describe(name: str, device: str, backends: list[str]) -> dict[str, Any]:
    """One op's row."""
    from scanc.forms.choose import classify
    from scanc.perf.suite import forms_of_op

    op = load_ops()[name]
    graph = op.graph()
    scans = [n for n in graph.nodes() if n.op == "scan"]
    classes = sorted({classify(graph, s).name for s in scans})
    inputs = " ".join(f"{a.name}({' '.join(a.alternatives[0].axes)}){'?' if a.optional else ''}" for a in op.arguments)
    return {"op": name, "inputs": inputs, "class": ", ".join(classes) or "no recurrence", "forms": list(forms_of_op(op)),
            "backends": backends, "tuned": tuned_passes(name, device)}


def tuned_passes(name: str, device: str) -> dict[str, int]:
    """{pass: shapes with a final schedule for this device}."""
    from scanc.autotune.records import default_store
    from scanc.runtime import device_name

    found: dict[str, set[Any]] = {}
    for record in default_store().records(device_name(device), name):
        if record.best:
            found.setdefault(record.pass_, set()).add((record.case, record.dtype))
    return {pass_: len(cases) for pass_, cases in sorted(found.items())}


def _tuned(counts: dict[str, int]) -> str:
    return ", ".join(f"{pass_} ({count})" for pass_, count in counts.items()) or "no"
