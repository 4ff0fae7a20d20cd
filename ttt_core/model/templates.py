"""Renders chat templates under limits of time, memory and length, with one date for as long as a model is loaded.

Knows nothing about tokens. A template comes with a model and may be anything: it runs in a process of its own
(`template_process`), which ends with an error if it takes too long or too much memory.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils.chat_template_utils import render_jinja_template

from ..errors import ModelError
from . import template_process

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]
Request = tuple[Sequence[Message], bool]
"""Messages, and whether the prompt of an answer follows them."""

TIMEOUT = 30.0
"""Seconds after which a process of a template is ended, however little processor time it got."""
REMEDY = "use prompt_format='standard'"
SWITCHES: Mapping[str, Any] = {"enable_thinking": False, "thinking": False}
"""Variables that templates of reasoning models read: an answer is to follow the prompt at once."""


class TemplateRenderer:
    """The chat template of a tokenizer as a function: `renderer(messages, generation)` is the text of the messages.

    Each rendering runs once and is cached. Raises `ModelError`, with the remedy, if the template fails or exceeds a
    limit.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.source = _source(tokenizer)
        variables = {k: v for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}
        self._variables = json.dumps({**variables, **SWITCHES, "tools": None, "documents": None})
        self.now = _now() if "strftime_now" in self.source else ""
        self._renderings: dict[str, Mapping[str, str]] = {}

    def __call__(self, messages: Sequence[Message], generation: bool) -> str:
        rendering = self.try_render([(messages, generation)])[0]
        if "error" in rendering:
            raise ModelError(f"the tokenizer's chat template refuses these messages ({rendering['error']}); {REMEDY}")
        return rendering["text"]

    def try_render(self, requests: Iterable[Request]) -> list[Mapping[str, str]]:
        """For each request an object with its `text` or its `error`. What is not cached is rendered in one process.

        Raises `ModelError` if the process exceeds a limit.
        """
        keys = [json.dumps([list(messages), generation]) for messages, generation in requests]
        missing = tuple(dict.fromkeys(key for key in keys if key not in self._renderings))
        if missing:
            answers = _run(self.source, self.now, self._variables, missing)
            self._renderings |= dict(zip(missing, answers, strict=True))
        return [self._renderings[key] for key in keys]


def _source(tokenizer: PreTrainedTokenizerBase) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            "prompt_format 'chat' needs a tokenizer with a chat template; this one has none: use 'standard'"
        )
    try:
        source = tokenizer.get_chat_template()
    except Exception as error:
        raise ModelError(f"the tokenizer's chat template cannot be read ({_line(error)}); {REMEDY}") from None
    if not isinstance(source, str):
        raise ModelError(f"the tokenizer's chat template is no text but {type(source).__name__}; {REMEDY}")
    return source


def _now() -> str:
    """The time as transformers writes it into templates."""
    chat = [[{"role": "user", "content": ""}]]
    rendered, _ = render_jinja_template(chat, chat_template="{{ strftime_now('%Y-%m-%dT%H:%M:%S.%f') }}")
    try:
        return datetime.fromisoformat(rendered[0]).isoformat()
    except ValueError:
        return datetime.now().isoformat()


@functools.lru_cache(maxsize=64)
def _run(source: str, now: str, variables: str, requests: tuple[str, ...]) -> list[dict[str, str]]:
    """The answers of a process to the requests. Raises `ModelError` if the process fails."""
    job = json.dumps({
        "source": source, "now": now or "2000-01-01", "variables": json.loads(variables), "path": sys.path,
        "requests": [json.loads(request) for request in requests],
        "seconds": template_process.MAX_SECONDS, "memory": template_process.MAX_MEMORY,
    })  # fmt: skip
    command = [sys.executable, "-I", "-S", "-X", "utf8", str(Path(template_process.__file__))]
    try:
        process = subprocess.run(
            command, input=job, encoding="utf-8", capture_output=True, timeout=TIMEOUT, check=False
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ModelError(f"the tokenizer's chat template takes more than {TIMEOUT:.0f} seconds; {REMEDY}") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"no process can render the tokenizer's chat template ({_line(error)}); {REMEDY}") from None
    if process.returncode < 0 or "MemoryError" in process.stderr[-200:]:
        limits = f"{template_process.MAX_SECONDS} seconds or {template_process.MAX_MEMORY >> 20} MB"
        raise ModelError(f"the tokenizer's chat template takes more than {limits}; {REMEDY}")
    if process.returncode != 0:
        last = (process.stderr.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
        raise ModelError(f"the process that renders the tokenizer's chat template failed ({last[:200]}); {REMEDY}")
    answers: list[dict[str, str]] = json.loads(process.stdout)
    return answers


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
