"""Renders a chat template in a process of its own, which runs this file as a script with limits of time and memory.

Imports nothing of this package: the process needs the standard library and Jinja only, so it starts in a tenth of a
second. The environment has the blocks, filters and globals that transformers gives to chat templates.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any

MAX_SECONDS = 2
"""Processor time of a process, all its renderings together."""
MAX_MEMORY = 1 << 29
"""Bytes of its address space."""
MAX_CHARACTERS = 1 << 20
"""Characters of one rendering."""
MAX_TOTAL = 1 << 22
"""Characters of all the renderings of a process."""


def limit_resources(seconds: int, memory: int) -> None:
    """Limits the processor time and the address space of this process, where the system can."""
    try:
        import resource
    except ImportError:  # Windows: the parent's timeout remains
        return
    for name, limit in (("RLIMIT_CPU", seconds), ("RLIMIT_AS", memory), ("RLIMIT_CORE", 0)):
        try:
            resource.setrlimit(getattr(resource, name), (limit, limit))
        except (ValueError, OSError, AttributeError):
            continue


def compile_template(source: str, now: datetime) -> Any:
    """The template, in an environment like that of transformers in which the time stands still."""
    from jinja2 import ext, nodes
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(ext.Extension):
        """The block `{% generation %}`, which marks what an assistant wrote; its body is rendered as it is."""

        tags = {"generation"}  # noqa: RUF012 - Jinja's own interface

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

        def _render(self, caller: Callable[[], str]) -> str:
            return caller()

    class PublicNamespace(Namespace):
        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise SecurityError(f"a namespace attribute begins with an underscore: {name!r}")
            super().__setitem__(name, value)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": now.strftime,
        "namespace": PublicNamespace,
        "dict": lambda *values, **named: dict(*values, **named),
    }
    return environment.from_string(source)


def render(template: Any, variables: dict[str, Any], messages: list[dict[str, str]], generation: bool) -> str:
    """The text of the messages. Raises `ValueError` if it is too long, else whatever the template raises."""
    parts, size = [], 0
    for part in template.generate(**variables, messages=messages, add_generation_prompt=generation):
        size += len(part)
        if size > MAX_CHARACTERS:
            raise ValueError(f"it writes more than {MAX_CHARACTERS} characters")
        parts.append(part)
    return "".join(parts)


def answer(job: dict[str, Any]) -> list[dict[str, str]]:
    """For each of the job's requests an object with its `text` or its `error`."""
    try:
        template = compile_template(job["source"], datetime.fromisoformat(job["now"]))
    except Exception as error:
        return [{"error": describe(error)}] * len(job["requests"])
    answers: list[dict[str, str]] = []
    total = 0
    for messages, generation in job["requests"]:
        try:
            text = render(template, job["variables"], messages, generation)
            total += len(text.encode())
            if total > MAX_TOTAL:
                raise ValueError(f"it writes more than {MAX_TOTAL} characters in {len(answers) + 1} chats")
            answers.append({"text": text})
        except Exception as error:
            answers.append({"error": describe(error)})
    return answers


def describe(error: Exception) -> str:
    """The error in one line, with its type unless the template wrote the message itself."""
    lines = " ".join(str(error).split())[:200]
    own = type(error).__name__ in ("TemplateError", "ValueError")
    return lines if own and lines else f"{type(error).__name__}: {lines}".rstrip(": ")


def main() -> None:
    """Reads a job from standard input and writes its answers to standard output, both as JSON."""
    job = json.load(sys.stdin)
    sys.path[:] = job["path"]
    import jinja2.sandbox  # noqa: F401 - loaded before the limit of memory

    limit_resources(job["seconds"], job["memory"])
    json.dump(answer(job), sys.stdout)


if __name__ == "__main__":
    main()
