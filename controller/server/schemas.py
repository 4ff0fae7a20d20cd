"""What clients send and receive, as Pydantic models: the typed API of the server and its OpenAPI document.

Knows nothing about how requests are answered. A field that is not declared is refused, unless it is null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StrictBool,
    StrictInt,
    StrictStr,
    WithJsonSchema,
    model_validator,
)

from ...ttt_core.tasks.fields import MAX_SEED, is_utf8


def _checked_value(value: object) -> object:
    """The value, if it looks like one of a task. Raises `ValueError`; the kind of the task checks the rest."""
    rows = value if isinstance(value, list) and all(isinstance(row, list) for row in value) else [value]
    if isinstance(value, str) or all(isinstance(row, list) and all(type(x) is int for x in row) for row in rows):
        return value
    raise ValueError("expected a text, a list of integers, or a grid (a list of rows of digits)")


def _checked_budget(value: object) -> object:
    """A number or a text. Raises `ValueError`; what a text may be, `Budget` says."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is None or isinstance(value, str) or is_number:
        return value
    raise ValueError("expected seconds, or a text such as 10s or 20x")


def _checked_stop(value: object) -> object:
    """A text or a list of texts. Raises `ValueError`."""
    texts = value if isinstance(value, list) else [value]
    if value is None or all(isinstance(text, str) and is_utf8(text) for text in texts):
        return value
    raise ValueError("expected a text or a list of texts")


def _text_of_integer(value: object) -> object:
    """The text of an integer, as task files may have it; anything else as it is."""
    return str(value) if type(value) is int and abs(value) <= MAX_SEED else value


Budget = Annotated[
    Any,
    PlainValidator(_checked_budget),
    WithJsonSchema({
        "anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string"}, {"type": "null"}],
        "description": "Seconds, or a text such as `10s` or `20x` (multiples of the in-context time).",
    }),
]  # fmt: skip
Stop = Annotated[
    Any,
    PlainValidator(_checked_stop),
    WithJsonSchema({
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}],
        "description": "Texts that end the answer.",
    }),
]  # fmt: skip
Value = Annotated[
    Any,
    PlainValidator(_checked_value),
    WithJsonSchema({
        "anyOf": [
            {"type": "string"},
            {"type": "array", "items": {"type": "integer"}},
            {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
        ],
        "description": "A text, a list of integers, or a grid: rows of digits 0-9.",
    }),
]  # fmt: skip
Seed = Annotated[StrictInt, Field(ge=-MAX_SEED, le=MAX_SEED)]


class Request(BaseModel):
    """A request; unknown fields are refused, unless they are null."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, fields: Any) -> Any:
        """The fields without unknown ones that are null: clients send those of messages that they have received."""
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value is not None or name in cls.model_fields}


class Pair(Request):
    """A demonstration."""

    input: Value
    output: Value


class TaskRequest(Request):
    """A task: demonstrations and one query."""

    demonstrations: list[Pair] = Field(description="Inputs with their right outputs.")
    query: Value = Field(description="The input to answer.")
    kind: Literal["grid", "grid1d", "list", "text"] | None = Field(
        None, description="Kind of all values; None: what the first input looks like."
    )
    instruction: StrictStr | None = None
    answer: Value | None = Field(None, description="The right answer where it is known; never shown to the model.")
    comparison: Literal["exact", "ignore_case", "words", "number"] = Field(
        "exact", description="How answers are compared."
    )
    id: Annotated[
        StrictStr,
        Field(min_length=1, max_length=200, description="A text, or an integer."),
        BeforeValidator(_text_of_integer),
    ] = "task"
    model: StrictStr | None = Field(None, description="Name in /v1/models.")
    budget: Budget = None
    seed: Seed | None = None


class SolveRequest(TaskRequest):
    """A task to answer."""

    strategy: StrictStr | None = Field(None, description="Forces one strategy in place of the policy.")
    stream: StrictBool = Field(False, description="Server-sent events: progress, then the result.")


NEUTRAL: Mapping[str, Sequence[Any]] = {
    "n": (1,),
    "best_of": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "top_p": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "store": (False,),
    "service_tier": ("auto", "default"),
}
"""Parameters that are not implemented, with the values that change nothing."""


def _neutral(name: str) -> Any:
    """A field that is not implemented: None, or a value that changes nothing."""
    return Field(None, json_schema_extra={"enum": [None, *NEUTRAL[name]]})


def _checked_nothing(value: object) -> object:
    """None, or an empty list. Raises `ValueError`."""
    if value is None or value == []:
        return value
    raise ValueError("is not supported: leave it out, or give null")


Nothing = Annotated[Any, PlainValidator(_checked_nothing), WithJsonSchema({"enum": [None, []]})]
"""A field of messages that clients send empty."""
_NO_TOOLS = Field(None, json_schema_extra={"enum": [None]}, description="Messages of tools are refused.")
_PARTS: Any = {
    "type": "array", "minItems": 1, "items": {
        "type": "object", "required": ["type", "text"],
        "properties": {"type": {"enum": ["text"]}, "text": {"type": "string"}},
    },
}  # fmt: skip


class Message(Request):
    """A message of a chat."""

    role: Annotated[StrictStr, Field(json_schema_extra={"enum": ["system", "developer", "user", "assistant"]})]
    content: Any = Field(
        None, description="A text, or a list of parts of type `text`.",
        json_schema_extra={"anyOf": [{"type": "string"}, _PARTS]},
    )  # fmt: skip
    name: StrictStr | None = Field(None, description="`example_user` and `example_assistant` mark demonstrations.")
    tool_calls: Any = _NO_TOOLS
    tool_call_id: Any = _NO_TOOLS
    function_call: Any = _NO_TOOLS
    refusal: StrictStr | None = None
    audio: Nothing = Field(None, description="Only text is read.")
    annotations: Nothing = Field(None, description="Sources that are cited are not read.")


class StreamOptions(Request):
    """What a stream contains."""

    include_usage: StrictBool = False
    include_obfuscation: StrictBool = False


class ChatRequest(Request):
    """A chat to answer, as clients of OpenAI's API send it. What would change the answer and is not implemented is
    refused."""

    model: StrictStr = Field(description="Name in /v1/models; the one with `-fewshot` makes turns demonstrations.")
    messages: list[Message] = Field(min_length=1)
    demonstrations: list[Pair] | None = Field(None, description="Demonstrations, beside the query in the messages.")
    strategy: StrictStr | None = Field(None, description="Forces one strategy in place of the policy.")
    budget: Budget = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, strict=True)] | None = None
    seed: Seed | None = None
    stop: Stop = None
    user: StrictStr | None = None
    metadata: dict[str, Any] | None = None
    safety_identifier: StrictStr | None = None
    prompt_cache_key: StrictStr | None = None
    prompt_cache_retention: StrictStr | None = None
    parallel_tool_calls: StrictBool | None = None
    n: Any = _neutral("n")
    best_of: Any = _neutral("best_of")
    logprobs: Any = _neutral("logprobs")
    top_logprobs: Any = _neutral("top_logprobs")
    top_p: Any = _neutral("top_p")
    frequency_penalty: Any = _neutral("frequency_penalty")
    presence_penalty: Any = _neutral("presence_penalty")
    logit_bias: Any = _neutral("logit_bias")
    tools: Any = _neutral("tools")
    functions: Any = _neutral("functions")
    tool_choice: Any = _neutral("tool_choice")
    function_call: Any = _neutral("function_call")
    response_format: Any = _neutral("response_format")
    modalities: Any = _neutral("modalities")
    reasoning_effort: Any = _neutral("reasoning_effort")
    verbosity: Any = _neutral("verbosity")
    audio: Any = _neutral("audio")
    prediction: Any = _neutral("prediction")
    web_search_options: Any = _neutral("web_search_options")
    store: Any = _neutral("store")
    service_tier: Any = _neutral("service_tier")


class FeedbackRequest(Request):
    """What is known about an answer afterwards: the right answer, or whether the answer was right."""

    trace_id: Annotated[StrictStr, Field(pattern=r"^[0-9a-f]{12}$")]
    answer: Value | None = Field(None, description="The right answer.")
    right: StrictBool | None = Field(None, description="Whether the answer was right.")


class Cost(BaseModel):
    """What the whole run took."""

    seconds: float
    forward_tokens: int
    backward_tokens: int
    relative_seconds: float | None = Field(description="Seconds over those of the in-context answer.")


class Adaptation(BaseModel):
    """The training of the adapter that gave the answer."""

    steps: int
    first_loss: float | None
    last_loss: float | None
    seconds: float
    tokens: int
    stop_reason: str
    from_cache: bool


class Proof(BaseModel):
    """The check that the base model is what was loaded."""

    method: str
    tensors: int
    seconds: float
    hash: str


class Source(BaseModel):
    """Who gave the answer, where easy queries go to another server (`--in-context-url`)."""

    server: str = Field(default="", description="Address of the other server; empty: this server.")
    fallback: str = Field(default="", description="Why the other server did not answer, where it was asked.")


class Facts(BaseModel):
    """How an answer came to be: the object `autottt` of every answer."""

    decision: str = Field(description="The strategy that was decided on first, or `not_few_shot`.")
    strategy: str = Field(description="The strategy whose answer this is.")
    status: str = Field(description="`answered`, or `no_answer` where no valid answer was found.")
    reason: str
    difficulty: float | None = Field(
        default=None, description="Estimated probability that the in-context answer is wrong."
    )
    scores: dict[str, float | None] = Field(
        default={}, description="Estimated probability of a right answer per strategy."
    )
    cost: Cost
    adaptation: Adaptation | None = None
    proof: Proof | None = None
    trace_id: str = Field(default="", description="Identifies the stored trace; empty where none is recorded.")
    right: bool | None = Field(
        default=None, description="Whether the answer is the request's; None where that is unknown."
    )
    source: Source | None = Field(default=None, description="None where there is no other server.")
    in_context_answer: Any = Field(default=None, description="The answer of the unadapted model.")


class SolveResponse(BaseModel):
    """An answer to a task."""

    id: str
    object: Literal["autottt.result"] = "autottt.result"
    created: int
    model: str
    answer: Any = Field(description="A value of the task's kind; null where no valid answer was found.")
    text: str = Field(description="The answer as the model wrote it.")
    autottt: Facts


class Usage(BaseModel):
    """Tokens of a chat, and the facts again: some clients keep nothing else of what they do not know."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    autottt: Facts


class AnswerMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """The only choice."""

    index: Literal[0] = 0
    message: AnswerMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class ChatResponse(BaseModel):
    """The answer to a chat."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage
    autottt: Facts


class DecideResponse(BaseModel):
    """A decision that was not followed."""

    id: str
    object: Literal["autottt.decision"] = "autottt.decision"
    created: int
    model: str
    strategy: str
    reason: str
    difficulty: float | None
    scores: dict[str, float | None]
    costs: dict[str, float | None] = Field(description="Predicted cost per strategy, in multiples of in-context.")
    utilities: dict[str, float | None] = Field(description="Probability minus weighted cost per strategy.")
    proof: Proof


class FeedbackResponse(BaseModel):
    """What was stored."""

    trace_id: str
    object: Literal["autottt.label"] = "autottt.label"
    right: bool


class Model(BaseModel):
    """A model name that requests may give."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "autottt"
    description: str


class ModelList(BaseModel):
    """Every model name."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """The state of the server."""

    status: str


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorTrace(BaseModel):
    """The trace of a run that has failed."""

    trace_id: str
    trace: str = Field(description="Path of its page, where traces are stored with content.")


class ErrorResponse(BaseModel):
    """An error in the shape of OpenAI's API."""

    error: ErrorBody
    autottt: ErrorTrace | None = None
