"""The programs in examples/ run, and show what they promise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: str) -> str:
    """What an example prints."""
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout


def test_a_server_is_started_asked_and_stopped():
    printed = run("serve_and_ask.py").splitlines()
    assert printed[0].startswith("1 6 8 -> 8 6 1   (in_context: ")
    assert [line for line in printed if line.startswith("step 1 of at most ")]
    assert printed[-1].startswith("the base model is what was loaded: ")
