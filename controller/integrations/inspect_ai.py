"""The provider `autottt` of inspect-ai: `inspect eval TASK --model autottt/bundled -M few_shot=true`.

inspect-ai finds it by the entry point of this package. Needs the extra `inspect`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from inspect_ai.model import ChatMessage, GenerateConfig, ModelAPI, ModelOutput, ModelUsage, modelapi
from inspect_ai.tool import ToolChoice, ToolInfo

from ...strategies.registry import get_strategy
from ...ttt_core.errors import TaskError, TooLongError
from ..background import Publish, aiterate
from ..controller import Controller
from ..server.chat_answers import ChatAnswer
from .chats import ChatQuery, answer, read_chat_query

BUNDLED = "bundled"
"""The name of the bundled model, after `autottt/`."""
MAX_CONNECTIONS = 16
"""Samples that wait or are answered at a time, unless the caller says otherwise."""
_RENAMED = {"stop_seqs": "stop", "num_choices": "n", "response_schema": "response_format"}
"""Fields of inspect-ai's `GenerateConfig` with another name than the parameters of a chat."""
_UNRELATED = {
    "max_retries", "timeout", "attempt_timeout", "stream_idle_timeout", "max_connections", "adaptive_connections",
    "batch", "cache", "cache_prompt", "extra_headers", "system_message", "max_tool_output", "internal_tools",
    "parallel_tool_calls", "fallback_models", "fail_on_refusal", "reasoning_history", "reasoning_summary",
}  # fmt: skip
"""Fields that change no answer of this model: inspect-ai applies them itself, or they concern connections, tools and
reasoning, which it has not. Any other field is a parameter of a chat: one that is not implemented is refused."""


@modelapi(name="autottt")  # type: ignore[untyped-decorator, unused-ignore]
class AutotttAPI(ModelAPI):  # type: ignore[misc, unused-ignore]
    """A model that decides for each few-shot chat whether to train first.

    Demonstrations are earlier turns where the model argument `few_shot` is true, or `demonstrations` in the
    `extra_body` of the configuration, which may also have `strategy` and `budget`; any other chat is answered by the
    base model. The other model arguments are those of `Controller.from_pretrained`. The `metadata` of an output has
    the decision, scores, cost, adaptation and proof.
    """

    def __init__(
        self, model_name: str, base_url: str | None = None, api_key: str | None = None,
        config: GenerateConfig | None = None, *, few_shot: bool = False, strategy: str | None = None,
        budget: str | float | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        if strategy is not None:
            get_strategy(strategy)
        self.few_shot, self.strategy, self.budget = few_shot, strategy, budget
        self.controller = Controller.from_pretrained(None if model_name == BUNDLED else model_name, **settings)

    async def generate(
        self, input: list[ChatMessage], tools: Sequence[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """The answer to a chat. Raises `TaskError` for what cannot be honoured, such as tools."""
        query = self._query(input, tools, config)
        stop = threading.Event()

        def work(publish: Publish[ChatAnswer]) -> None:
            publish(answer(self.controller, query, stop))

        try:
            async with aclosing(aiterate(work, stop)) as answers:
                return self._output(await anext(answers))
        except TooLongError as error:  # inspect-ai's own word for a full context
            return ModelOutput.from_content(self.model_name, str(error), stop_reason="model_length")

    def _query(self, input: Sequence[ChatMessage], tools: Sequence[ToolInfo], config: GenerateConfig) -> ChatQuery:
        if tools:
            raise TaskError(f"tools: expected none, as they are not supported; received {len(tools)}")
        fields = config.model_dump(exclude=_UNRELATED, exclude_none=True)
        extra = fields.pop("extra_body", {})
        given = {_RENAMED.get(name, name): value for name, value in fields.items()} | extra
        query = read_chat_query(
            [_plain(message) for message in input], few_shot=self.few_shot and len(input) > 1,
            **{name: value for name, value in given.items() if value is not None},
        )  # fmt: skip
        if not query.chat.few_shot:
            return query
        return replace(query, strategy=query.strategy or self.strategy, budget=query.budget or self.budget)

    def _output(self, answer: ChatAnswer) -> ModelOutput:
        reason = "max_tokens" if answer.finish_reason == "length" else "stop"
        output = ModelOutput.from_content(self.model_name, answer.text, stop_reason=reason)
        prompt, completion = answer.prompt_tokens, answer.completion_tokens
        output.usage = ModelUsage(input_tokens=prompt, output_tokens=completion, total_tokens=prompt + completion)
        output.metadata = answer.facts.model_dump()
        return output

    def max_connections(self) -> int:
        """Samples at a time."""
        return MAX_CONNECTIONS

    def connection_key(self) -> str:
        """What shares the limit of connections: this model."""
        return f"autottt/{self.model_name}"


def _plain(message: ChatMessage) -> dict[str, Any]:
    """A message in the form of OpenAI's API."""
    content = message.content
    if not isinstance(content, str):
        content = [part.model_dump(include={"type", "text"}) for part in content]
    plain: dict[str, Any] = {"role": message.role, "content": content}
    if calls := getattr(message, "tool_calls", None):
        plain["tool_calls"] = [call.model_dump() if hasattr(call, "model_dump") else vars(call) for call in calls]
    return plain
