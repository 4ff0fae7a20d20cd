"""Names of span attributes in the conventions that viewers of traces know. No other module spells them."""

from __future__ import annotations


class OpenInference:
    """OpenInference semantic conventions 0.1.42 (https://arize-ai.github.io/openinference/spec)."""

    SPAN_KIND = "openinference.span.kind"
    INPUT = "input.value"
    INPUT_TYPE = "input.mime_type"
    OUTPUT = "output.value"
    OUTPUT_TYPE = "output.mime_type"
    METADATA = "metadata"
    SESSION_ID = "session.id"
    NODE_ID = "graph.node.id"
    NODE_NAME = "graph.node.name"
    NODE_PARENT_ID = "graph.node.parent_id"
    DECISION_SYSTEM = "decision.system"
    DECISION_PROVIDER = "decision.provider"
    DECISION_MODEL_NAME = "decision.model_name"
    LLM_SYSTEM = "llm.system"
    LLM_PROVIDER = "llm.provider"
    LLM_MODEL_NAME = "llm.model_name"
    LLM_PARAMETERS = "llm.invocation_parameters"
    LLM_PROMPT_TOKENS = "llm.token_count.prompt"
    LLM_COMPLETION_TOKENS = "llm.token_count.completion"
    LLM_TOTAL_TOKENS = "llm.token_count.total"
    LLM_FINISH_REASON = "llm.finish_reason"
    ANNOTATIONS = "annotations"
    ANNOTATION_NAME = "annotation.name"
    ANNOTATION_SCORE = "annotation.score"
    ANNOTATION_LABEL = "annotation.label"
    ANNOTATOR_KIND = "annotation.annotator_kind"

    CHAIN = "CHAIN"
    DECISION = "DECISION"
    EVALUATOR = "EVALUATOR"
    LLM = "LLM"
    CODE = "CODE"
    JSON = "application/json"
    TEXT = "text/plain"


class GenAI:
    """OpenTelemetry semantic conventions for generative AI, v0.1.0, all of which have the status Development
    (https://github.com/open-telemetry/semantic-conventions-genai)."""

    OPERATION = "gen_ai.operation.name"
    PROVIDER = "gen_ai.provider.name"
    AGENT_NAME = "gen_ai.agent.name"
    CONVERSATION_ID = "gen_ai.conversation.id"
    REQUEST_MODEL = "gen_ai.request.model"
    RESPONSE_MODEL = "gen_ai.response.model"
    CHOICE_COUNT = "gen_ai.request.choice.count"
    MAX_TOKENS = "gen_ai.request.max_tokens"
    TEMPERATURE = "gen_ai.request.temperature"
    SEED = "gen_ai.request.seed"
    FINISH_REASONS = "gen_ai.response.finish_reasons"
    INPUT_TOKENS = "gen_ai.usage.input_tokens"
    OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
    EVALUATION = "gen_ai.evaluation.result"
    EVALUATION_NAME = "gen_ai.evaluation.name"
    EVALUATION_SCORE = "gen_ai.evaluation.score.value"
    EVALUATION_LABEL = "gen_ai.evaluation.score.label"

    WORKFLOW = "invoke_workflow"
    COMPLETION = "text_completion"


class General:
    """Names of OpenTelemetry's general conventions."""

    ERROR_TYPE = "error.type"
    EXCEPTION = "exception"
    EXCEPTION_TYPE = "exception.type"
    EXCEPTION_MESSAGE = "exception.message"


OWN = "autottt."
"""The prefix of everything that no convention names."""
