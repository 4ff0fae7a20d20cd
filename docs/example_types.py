"""Checks the types of every Python example of README.md and docs/, strictly: `make types` calls it."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from mypy import api

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def source_of(document: Path) -> str:
    """The Python blocks of a document, each on the lines where it stands there."""
    text = document.read_text("utf-8")
    source = ""
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start(1))
        source += "\n" * (line - source.count("\n")) + block[1]
    return source


def main() -> int:
    """Prints mypy's messages with the names and lines of the documents; returns its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for document in DOCUMENTS:
            if source := source_of(document):
                path = Path(folder) / f"{document.stem.lower()}_examples.py"
                path.write_text(source, "utf-8")
                files[str(path)] = document.relative_to(ROOT)
        options = ["--config-file", str(ROOT / "pyproject.toml"), "--show-absolute-path"]
        output, errors, status = api.run([*options, *files])
    for path, document in files.items():
        output = output.replace(path, str(document))
    sys.stdout.write(output)
    sys.stderr.write(errors)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
