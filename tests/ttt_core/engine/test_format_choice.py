"""The prompt format of a task is chosen by what the model predicts best."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from autottt.controller.budget import Budget
from autottt.controller.controller import Controller
from autottt.controller.plain_tasks import checked_task, task_to_plain
from autottt.controller.results import Result
from autottt.policies.policy import FixedPolicy
from autottt.strategies.base import run
from autottt.strategies.registry import get_strategy
from autottt.ttt_core.engine.answering import Answerer
from autottt.ttt_core.engine.format_choice import MAX_CACHED_CHOICES, FormatChoice, FormatReading, best_format
from autottt.ttt_core.errors import TaskError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.tasks.augmentation import leave_one_out, shuffled
from autottt.ttt_core.tasks.kinds import make_task
from autottt.ttt_core.tasks.task import Task
from autottt.ttt_core.testing import tiny_model, tiny_tokenizer

PAIRS = [([3, 1], [1, 3]), ([2, 7], [7, 2]), ([5, 0], [0, 5])]


def task_of(count: int = 3, query: tuple[int, ...] = (4, 6)) -> Task:
    return make_task(PAIRS[:count], list(query), answer=list(query)[::-1])


def learner_of(prompt_format: str | None = None, *, chat: bool = True) -> Learner:
    return Learner.wrap(tiny_model("llama"), tiny_tokenizer(chat=chat), prompt_format=prompt_format)


def prefer(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Makes the model predict the demonstrations best in one format."""
    read = Answerer.read

    def reading(self: Answerer, task: Task, *rest: object) -> object:
        scores = read(self, task)
        best = task.prompt_format == name
        answers = [
            replace(a, log_probs=(-0.1 if best else -3.0,) * len(a.log_probs), hits=(best,) * len(a.hits))
            for a in scores.answers
        ]
        return replace(scores, answers=tuple(answers))

    monkeypatch.setattr(Answerer, "read", reading)


@pytest.mark.parametrize("name", ["chat", "standard", "compact"])
def test_the_format_under_which_the_demonstrations_are_likeliest_is_chosen(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    prefer(monkeypatch, name)
    learner = learner_of()
    choice = learner.formats.choose(task_of())
    assert choice.name == name
    assert set(choice.scores) == {"chat", "standard", "compact"}
    assert choice.right == {format_name: 2 * (format_name == name) for format_name in choice.scores}
    assert choice.margin == pytest.approx(choice.scores[name] - max(s for n, s in choice.scores.items() if n != name))
    assert choice.margin > 0
    formatted = learner.formats.formatted(task_of())
    assert learner.loaded.format_of(formatted).name == name


def test_a_tokenizer_without_a_chat_template_has_two_formats() -> None:
    assert set(learner_of(chat=False).formats.choose(task_of()).scores) == {"standard", "compact"}


@pytest.mark.parametrize("name", ["chat", "standard", "compact"])
def test_a_format_that_the_caller_gives_is_used_and_nothing_is_read(name: str) -> None:
    learner = learner_of(name)
    meter = learner.guarded.meter()
    choice = learner.formats.choose(task_of())
    assert (choice.name, choice.scores, choice.margin) == (name, {}, 0.0)
    assert meter.read().forward_tokens == 0
    assert learner.loaded.prompt_format == name
    assert learner_of("auto").loaded.prompt_format == learner_of().loaded.prompt_format == "auto"


@pytest.mark.parametrize("name", [None, "standard"])
def test_an_unknown_format_of_a_task_is_refused(name: str | None) -> None:
    task = replace(task_of(), prompt_format="chatty")
    expected = "prompt_format: expected one of chat, compact, standard; received 'chatty'"
    with pytest.raises(TaskError, match=expected):
        Controller(learner_of(name), FixedPolicy("in_context")).solve(task)
    with pytest.raises(TaskError, match=expected):
        checked_task(task_to_plain(task))


def test_everything_made_of_a_task_has_its_format(monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(monkeypatch, "standard")
    task = learner_of().formats.formatted(task_of())
    made = [*leave_one_out(task), shuffled(task, random.Random(0)), task.map(lambda v: v), task.with_demonstrations(())]
    assert {t.prompt_format for t in made} == {"standard"}
    assert task.digest == task_of().digest, "the format is no part of the content"


def test_the_choice_is_charged_once_for_the_same_demonstrations() -> None:
    learner = learner_of()
    meter = learner.guarded.meter()
    first = learner.formats.choose(task_of())
    charged = meter.read()
    others = [replace(task_of(), prompt_format=n) for n in first.scores if n != first.name]
    assert charged.forward_tokens == sum(
        len(learner.window.encode(replace(task_of(), prompt_format=n)).ids) for n in first.scores
    )
    assert first.cost.forward_tokens == sum(len(learner.window.encode(t).ids) for t in others)
    again = learner.formats.choose(task_of(query=(8, 9)))
    assert (again.name, again.scores) == (first.name, first.scores)
    assert again.cost.forward_tokens == 0
    assert meter.read().forward_tokens == charged.forward_tokens


def test_the_prefix_of_the_chosen_format_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(monkeypatch, "chat")
    learner = learner_of()
    learner.formats.choose(task_of())
    meter = learner.guarded.meter()
    learner.read(learner.formats.formatted(task_of()))
    assert meter.read().forward_tokens == 0


@pytest.mark.parametrize("cut", ["messages[-10:]", "messages if messages | length < 12 else 1 // 0"])
def test_a_template_that_does_not_take_so_many_turns_leaves_the_other_formats(
    cut: str, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = tiny_tokenizer(chat=True)
    tokenizer.chat_template = tokenizer.chat_template.replace("in messages", f"in ({cut})")
    learner = Learner.wrap(tiny_model("llama"), tokenizer)
    assert "chat" in learner.formats.choose(task_of()).scores
    caplog.clear()
    result = Controller(learner, FixedPolicy("in_context")).solve(make_task(PAIRS * 3, [4, 6]))
    assert set(result.format_choice["scores"]) == {"standard", "compact"}
    (warning,) = [r.getMessage() for r in caplog.records if "prompt format" in r.getMessage()]
    assert "the prompt format chat is not used: the tokenizer's chat template" in warning


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(
    ("output", "formats"), [("a\n\nb", {"chat", "compact"}), ("a", {"chat", "standard", "compact"})]
)
def test_a_format_whose_end_an_output_contains_is_not_used(count: int, output: str, formats: set[str]) -> None:
    task = make_task([(str(n), output) for n in range(count)], "7")
    learner = learner_of()
    choice = learner.formats.choose(task)
    assert choice.name in formats
    assert set(choice.scores) == (formats if count > 2 else set())
    assert Controller(learner, FixedPolicy("in_context")).solve(task).status != "refused"


def test_a_task_that_no_format_can_write_is_refused() -> None:
    end = learner_of().loaded.formats["chat"].ends[0].strip()
    task = make_task([(str(n), f"a\n\nb{end}") for n in range(3)], "7")
    learner = Learner.wrap(tiny_model("llama"), tiny_tokenizer(chat=True))
    learner.loaded.formats.pop("compact")
    with pytest.raises(TaskError, match="ends an answer in the prompt format chat; "):
        Controller(learner, FixedPolicy("in_context")).solve(task)


@pytest.mark.parametrize(("count", "name"), [(0, "chat"), (1, "standard"), (2, "standard")])
def test_fewer_than_three_demonstrations_are_no_evidence(count: int, name: str) -> None:
    choice = learner_of().formats.choose(task_of(count))
    assert (choice.name, choice.scores) == (name, {})
    assert choice.reason == f"too few demonstrations to compare formats ({count})"


@pytest.mark.parametrize(
    ("chat", "name"),
    [
        ((-1.0, -2.0, -3.0), "chat"),  # better by 1 each time
        ((-1.0, -3.0, -4.0), "standard"),  # 1 better once, equal otherwise: one standard error
        ((-1.0, -3.2, -4.2), "standard"),
        ((-2.0, -3.0, -4.0), "standard"),  # equal
        ((-9.0, -9.0, -9.0), "standard"),
    ],
)
def test_another_format_must_be_better_by_more_than_a_standard_error(chat: tuple[float, ...], name: str) -> None:
    readings = {"chat": FormatReading(chat, 2), "standard": FormatReading((-2.0, -3.0, -4.0), 1)}
    assert best_format(readings, "standard") == name


@pytest.mark.parametrize(("right", "name"), [(0, "standard"), (1, "standard"), (2, "chat"), (3, "chat")])
def test_another_format_must_predict_more_answers_exactly(right: int, name: str) -> None:
    readings = {
        "compact": FormatReading((-1.5, -1.5, -1.5), 0), "chat": FormatReading((-1.0, -2.0, -3.0), right),
        "standard": FormatReading((-2.0, -3.0, -4.0), 1),
    }  # fmt: skip
    assert best_format(readings, "standard") == name


def test_without_the_default_the_likeliest_format_is_best() -> None:
    readings = {"chat": FormatReading((-1.0, -2.0), 2), "compact": FormatReading((-1.0, -1.9), 0)}
    assert best_format(readings, "standard") == "compact"


def test_choices_are_bounded_and_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = learner_of()
    monkeypatch.setattr(
        type(learner.formats), "_compare", lambda self, task, _: FormatChoice("chat", {"chat": -1.0, "standard": -2.0})
    )
    for n in range(MAX_CACHED_CHOICES + 3):
        learner.formats.choose(make_task([([n], [n]), ([n + 1], [n + 1])], [1]))
    assert len(learner.formats._choices) == len(learner.formats._evidence) == MAX_CACHED_CHOICES
    learner.clear()
    assert not learner.formats._choices
    assert not learner.formats._evidence


@pytest.mark.parametrize("long_first", [True, False])
def test_a_query_gets_the_best_format_that_it_fits_in_whatever_was_asked_before(
    monkeypatch: pytest.MonkeyPatch, long_first: bool
) -> None:
    prefer(monkeypatch, "chat")
    learner = learner_of()
    long, short, over = (task_of(query=(4, 6) * length) for length in (80, 1, 1000))
    tasks = [over, long, short] if long_first else [short, long, over]
    choices = {len(task.query): learner.formats.choose(task) for task in tasks}
    assert {length: choice.name for length, choice in choices.items()} == {160: "compact", 2: "chat", 2000: "chat"}
    assert set(choices[160].scores) == {"compact"}
    assert set(choices[2].scores) == {"chat", "standard", "compact"}
    assert choices[2].margin > 0


@pytest.mark.parametrize("long_first", [True, False])
def test_the_demonstrations_are_read_once_in_each_format_in_which_a_query_fits(long_first: bool) -> None:
    learner = learner_of()
    long, short = task_of(query=(4, 6) * 80), task_of()
    meter, reads = learner.guarded.meter(), []
    for task in (long, short) if long_first else (short, long):
        before = meter.read().forward_tokens
        learner.formats.choose(task)
        reads.append(meter.read().forward_tokens - before)
    assert all(reads) if long_first else reads[1] == 0
    before = meter.read().forward_tokens
    for task in (task_of(query=(8, 9)), task_of(query=(8, 8) * 80)):
        learner.formats.choose(task)
    assert meter.read().forward_tokens == before


def test_the_record_has_the_choice_and_every_strategy_answers_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(monkeypatch, "compact")
    learner = learner_of()
    result = Controller(learner, FixedPolicy("in_context_vote")).solve(task_of())
    assert result.prompt_format == "auto"
    assert result.format_choice["name"] == "compact"
    assert result.format_choice["margin"] > 0
    assert set(result.format_choice["scores"]) == {"chat", "standard", "compact"}
    fixed = Controller(learner_of("compact"), FixedPolicy("in_context_vote")).solve(task_of())
    assert (result.text, result.answer, result.in_context.text) == (fixed.text, fixed.answer, fixed.in_context.text)  # type: ignore[union-attr]
    assert fixed.format_choice["scores"] == {}
    assert Result.from_plain(result.to_plain(content=True)).format_choice == result.format_choice


def test_a_strategy_that_is_run_alone_answers_in_the_chosen_format(monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(monkeypatch, "compact")
    alone = run(get_strategy("ttt_in_context"), learner_of(), task_of())
    fixed = run(get_strategy("ttt_in_context"), learner_of("compact"), task_of())
    assert (alone.text, alone.value) == (fixed.text, fixed.value)


def test_the_cost_of_the_in_context_answer_is_without_that_of_the_other_formats(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prefer(monkeypatch, "standard")
    result = Controller(learner_of(), FixedPolicy("in_context")).solve(task_of())
    fixed = Controller(learner_of("standard"), FixedPolicy("in_context")).solve(task_of())
    assert result.in_context is not None
    assert fixed.in_context is not None
    assert result.in_context.cost.forward_tokens == fixed.in_context.cost.forward_tokens
    assert result.cost.forward_tokens > fixed.cost.forward_tokens


def test_adapters_of_different_formats_are_different_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = learner_of()
    strategy = get_strategy("ttt_in_context")
    first = run(strategy, learner, replace(task_of(), prompt_format="standard"))
    second = run(strategy, learner, replace(task_of(), prompt_format="compact"))
    again = run(strategy, learner, replace(task_of(), prompt_format="standard"))
    assert first.cost.backward_tokens > 0
    assert second.cost.backward_tokens > 0
    assert again.cost.backward_tokens == 0


def test_adapters_of_a_queue_are_prefetched_in_the_chosen_format(monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(monkeypatch, "compact")
    learner = learner_of()
    counts: list[int] = []
    adapt_many = learner.trainer.adapt_many

    def noted(examples: Any, *rest: Any, **more: Any) -> Any:
        counts.append(len(examples))
        return adapt_many(examples, *rest, **more)

    monkeypatch.setattr(learner.trainer, "adapt_many", noted)
    tasks = [make_task([*PAIRS, ([n, 8], [8, n])], [1, n], answer=[n, 1], id=str(n)) for n in range(2)]
    results = Controller(learner, FixedPolicy("ttt_in_context"), budget=Budget()).solve_many(tasks)
    assert [result.format_choice["name"] for result in results] == ["compact", "compact"]
    assert [result.adapted for result in results] == [True, True]
    assert counts == [2], "both adapters are trained in one batch, and none again"
