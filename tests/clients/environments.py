"""Environments of their own for programs that the tests do not install, and servers that the checks start."""

from __future__ import annotations

import os
import signal
import site
import subprocess
import sys
import threading
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
OFFLINE = {
    "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "LANGSMITH_TRACING": "false", "OPENAI_API_KEY": "none",
    "AUTOTTT_TRACE": "off", "OMP_NUM_THREADS": "1",
}  # fmt: skip


class Environment:
    """A virtual environment with packages; with `inherit` it also has those of this interpreter, and this package."""

    def __init__(self, folder: Path, packages: Sequence[str], *, inherit: bool = False) -> None:
        self.binaries = folder / "bin"
        if folder.exists():
            return
        venv.create(folder, with_pip=True)
        if inherit:
            (packages_folder,) = folder.glob("lib/python3*/site-packages")
            here = site.getsitepackages()
            (packages_folder / "packages_of_the_tests.pth").write_text("\n".join(here))
        install = [str(self.binaries / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, *packages], check=True, stderr=subprocess.DEVNULL)
        if inherit:  # with its entry points
            own = [*install, "--no-deps", "--editable", str(ROOT)]
            subprocess.run(own, check=True, stderr=subprocess.DEVNULL)

    def run(
        self, program: str, *arguments: str, folder: Path, expect: int = 0, seconds: float = 600,
        variables: Mapping[str, str] | None = None,
    ) -> str:  # fmt: skip
        """What a program prints. Raises `AssertionError` for another exit code."""
        done = subprocess.run(
            [str(self.binaries / program), *arguments], cwd=folder, capture_output=True, text=True, check=False,
            env={**os.environ, **OFFLINE, **(variables or {})}, timeout=seconds,
        )  # fmt: skip
        assert done.returncode == expect, f"{program} exited with {done.returncode}: {done.stderr[-2000:]}"
        return done.stdout + done.stderr


@contextmanager
def running(
    command: Sequence[str], folder: Path, log: Path, variables: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process, the leader of its group, that is stopped at the end as Ctrl-C does. What it prints goes to `log`."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(command), cwd=folder, env={**os.environ, **OFFLINE, **(variables or {})}, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def running_server(*options: str) -> Iterator[str]:
    """The address of `autottt serve`, with the bundled model unless the options name one. Raises `AssertionError` where
    it does not start, or does not end with success at the end."""
    command = [sys.executable, "-m", "autottt", "serve", "--port", "0", "--trace-store", "off", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **OFFLINE}) as server:
        assert server.stderr is not None
        said = [""]
        while "listening on " not in said[-1] and (line := server.stderr.readline()):
            said.append(line)
        reader = threading.Thread(target=server.stderr.read, daemon=True)  # a full pipe would hold the server
        reader.start()
        try:
            assert "listening on " in said[-1], "".join(said)
            yield said[-1].split("listening on ")[1].split(";")[0].strip()
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(120)
            reader.join()
        assert server.returncode == 0, f"the server exited with {server.returncode}"
