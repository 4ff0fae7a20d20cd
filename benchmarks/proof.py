"""What the proof that the base is unchanged, and the guard that restores the rest, add to an answer.

    python benchmarks/proof.py --json benchmarks/results/proof.json [--quick]

Measured are the bundled model and a Llama of 112 small layers. The proof of an answer is `Fingerprint.verify`; the
guard is `restoring` and `freeze` around nothing. Seconds of the processor, which other processes of the machine disturb
less than elapsed ones, and elapsed seconds. Writes rows {"name", "value", "unit", "goal", "holds"} with the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from autottt import Learner
from autottt.ttt_core.model.fingerprint import Fingerprint, ModelParts, freeze, restoring

GOALS = {"bundled model": 1.0, "many layers": 15.0}
"""Milliseconds of a proof and a guard."""


def many_layers() -> nn.Module:
    """A model of a thousand tensors."""
    config = LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=112, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def milliseconds(works: list[Callable[[], object]], runs: int) -> list[tuple[float, ...]]:
    """Median milliseconds of each work, by the processor's clock and elapsed; all of them once per run."""
    times: list[list[tuple[float, float]]] = [[] for _ in works]
    for _ in range(runs):
        for work, mine in zip(works, times, strict=True):
            processor, elapsed = time.process_time(), time.perf_counter()
            work()
            mine.append((time.process_time() - processor, time.perf_counter() - elapsed))
    return [
        (1000 * statistics.median(p), 1000 * statistics.median(e)) for p, e in (zip(*t, strict=True) for t in times)
    ]


def row(name: str, model: nn.Module, runs: int) -> dict[str, Any]:
    model.requires_grad_(False)
    fingerprint, parts = Fingerprint(model), ModelParts(model)

    def guard() -> None:
        with restoring(model, parts) as used:
            freeze(used)

    (proof, proof_elapsed), (guarded, guard_elapsed) = milliseconds([lambda: fingerprint.verify(model), guard], runs)
    model.requires_grad_(True)  # as models are loaded: the guard then sets and restores every flag
    ((unfrozen, _),) = milliseconds([guard], runs)
    value = proof + guarded
    return {
        "name": f"proof and guard, {name}", "value": round(value, 2), "unit": "ms", "goal": GOALS[name],
        "holds": value < GOALS[name], "tensors": fingerprint.verify(model).tensors, "modules": len(parts.modules),
        "proof_ms": round(proof, 2), "guard_ms": round(guarded, 2),
        "guard_ms_with_gradients_required": round(unfrozen, 2),
        "elapsed_ms": round(proof_elapsed + guard_elapsed, 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the rows")
    parser.add_argument("--quick", action="store_true", help="20 runs instead of 300")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = 20 if options.quick else 300
    models = {"bundled model": Learner.load().loaded.model, "many layers": many_layers()}
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    facts = {
        "rows": [row(name, model, runs) for name, model in models.items()],
        "runs": runs, "commit": git.stdout.strip(), "date": datetime.now(UTC).date().isoformat(),
        "machine": {
            "processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
        },
        "versions": {name: version(name) for name in ("torch", "transformers", "autottt")},
    }  # fmt: skip
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts["rows"], indent=1))


if __name__ == "__main__":
    main()
