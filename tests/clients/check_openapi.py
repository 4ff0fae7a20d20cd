"""Sends requests that schemathesis makes from the OpenAPI document to a server with a tiny model: `make check-openapi`.

Outside `make test`, because 10,000 requests take minutes. schemathesis is installed, pinned, into an environment in a
temporary folder (`--environment` keeps it). Exits with 1 where a response is a server error (5xx), a request has none
within a minute, or the base model is not as it was at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

from environments import OFFLINE, Environment, running_server

PACKAGES = ("schemathesis==4.32.5",)
SECONDS = 60
"""Within which every request is to have its response."""


def save_model(folder: Path) -> None:
    """Writes a tiny model with random weights, and its tokenizer."""
    from autottt.ttt_core.testing import tiny_model, tiny_tokenizer

    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer(chat=True).save_pretrained(folder)


def statuses(report: Path) -> Counter[int]:
    """How many responses of each status a report has; 0 stands for requests without one."""
    counts = Counter[int]()
    for line in report.read_text("utf-8").splitlines():
        scenario = json.loads(line).get("ScenarioFinished")
        for each in (scenario or {}).get("recorder", {}).get("interactions", {}).values():
            response = each.get("response")
            counts[response["status_code"] if response else 0] += 1
    return counts


def main() -> int:
    """Prints the responses by status; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, help="folder of the environment, which is kept and used again")
    parser.add_argument("--cases", type=int, default=10_000, help="requests at least")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        environment = Environment((given.environment or folder / "environment").resolve(), PACKAGES)
        save_model(folder / "model")
        with running_server("--model", str(folder / "model"), "--max-tokens", "64") as url:
            counts, failed = send(environment, url, folder, given.cases, given.seed)
    print(f"{sum(counts.values()):,} requests; responses by status: {dict(sorted(counts.items()))}")
    print(f"server errors: {sum(n for status, n in counts.items() if status >= 500)}")
    return int(failed or sum(counts.values()) < given.cases)


def send(environment: Environment, url: str, folder: Path, cases: int, seed: int) -> tuple[Counter[int], bool]:
    """Runs schemathesis until that many requests were sent. Returns the responses, and whether a check failed."""
    counts, failed, round_ = Counter[int](), False, 0
    while sum(counts.values()) < cases:
        report = folder / f"report{round_}.ndjson"
        done = subprocess.run(
            [
                str(environment.binaries / "schemathesis"), "run", f"{url}/openapi.json", "--wait-for-schema", "60",
                "--checks", "not_a_server_error", "--continue-on-failure", "--request-timeout", str(SECONDS),
                "--max-examples", "400", "--phases", "examples,coverage,fuzzing", "--seed", str(seed + round_),
                "--report", "ndjson", "--report-ndjson-path", str(report),
            ],
            cwd=folder, env={**os.environ, **OFFLINE}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        mine = statuses(report)
        if done.returncode or not mine:
            print(done.stdout[-4000:], done.stderr[-2000:])
            failed = True
        if not mine:
            break
        counts += mine
        round_ += 1
    return counts, failed


if __name__ == "__main__":
    raise SystemExit(main())
