"""The model `autottt` of lm-evaluation-harness: few-shot examples as turns are demonstrations of a task.

    python -m autottt.controller.integrations.lm_eval --model autottt --tasks NAME --apply_chat_template

lm-eval finds no models of other packages by itself, so this module is run in its place: it registers the model and
passes the arguments on. Needs the extra `lm-eval`.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from ...strategies.registry import get_strategy
from ..controller import Controller
from .chats import ChatQuery, answer_many, read_chat_query

BATCH_SIZE = 32
"""Requests that are answered together with `--batch_size auto`."""
_CHAT = "autottt-chat:"
"""The beginning of a context that is a chat in JSON."""
_DEFAULT_DEVICE = "cuda:0"
"""What lm-eval gives where nobody has named a device; a device that exists is then chosen."""
_LOG = logging.getLogger("autottt")
_READ = ("do_sample", "temperature", "until", "max_gen_toks")
"""Arguments of a generation that are read by name."""


@register_model("autottt")  # type: ignore[untyped-decorator, unused-ignore]
class AutotttLM(LM):  # type: ignore[misc, unused-ignore]
    """A model that learns from the few-shot examples of each request where that pays.

    The arguments are those of `Controller.from_pretrained`, and `budget` and `strategy` of `Controller.solve`. With
    `--apply_chat_template` lm-eval gives its few-shot examples as turns, which are the demonstrations, unless
    `few_shot=False`. A request without turns is a text that the base model answers. Only `generate_until` is
    implemented. A request that cannot be answered raises its error, so that it does not count as a wrong answer.
    """

    def __init__(
        self, model: str | None = None, *, few_shot: bool = True, strategy: str | None = None,
        budget: str | float | None = None, seed: int = 0, batch_size: int | str = BATCH_SIZE,
        max_batch_size: int | None = None, device: str | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        if strategy is not None:
            get_strategy(strategy)
        self.controller = Controller.from_pretrained(
            model, seed=seed, device=None if device == _DEFAULT_DEVICE else device, **settings
        )
        self.few_shot = few_shot
        self.settings: dict[str, Any] = {"strategy": strategy, "budget": budget}
        self.batch_size = int(batch_size) if str(batch_size).isdigit() else max_batch_size or BATCH_SIZE
        self.decisions: Counter[str] = Counter()
        """How often each strategy was decided on."""

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The answers to requests, in order."""
        texts: list[str] = []
        for start in range(0, len(requests), self.batch_size):
            batch = requests[start : start + self.batch_size]
            for request, answer in zip(batch, self._answers(batch), strict=True):
                texts.append(answer)
                self.cache_hook.add_partial("generate_until", request.args, answer)
            _LOG.info("%d of %d requests answered; decisions: %s", len(texts), len(requests), dict(self.decisions))
        return texts

    def _answers(self, batch: Sequence[Any]) -> list[str]:
        texts = []
        for answer in answer_many(self.controller, [self._query(*request.args) for request in batch]):
            if isinstance(answer, Exception):
                raise answer
            self.decisions[answer.facts.decision] += 1
            texts.append(answer.text)
        return texts

    def _query(self, context: str, arguments: Mapping[str, Any]) -> ChatQuery:
        """The query of a request. Raises `TaskError` for arguments that cannot be honoured."""
        messages = _messages(context)
        sampled = arguments.get("do_sample") or None
        until = arguments.get("until") or []
        few_shot = self.few_shot and len(messages) > 1
        query = read_chat_query(
            messages, few_shot=few_shot, max_tokens=arguments.get("max_gen_toks"),
            temperature=arguments.get("temperature") if sampled else None,
            stop=[text for text in ([until] if isinstance(until, str) else until) if text],
            **{name: value for name, value in arguments.items() if name not in _READ},
        )  # fmt: skip
        return replace(query, **self.settings) if query.chat.few_shot else query

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The chat as JSON, which `generate_until` reads again: the model's own template is applied there."""
        return _CHAT + json.dumps(chat_history)

    @property
    def tokenizer_name(self) -> str:
        """The name under which lm-eval caches requests: chats are the same for every model."""
        return "autottt"

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Empty: the model's own template is applied when a request is answered."""
        return ""

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Raises `NotImplementedError`."""
        raise NotImplementedError(
            "the model autottt answers tasks of the output type generate_until only; multiple choice and perplexity "
            "need the log-likelihood of given texts"
        )

    loglikelihood_rolling = loglikelihood


def _messages(context: str) -> list[dict[str, str]]:
    """The messages of a context; one that is no chat is what a user says."""
    if not context.startswith(_CHAT):
        return [{"role": "user", "content": context}]
    chat: list[dict[str, str]] = json.loads(context.removeprefix(_CHAT))
    return chat


if __name__ == "__main__":
    cli_evaluate()
