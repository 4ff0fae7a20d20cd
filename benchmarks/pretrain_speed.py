"""Measures pre-training against the rate of plain matrix products on the same device, side by side in one run.

    python benchmarks/pretrain_speed.py --sizes 256x6,384x8,512x10 --tokens 8192 [--compile]

Prints for each size the tokens per second, and the share of the matrix-product rate that a step reaches: 6 operations
per parameter and token, and 12 * layers * hidden * row for attention, over the rate of bf16 products of 8,192 x 1,024 x
1,024.
Medians of --repeats; the time to make batches is excluded.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from autottt.ttt_core.pretraining.data import Phase, PretrainConfig, Stream
from autottt.ttt_core.pretraining.pretrain import Trainer


def seconds_of(work: Callable[[], Any], repeats: int, device: str) -> float:
    """Median seconds of a piece of work, after two rounds to warm up."""
    times = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def product_rate(device: str, dtype: torch.dtype, repeats: int) -> float:
    """Operations per second of a plain matrix product."""
    m, k, n = 8192, 1024, 1024
    a, b = torch.randn(m, k, device=device, dtype=dtype), torch.randn(k, n, device=device, dtype=dtype)
    rounds = 50 if device == "cuda" else 1

    def work() -> None:
        for _ in range(rounds):
            a @ b

    return 2 * m * k * n * rounds / seconds_of(work, repeats, device)


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="256x6,384x8,512x10", help="hidden x layers; heads are 64 wide")
    parser.add_argument("--row", type=int, default=256, help="tokens in a row")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens in a batch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    dtype = torch.bfloat16
    rows = []
    for size in options.sizes.split(","):
        hidden, layers = map(int, size.split("x"))
        heads = max(1, hidden // 64)
        phase = Phase(0, ((options.row, 1.0),), (("lists", 0.5), ("rows", 0.5)))
        config = PretrainConfig(
            hidden=hidden, layers=layers, heads=heads, kv_heads=heads, intermediate=5 * hidden // 2,
            tokens=options.tokens, phases=(phase,),
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(config, Path(folder), options.device, dtype, options.compile)
            batch = Stream(config, trainer.tokenizer).batch(0)
            step_seconds = seconds_of(lambda t=trainer, b=batch: t.train_step(b, 1e-4), options.repeats, options.device)  # type: ignore[misc]
        products = product_rate(options.device, dtype, options.repeats)
        parameters = sum(p.numel() for p in trainer.model.parameters())
        tokens = batch.ids.numel() / step_seconds
        rate = tokens * (6 * parameters + 12 * layers * hidden * options.row)
        rows.append({
            "size": size, "parameters": parameters, "tokens_per_second": round(tokens),
            "products_gflops": round(products / 1e9), "share": round(rate / products, 3),
        })  # fmt: skip
        print(rows[-1], flush=True)
    if options.json:
        options.json.write_text(
            json.dumps({"device": options.device, "torch": torch.__version__, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
