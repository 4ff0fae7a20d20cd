"""The models of lm-eval and inspect-ai, with stand-ins for those libraries; the libraries themselves run in
tests/clients/check_integrations.py."""

from __future__ import annotations

import asyncio
import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from autottt import Controller, TooLongError
from autottt.ttt_core.errors import StrategyError, TaskError
from tests.controller.integrations.conftest import PAIRS

TURNS = [
    {"role": role, "content": text} for pair in PAIRS for role, text in zip(("user", "assistant"), pair, strict=True)
]
QUERY = {"role": "user", "content": "gh"}


def stand_in(name: str, **attributes: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(attributes)
    return module


class Output(SimpleNamespace):
    @classmethod
    def from_content(cls, model, content, stop_reason="stop"):
        return cls(model=model, completion=content, stop_reason=stop_reason, usage=None, metadata=None)


class Api:
    def __init__(self, model_name, base_url, api_key, api_key_vars, config):
        self.model_name = model_name


class Config(SimpleNamespace):
    def __init__(self, **given):
        super().__init__(**{"extra_body": None, **given})

    def model_dump(self, *, exclude: set[str], exclude_none: bool) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in exclude and value is not None}


class LM:
    def __init__(self):
        self.cached: list[Any] = []
        self.cache_hook = SimpleNamespace(add_partial=lambda *each: self.cached.append(each))


LIBRARIES = {
    "lm_eval": [
        stand_in("lm_eval"),
        stand_in("lm_eval.__main__", cli_evaluate=None),
        stand_in("lm_eval.api"),
        stand_in("lm_eval.api.model", LM=LM),
        stand_in("lm_eval.api.registry", register_model=lambda name: lambda cls: cls),
    ],
    "inspect_ai": [
        stand_in("inspect_ai"),
        stand_in(
            "inspect_ai.model", ChatMessage=object, GenerateConfig=Config, ModelAPI=Api, ModelOutput=Output,
            ModelUsage=SimpleNamespace, modelapi=lambda name: lambda cls: cls,
        ),
        stand_in("inspect_ai.tool", ToolChoice=object, ToolInfo=object),
    ],
}  # fmt: skip


@pytest.fixture
def load(monkeypatch, controller):
    """A function that imports the module for a library, with a stand-in for the library and a small model."""
    settings: list[dict[str, Any]] = []

    def from_pretrained(model, **given):
        settings.append({"model": model, **given})
        return controller

    monkeypatch.setattr(Controller, "from_pretrained", from_pretrained)

    def module_of(library: str) -> Any:
        for module in LIBRARIES[library]:
            monkeypatch.setitem(sys.modules, module.__name__, module)
        name = f"autottt.controller.integrations.{library}"
        monkeypatch.delitem(sys.modules, name, raising=False)
        module = importlib.import_module(name)
        monkeypatch.delitem(sys.modules, name)
        module.loaded_with = settings
        return module

    return module_of


# --- lm-eval ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def lm(load) -> Any:
    return load("lm_eval").AutotttLM


def requests_of(model: Any, *queries: str, turns: Any = TURNS, **arguments: Any) -> list[Any]:
    settings = {"until": ["\n\n"], "max_gen_toks": 8, "do_sample": False, "temperature": 0.0, **arguments}
    chats = [model.apply_chat_template([*turns, {"role": "user", "content": query}]) for query in queries]
    return [SimpleNamespace(args=(chat, settings)) for chat in chats]


def test_lm_eval_turns_are_demonstrations_which_are_trained_on_in_batches(lm, monkeypatch):
    sizes, solve_many = [], Controller.solve_many
    monkeypatch.setattr(
        Controller, "solve_many",
        lambda self, tasks, **settings: sizes.append(len(tasks)) or solve_many(self, tasks, **settings),
    )  # fmt: skip
    model = lm(batch_size=2)
    requests = requests_of(model, "gh", "ij", "kl")
    texts = model.generate_until(requests)
    assert len(texts) == 3
    assert sizes == [2, 1]
    assert model.decisions == {"ttt_direct": 3}
    assert model.cached == [("generate_until", r.args, text) for r, text in zip(requests, texts, strict=True)]
    assert model.generate_until(requests_of(model, "kl")) == texts[2:]


def test_lm_eval_requests_without_demonstrations_are_answered_by_the_base_model(lm):
    model = lm(strategy="in_context", budget="20x")
    plain = SimpleNamespace(args=("Q: gh\nA:", {"until": "\n", "max_gen_toks": 2}))
    model.generate_until([plain, *requests_of(model, "gh", turns=[])])
    conversations = lm(few_shot=False)
    conversations.generate_until(requests_of(conversations, "gh"))
    assert model.decisions == {"not_few_shot": 2}
    assert conversations.decisions == {"not_few_shot": 1}


def test_lm_eval_settings_reach_the_controller(load):
    module = load("lm_eval")
    model = module.AutotttLM(
        "folder", strategy="in_context", budget="90x", device="cuda:0", batch_size="auto", adapters="cache"
    )
    assert module.loaded_with == [{"model": "folder", "seed": 0, "device": None, "adapters": "cache"}]
    assert model.batch_size > 1
    model.generate_until(requests_of(model, "gh"))
    assert model.decisions == {"in_context": 1}
    module.AutotttLM(device="cpu")
    assert module.loaded_with[-1]["device"] == "cpu"
    with pytest.raises(StrategyError):
        module.AutotttLM(strategy="no_such_strategy")


def test_lm_eval_requests_that_cannot_be_answered_raise(lm):
    model = lm()
    with pytest.raises(TooLongError):
        model.generate_until(requests_of(model, "gh", "a" * 2000))
    with pytest.raises(TaskError, match=r"^top_p"):
        model.generate_until(requests_of(model, "gh", top_p=0.5))
    with pytest.raises(TaskError, match=r"^temperature"):
        model.generate_until(requests_of(model, "gh", do_sample=True, temperature=0.7))
    for method in (model.loglikelihood, model.loglikelihood_rolling):
        with pytest.raises(NotImplementedError, match="generate_until"):
            method([])


# --- inspect-ai ------------------------------------------------------------------------------------------------------


@pytest.fixture
def api(load) -> Any:
    return load("inspect_ai").AutotttAPI


def ask(model: Any, messages: list[dict[str, Any]], tools: Any = (), **config: Any) -> Any:
    """The output for messages."""
    chat = [SimpleNamespace(**message) for message in messages]
    return asyncio.run(model.generate(chat, list(tools), "auto", Config(**{"max_tokens": 8, **config})))


def test_inspect_outputs_carry_usage_and_the_decision(api):
    model = api("bundled", few_shot=True)
    output = ask(model, [*TURNS, QUERY])
    assert output.metadata["decision"] == "ttt_direct"
    assert output.metadata["adaptation"]["steps"] == 3
    assert output.usage.total_tokens == output.usage.input_tokens + output.usage.output_tokens
    assert ask(api("bundled"), [QUERY], max_tokens=1).stop_reason == "max_tokens"


def test_inspect_turns_are_demonstrations_where_the_caller_says_so(api):
    plain, body = api("bundled"), {"demonstrations": PAIRS, "strategy": "in_context"}
    assert ask(plain, [*TURNS, QUERY]).metadata["decision"] == "not_few_shot"
    assert ask(plain, [QUERY], extra_body=body).metadata["decision"] == "in_context"
    assert ask(api("bundled", few_shot=True), [QUERY]).metadata["decision"] == "not_few_shot"
    assert (
        ask(api("bundled", few_shot=True, strategy="in_context"), [*TURNS, QUERY]).metadata["decision"] == "in_context"
    )


def test_inspect_names_of_models_are_folders_but_for_the_bundled_one(load):
    module = load("inspect_ai")
    module.AutotttAPI("bundled", adapters="cache")
    module.AutotttAPI("some/folder")
    assert [each["model"] for each in module.loaded_with] == [None, "some/folder"]
    with pytest.raises(StrategyError):
        module.AutotttAPI("bundled", strategy="no_such_strategy")


def test_inspect_is_told_what_cannot_be_honoured(api):
    model = api("bundled", few_shot=True)
    assert ask(model, [*TURNS, {"role": "user", "content": "a" * 2000}]).stop_reason == "model_length"
    image = SimpleNamespace(model_dump=lambda include: {"type": "image"})
    for messages, config, named in [
        ([QUERY], {"num_choices": 2}, "n"),
        ([QUERY], {"top_p": 0.5}, "top_p"),
        ([QUERY], {"extra_body": {"nonsense": 1}}, "nonsense"),
        ([{"role": "user", "content": [image]}], {}, "messages"),
        ([{"role": "tool", "content": "4"}, QUERY], {}, "messages"),
        ([QUERY, {"role": "assistant", "content": "", "tool_calls": [SimpleNamespace(function="f")]}], {}, "messages"),
    ]:
        with pytest.raises(TaskError, match=rf"^{named}\b"):
            ask(model, messages, **config)
    with pytest.raises(TaskError, match=r"^tools"):
        ask(model, [QUERY], tools=[object()])


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("top_p", 0.5, "top_p"),
        ("top_k", 40, "top_k"),
        ("best_of", 2, "best_of"),
        ("frequency_penalty", 1.0, "frequency_penalty"),
        ("presence_penalty", 1.0, "presence_penalty"),
        ("logit_bias", {4: 1.0}, "logit_bias"),
        ("num_choices", 2, "n"),
        ("logprobs", True, "logprobs"),
        ("top_logprobs", 3, "top_logprobs"),
        ("prompt_logprobs", 1, "prompt_logprobs"),
        ("verbosity", "low", "verbosity"),
        ("effort", "low", "effort"),
        ("reasoning_effort", "high", "reasoning_effort"),
        ("reasoning_mode", "pro", "reasoning_mode"),
        ("reasoning_tokens", 100, "reasoning_tokens"),
        ("response_schema", {"name": "answer"}, "response_format"),
        ("modalities", ["image"], "modalities"),
        ("a_field_of_a_later_version", 1, "a_field_of_a_later_version"),
    ],
)
def test_inspect_settings_that_would_change_the_answer_are_refused(api, field, value, named):
    with pytest.raises(TaskError, match=rf"^{named}\b"):
        ask(api("bundled"), [QUERY], **{field: value})


def test_inspect_settings_that_change_no_answer_are_accepted(api):
    model = api("bundled")
    expected = ask(model, [QUERY]).completion
    neutral = {"top_p": 1.0, "num_choices": 1, "logprobs": False, "reasoning_effort": "none", "temperature": 0.0}
    of_the_harness = {
        "max_retries": 1, "timeout": 60, "attempt_timeout": 60, "stream_idle_timeout": 60, "max_connections": 4,
        "adaptive_connections": False, "system_message": "Be brief.", "parallel_tool_calls": False,
        "internal_tools": False, "max_tool_output": 1, "cache_prompt": "auto", "fallback_models": ["other"],
        "fail_on_refusal": True, "reasoning_summary": "auto", "reasoning_history": "none", "extra_headers": {"a": "b"},
        "cache": True, "batch": True,
    }  # fmt: skip
    assert ask(model, [QUERY], **neutral, **of_the_harness).completion == expected
