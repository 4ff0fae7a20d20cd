"""What a learner promises for every architecture, tokenizer and precision: right numbers, and an unchanged base."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autottt.ttt_core.engine import answering
from autottt.ttt_core.engine.answering import Answer
from autottt.ttt_core.errors import AdaptationError, BaseChangedError, DeadlineError, TooLongError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.lora import optimizer
from autottt.ttt_core.lora.adapter import Adapter
from autottt.ttt_core.lora.training import TrainingRecord, train
from autottt.ttt_core.lora.weights import LoraWeights
from autottt.ttt_core.model import generation as decoding
from autottt.ttt_core.model.context_window import ContextWindow
from autottt.ttt_core.model.encoding import Encoded
from autottt.ttt_core.model.generation import TokenScores, decode
from autottt.ttt_core.model.loading import wrap_model
from autottt.ttt_core.model.memory import tokens_that_fit
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.augmentation import leave_one_out
from autottt.ttt_core.tasks.kinds import make_task
from autottt.ttt_core.tasks.prompts import PlainFormat
from autottt.ttt_core.tasks.task import Task
from autottt.ttt_core.testing import ARCHITECTURES, CONTEXT, tiny_model, tiny_tokenizer

QUICK = Recipe(rank=4, alpha=8.0, dropout=0.0, learning_rate=1e-2, max_steps=3, batch_size=2)


@dataclass(frozen=True)
class Case:
    """One combination. Together they cover every pair of architecture, precision, BOS and padding token."""

    architecture: str
    dtype: torch.dtype
    bos: bool
    pad: bool

    def __str__(self) -> str:
        tokens = [n for n, there in (("bos", self.bos), ("pad", self.pad)) if there] or ["bare"]
        return "-".join([self.architecture, str(self.dtype).removeprefix("torch."), *tokens])

    @property
    def exact(self) -> bool:
        return self.dtype == torch.float32

    @property
    def tolerance(self) -> float:
        """Of log-probabilities, in nats. In bf16, logits of about 10 are rounded to multiples of 1/16."""
        return 1e-4 if self.exact else 0.3

    def learner(self) -> Learner:
        return Learner.wrap(tiny_model(self.architecture, 0, self.dtype), tiny_tokenizer(bos=self.bos, pad=self.pad))


CASES = [
    Case(name, dtype, bool(i & 1) ^ flip, bool(i & 2) ^ flip)
    for i, name in enumerate(ARCHITECTURES)
    for dtype, flip in ((torch.float32, False), (torch.bfloat16, True))
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
pytestmark = pytest.mark.usefixtures("one_thread")
real_room = ContextWindow.max_new_tokens


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of random models do not end, and are nothing but noise; a few tokens show as much as many."""
    monkeypatch.setattr(ContextWindow, "max_new_tokens", lambda self, task: min(10, real_room(self, task)))
    monkeypatch.setattr(PlainFormat, "is_valid_prefix", lambda self, task, text: True)


def queries(task: Task) -> list[Task]:
    """Tasks that share their demonstrations; their queries have different lengths."""
    values = ((6, 2, 4), (1,), (1, 2, 3, 4, 5, 6, 7, 8), (9, 9))
    return [replace(task, query=v, answer=v[::-1], id=str(v)) for v in values]


def plain_log_probs(learner: Learner, ids: tuple[int, ...]) -> torch.Tensor:
    """[T - 1, V], from one plain pass over unpadded ids."""
    with torch.no_grad():
        logits = learner.loaded.model(input_ids=torch.tensor([ids])).logits[0, :-1]
    return logits.float().log_softmax(-1)


def close(a: TokenScores, b: TokenScores, tolerance: float) -> None:
    for one, other in ((a.log_probs, b.log_probs), (a.entropies, b.entropies), (a.margins, b.margins)):
        assert one == pytest.approx(other, abs=tolerance)


def same(a: Answer, b: Answer, case: Case) -> None:
    """In bf16 greedy texts may part, so there only the first token's scores are held together."""
    if case.exact:
        assert (a.text, a.value, a.ended, a.scores.hits) == (b.text, b.value, b.ended, b.scores.hits)
        close(a.scores, b.scores, case.tolerance)
    else:
        assert a.scores.log_probs[0] == pytest.approx(b.scores.log_probs[0], abs=case.tolerance)
        assert a.scores.entropies[0] == pytest.approx(b.scores.entropies[0], abs=case.tolerance)


def test_the_cases_cover_every_pair_of_settings() -> None:
    names = ("architecture", "dtype", "bos", "pad")
    for one, other in itertools.combinations(names, 2):
        values = [{getattr(c, n) for c in CASES} for n in (one, other)]
        assert {(getattr(c, one), getattr(c, other)) for c in CASES} == set(itertools.product(*values))


# --- numbers --------------------------------------------------------------------------------------------------------


@every_case
def test_greedy_answers_are_those_of_generate(case: Case, task: Task) -> None:
    learner = case.learner()
    prompt, room = learner.window.encode(task).ids, learner.window.max_new_tokens(task)
    learner.read(task)
    answer = learner.answer([task])[0]
    output = learner.loaded.model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False, max_new_tokens=room,
        pad_token_id=0,
    )  # fmt: skip
    new = output[0, len(prompt) :].tolist()
    ids = list(itertools.takewhile(lambda t: t != learner.loaded.tokenizer.eos_token_id, new))
    text = learner.loaded.tokenizer.decode(ids).split("\n\n")[0]
    if case.exact:
        assert answer.text == text
    else:
        log_probs = plain_log_probs(learner, (*prompt, new[0]))[-1]
        assert answer.scores.log_probs[0] == pytest.approx(float(log_probs.max()), abs=case.tolerance)
    assert len(answer.scores.hits) <= room
    assert all(answer.scores.hits)


@every_case
def test_batched_answers_equal_single_ones(case: Case, task: Task) -> None:
    learner = case.learner()
    other = task.with_demonstrations(task.demonstrations[::-1])
    for tasks in (queries(task), [task, other, task.with_demonstrations(())]):
        together = learner.answer(tasks)
        assert len(together) == len(tasks)
        for one, answer in zip(tasks, together, strict=True):
            learner.clear()
            same(answer, learner.answer([one])[0], case)


@every_case
def test_answers_with_a_cached_prefix_equal_those_without(case: Case, task: Task) -> None:
    learner = case.learner()
    tasks = queries(task)
    first = learner.answer(tasks)
    known = learner.answer(tasks)
    learner.clear()
    again = learner.answer(tasks)
    assert first == known == again
    for one, answer in zip(tasks, first, strict=True):
        (plain,) = decode(learner.loaded, [learner.window.encode(one)], [learner.window.max_new_tokens(one)])
        same(answer, replace(answer, text=plain.text, scores=plain.scores, ended=plain.ended), case)


@every_case
def test_sampled_answers_repeat_by_seed(case: Case, task: Task) -> None:
    learner = case.learner()
    texts = [[a.text for a in learner.answer([task] * 2, temperature=1.0, seed=s)] for s in (1, 1, 2)]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    assert texts[0][0] != texts[0][1]


@every_case
def test_scores_equal_those_of_a_plain_forward_pass(case: Case, task: Task) -> None:
    learner = case.learner()
    tasks = queries(task)
    for one, scored in zip(tasks, learner.score(tasks), strict=True):
        prompt = learner.window.encode(one, one.answer)
        log_probs = plain_log_probs(learner, prompt.ids)
        assert len(scored) == len(one.demonstrations) + 1
        for (begin, end), scores in zip(prompt.answers, scored, strict=True):
            ids = torch.tensor(prompt.ids[begin:end])
            at = log_probs[begin - 1 : end - 1]
            assert scores.log_probs == pytest.approx(at.gather(1, ids[:, None])[:, 0].tolist(), abs=case.tolerance)
            assert scores.entropies == pytest.approx((-at.exp() * at).sum(1).tolist(), abs=case.tolerance)
            if case.exact:
                assert scores.hits == tuple((at.argmax(1) == ids).tolist())
    read = learner.read(task).answers
    assert len(read) == len(task.demonstrations)
    for one, other in zip(read, learner.score([task])[0], strict=False):
        close(one, other, case.tolerance)


@every_architecture
def test_all_tokens_hit_exactly_when_greedy_decoding_gives_that_answer(architecture: str) -> None:
    learner = Learner.wrap(tiny_model(architecture), tiny_tokenizer())
    examples = [make_task([], x, answer=y) for x, y in (("a", "c"), ("b", "cd"), ("e", "d"))]
    recipe = Recipe(rank=16, alpha=32.0, dropout=0.0, learning_rate=1e-2, max_steps=40, batch_size=3)
    adapter = learner.adapt(examples, recipe)
    asked = [make_task([], x) for x in "abefgh"]
    given = learner.answer(asked, adapter)
    assert any(a.ended for a in given)
    candidates = [replace(t, answer=v) for t in asked for v in {"c", "cd", "d", *(a.text for a in given)}]
    told = [s[-1].all_hit for s in learner.score(candidates, adapter)]
    greedy = {t.query: a.value for t, a in zip(asked, given, strict=True)}
    assert told == [greedy[t.query] == t.answer for t in candidates]
    assert {True, False} == set(told)


# --- adapters -------------------------------------------------------------------------------------------------------


@every_case
def test_an_adapter_lowers_the_loss_and_acts_only_while_it_is_attached(case: Case, task: Task) -> None:
    learner = case.learner()
    before = learner.score([task])
    adapter = learner.adapt(leave_one_out(task), replace(QUICK, max_steps=10, batch_size=3))
    assert adapter.training.steps == 10
    assert adapter.training.stop_reason == "finished"
    assert adapter.training.losses[-1] < 0.7 * adapter.training.losses[0]
    adapted = learner.score([task], adapter)
    assert adapted[0][-1].total > before[0][-1].total + 1
    assert learner.score([task]) == before


@every_case
def test_a_new_adapter_changes_nothing(case: Case, task: Task) -> None:
    learner = case.learner()
    weights = LoraWeights.initial(learner.loaded.model, QUICK, [0])
    adapter = Adapter(weights, QUICK, TrainingRecord(0, (), 0.0, 0, "finished"), learner.base_hash)
    assert learner.score([task], adapter) == learner.score([task])
    assert learner.answer([task], adapter) == learner.answer([task])


@pytest.mark.parametrize("stacked", [False, True])
@every_case
def test_adapters_trained_in_one_batch_equal_those_trained_alone(
    case: Case, stacked: bool, task: Task, as_on_an_accelerator: Callable[[], None]
) -> None:
    """Apart by less than 0.01% of the way that training went in fp32, and 2% in bf16, in the mean."""
    if stacked:
        as_on_an_accelerator()
    learner = case.learner()
    model = learner.loaded.model.requires_grad_(False)
    held: list[list[Encoded]] = [
        [learner.window.encode(t, t.answer) for t in leave_one_out(task)],
        [learner.window.encode(t, t.answer) for t in leave_one_out(task.with_demonstrations(task.demonstrations[:2]))],
    ]
    together, trained = train(learner.loaded, held, QUICK, [5, 6])
    assert together.adapter_count == 2
    for index, (examples, seed) in enumerate(zip(held, (5, 6), strict=True)):
        alone, (training_alone,) = train(learner.loaded, [examples], QUICK, [seed])
        # Adam divides by the gradient's size: where that is next to nothing, rounding shows. bf16 rounds at 2^-8.
        assert trained[index].losses == pytest.approx(training_alone.losses, rel=1e-4 if case.exact else 0.05)
        begin = LoraWeights.initial(model, QUICK, [seed])
        flat = [torch.cat([t.flatten() for t in w.tensors]) for w in (alone, together.select(index), begin)]
        apart, way = (flat[0] - flat[1]).abs(), (flat[0] - flat[2]).abs()
        assert apart.mean() < (1e-4 if case.exact else 0.02) * way.mean()
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def test_adapters_of_another_base_are_refused(task: Task) -> None:
    adapter = Learner.wrap(tiny_model("llama", 1), tiny_tokenizer()).adapt(leave_one_out(task), QUICK)
    learner = Learner.wrap(tiny_model("llama", 2), tiny_tokenizer())
    for use in (learner.read, lambda t, a: learner.answer([t], a), lambda t, a: learner.score([t], a)):
        with pytest.raises(AdaptationError, match="another base model"):
            use(task, adapter)


def test_one_adapter_is_not_answered_with_the_prefix_of_another(task: Task) -> None:
    learner = Learner.wrap(tiny_model("llama"), tiny_tokenizer())
    for seed in range(6):  # adapters that are let go of leave their addresses to the next
        adapter = learner.adapt(leave_one_out(task), replace(QUICK, learning_rate=5e-2), seed=seed)
        at_once = learner.answer([task], adapter)
        learner.clear()
        assert learner.answer([task], adapter) == at_once
        del adapter


@pytest.mark.parametrize("adapted", [False, True])
def test_the_prompts_of_a_vote_read_their_demonstrations_once_for_all_queries(task: Task, adapted: bool) -> None:
    learner = Learner.wrap(tiny_model("llama"), tiny_tokenizer())
    adapter = learner.adapt(leave_one_out(task), replace(QUICK, learning_rate=5e-2)) if adapted else None
    length = learner.window.encode(task).shared_prefix_length

    def views(query: tuple[int, ...]) -> list[Task]:
        turned = task.with_demonstrations(task.demonstrations[::-1])
        return [replace(view, query=query, answer=None) for view in (task, turned)]

    def answered(query: tuple[int, ...]) -> tuple[list[list[Answer]], int]:
        meter = learner.guarded.meter()
        return learner.answers(views(query), adapter), meter.read().forward_tokens

    (_, first), (second, later) = answered((7, 7)), answered((6, 8))
    assert first - later == pytest.approx(2 * length, abs=10)
    learner.answer([task])
    assert answered((6, 8))[1] == later, "an answer to one prompt drops no prefixes of a vote"
    learner.clear()
    for one, wanted in zip(second, answered((6, 8))[0], strict=True):
        assert [a.text for a in one] == [a.text for a in wanted]


@pytest.mark.parametrize("limit", ["length", "tokens"])
def test_prefixes_of_a_vote_that_differ_in_length_or_are_long_are_not_kept(
    task: Task, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = Learner.wrap(tiny_model("llama"), tiny_tokenizer())
    views = [task, task.with_demonstrations(task.demonstrations[::-1])]
    if limit == "length":
        views[1] = task.with_demonstrations(task.demonstrations[:2])
    else:
        monkeypatch.setattr(answering, "MAX_VIEW_TOKENS", 2 * learner.window.encode(task).shared_prefix_length - 1)
    expected = [learner.answer([view])[0].text for view in views]
    tokens = []
    for _ in range(2):
        meter = learner.guarded.meter()
        assert [answer.text for (answer,) in zip(*learner.answers(views), strict=True)] == expected
        tokens.append(meter.read().forward_tokens)
    assert tokens[0] == tokens[1]


def test_the_same_seed_trains_the_same_adapter_in_any_random_state(task: Task) -> None:
    learner = Learner.wrap(tiny_model("llama"), tiny_tokenizer())
    recipe = replace(QUICK, dropout=0.3)
    tensors = []
    for state, seed in ((1, 0), (2, 0), (1, 3)):
        torch.manual_seed(state)
        random.seed(state)
        tensors.append(learner.adapt(leave_one_out(task), recipe, seed=seed).weights.tensors)
    assert all(map(torch.equal, tensors[0], tensors[1]))
    assert not all(map(torch.equal, tensors[0], tensors[2]))


def test_cached_adapters_are_bounded_and_those_cut_short_are_not_cached(
    task: Task, make_plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = Learner.wrap(tiny_model("llama"), tiny_tokenizer())
    adapter = learner.adapt(leave_one_out(task), QUICK)
    cut = replace(adapter, training=replace(adapter.training, stop_reason="deadline"))
    learner.adapters.cache.memory_bytes = 2 * adapter.weights.nbytes

    def get(key: str, trained: Adapter) -> tuple[Adapter, bool]:
        monkeypatch.setattr(learner.trainer, "adapt_many", lambda *_, **__: [trained])
        return learner.adapters.get_or_train(make_plan(key, leave_one_out(task), QUICK))

    assert get("cut", cut) == (cut, False)
    assert get("cut", adapter) == (adapter, False)
    assert get("cut", cut) == (adapter, True)
    for key in "abc":
        get(key, adapter)
    assert get("c", cut) == (adapter, True)
    assert get("a", cut) == (cut, False)


def test_costs_count_the_tokens_of_prompts_answers_and_training(task: Task) -> None:
    learner = Learner.wrap(tiny_model("llama"), tiny_tokenizer())
    prompt = len(learner.window.encode(task).ids)
    (answer,) = learner.answer([task])
    first = learner.guarded.charged
    assert first.forward_tokens == prompt + len(answer.scores.hits)
    learner.answer([task])
    assert (learner.guarded.charged - first).forward_tokens == first.forward_tokens - prompt, (
        "the whole prompt is read already"
    )
    before, other = learner.guarded.charged, replace(task, query=(9, 9, 9, 1))
    (answer,) = learner.answer([other])
    read = len(learner.window.encode(other).ids) - learner.window.encode(other).shared_prefix_length
    assert (learner.guarded.charged - before).forward_tokens == read + len(answer.scores.hits), (
        "what queries share is read already"
    )
    before = learner.guarded.charged
    adapter = learner.adapt(leave_one_out(task), QUICK)
    done = learner.guarded.charged - before
    assert done.forward_tokens == done.backward_tokens == adapter.training.tokens > 0


# --- refusals -------------------------------------------------------------------------------------------------------


@every_architecture
def test_a_task_past_the_context_is_refused_with_the_lengths(architecture: str) -> None:
    learner = Learner.wrap(tiny_model(architecture), tiny_tokenizer())
    long = make_task([("a" * 30, "b" * 30)] * 9, "c", answer="d", id="t7")
    needed = 1 + sum(len(f"Input: {'a' * 30}\nOutput: {'b' * 30}\n\n") for _ in range(9)) + len("Input: c\nOutput:")
    for use in (
        lambda: learner.read(long),
        lambda: learner.answer([long]),
        lambda: learner.score([long]),
        lambda: learner.adapt([long], QUICK),
    ):
        with pytest.raises(TooLongError, match=rf"t7: .*\b{needed}\b|\b{needed + 4}\b") as caught:
            use()
        assert str(CONTEXT) in str(caught.value)
    assert learner.guarded.charged.forward_tokens == 0


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_an_answer_in_a_batch_never_exceeds_the_context(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ContextWindow, "max_new_tokens", real_room)
    learner = Learner.wrap(tiny_model(architecture), tiny_tokenizer())
    full = make_task([("a" * 40, "b" * 20)] * 4, "a" * 40)
    filled = len(learner.window.encode(full).ids)
    # Its answer may take 2 x 40 + 16 tokens; with the other's room of 2 x 90 + 16 it would pass the context.
    assert filled + 96 <= CONTEXT < filled + 196
    roomy = make_task([("a", "b" * 90)], "a")
    together = learner.answer([full, roomy])
    assert [a.text for a in together] == [learner.answer([t])[0].text for t in (full, roomy)]


def test_an_answer_may_fill_the_context_after_a_long_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ContextWindow, "max_new_tokens", real_room)
    learner = Learner.wrap(tiny_model("llama"), tiny_tokenizer())
    empty = len(learner.window.encode(make_task([("", "b" * 9)], "c")).ids)

    def filled(left: int) -> Task:
        """A task whose prompt leaves `left` tokens."""
        return make_task([("a" * (CONTEXT - empty - left), "b" * 9)], "c")

    assert CONTEXT - len(learner.window.encode(filled(20)).ids) == 20 < learner.window.max_new_tokens(filled(20))
    for left in (9, 20):
        (answer,) = learner.answer([filled(left)])
        assert len(answer.scores.hits) <= left
    with pytest.raises(TooLongError, match="at least 9,"):
        learner.answer([filled(8)])


def test_scoring_and_training_need_an_answer(task: Task) -> None:
    learner = Learner.wrap(tiny_model("llama"), tiny_tokenizer())
    for use in (lambda t: learner.score([t]), lambda t: learner.adapt([t], QUICK)):
        with pytest.raises(AdaptationError, match="right answer"):
            use(replace(task, answer=None))


# --- the base comes back --------------------------------------------------------------------------------------------


def odd(model: nn.Module) -> None:
    """Puts a model and the process in a state that nothing sets by accident."""
    random.seed(11)
    np.random.seed(12)
    torch.manual_seed(13)
    for index, module in enumerate(model.modules()):
        module.training = index % 3 == 0
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 2 == 0)
        parameter.grad = torch.ones_like(parameter) if index % 4 == 0 else None
    next(m for m in model.modules() if isinstance(m, nn.Embedding)).register_forward_hook(lambda *_: None)


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong at the nth call of a function."""

    name: str
    call: int
    owner: Callable[[nn.Module], Any]
    """From the model to what holds the function."""
    function: str
    after: bool = False
    """Whether the function does its work first."""

    def __str__(self) -> str:
        return self.name.replace(" ", "-")

    def set(self, patch: pytest.MonkeyPatch, model: nn.Module, do: Callable[[Any], Any]) -> list[int]:
        """From now on `do` gets the result of the nth call (None when it comes before). Returns a list of the hits."""
        owner = self.owner(model)
        real, calls, hits = getattr(owner, self.function), itertools.count(1), list[int]()

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if next(calls) != self.call:
                return real(*args, **kwargs)
            hits.append(self.call)
            return do(real(*args, **kwargs) if self.after else None)

        patch.setattr(owner, self.function, wrapped)
        return hits


def layer(model: nn.Module) -> type:
    """The class of the feed-forward layers: each pass calls it twice."""
    return next(type(m) for n, m in model.named_modules() if n.endswith("1.mlp"))


MODULE = lambda _: nn.Module  # noqa: E731
FAULTS: dict[str, list[Fault]] = {
    "answer": [
        Fault("attaching the first hook", 1, MODULE, "register_forward_hook", after=True),
        Fault("attaching the fifth hook", 5, MODULE, "register_forward_hook"),
        Fault("watching the head", 1, MODULE, "register_forward_pre_hook", after=True),
        Fault("reading the prefix", 2, layer, "forward"),
        Fault("decoding the first token", 4, layer, "forward"),
        Fault("decoding the third token", 7, layer, "forward", after=True),
    ],
    "read": [Fault("reading", 1, layer, "forward", after=True)],
    "score": [Fault("scoring", 2, layer, "forward")],
    "adapt": [
        Fault("attaching to train", 3, MODULE, "register_forward_hook", after=True),
        Fault("measuring a row", 2, layer, "forward"),
        Fault("the first training pass", 4, layer, "forward"),
        Fault("the last training pass", 7, layer, "forward", after=True),
        Fault("before backward", 1, lambda _: torch.autograd, "grad"),
        Fault("after backward", 2, lambda _: torch.autograd, "grad", after=True),
        Fault("clipping", 2, lambda _: optimizer, "clip_gradients"),
        Fault("before the optimizer's step", 1, lambda _: torch.optim.AdamW, "step"),
        Fault("after the optimizer's step", 3, lambda _: torch.optim.AdamW, "step", after=True),
    ],
}
OVERCOME = [
    "the first training pass", "the last training pass", "before backward", "after backward",
    "decoding the first token", "decoding the third token", "scoring",
]  # fmt: skip
"""Where memory that runs out once fails nothing: the pass is done again in two halves."""
ERRORS: list[BaseException] = [
    RuntimeError("a fault"),
    KeyboardInterrupt(),
    torch.OutOfMemoryError("out of memory"),
]


def work(learner: Learner, task: Task, adapter: Adapter) -> dict[str, Callable[[], Any]]:
    return {
        "read": lambda: learner.read(task, adapter),
        "answer": lambda: learner.answer(queries(task), adapter),
        "score": lambda: learner.score(queries(task), adapter),
        "adapt": lambda: learner.adapt(leave_one_out(task), QUICK, seed=1),
    }


def numbers(output: Any) -> list[float]:
    """What an action came to: losses, or the scores of answers."""
    if isinstance(output, Adapter):
        return list(output.training.losses)
    scores = [a.scores for a in output] if isinstance(output[0], Answer) else [s for row in output for s in row]
    return [x for one in scores for x in one.log_probs]


@cache
def of_old(architecture: str, task: Task) -> tuple[Any, ...]:
    """How a learner behaves to which nothing has happened."""
    learner = Learner.wrap(tiny_model(architecture), tiny_tokenizer(pad=False))
    return behaviour(learner, task, learner.adapt(leave_one_out(task), QUICK))


def behaviour(learner: Learner, task: Task, adapter: Adapter) -> tuple[Any, ...]:
    trained = learner.adapt(leave_one_out(task), replace(QUICK, max_steps=1), seed=2)
    return (
        learner.answer([task]),
        learner.answer([task], adapter),
        learner.score([task], adapter),
        trained.training.losses,
        [t.tolist() for t in trained.weights.tensors],
    )


@pytest.mark.parametrize(
    ("architecture", "error"),
    [*(("llama", e) for e in ERRORS), ("gpt2", ERRORS[1])],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
@pytest.mark.parametrize(("action", "fault"), [(a, f) for a, faults in FAULTS.items() for f in faults], ids=str)
def test_everything_is_restored_after_an_error(
    architecture: str, error: BaseException, action: str, fault: Fault, task: Task, unchanged: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    model = tiny_model(architecture)
    odd(model)
    learner = Learner.wrap(model, tiny_tokenizer(pad=False))
    adapter = learner.adapt(leave_one_out(task), QUICK)
    no_memory = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    expected = AdaptationError if no_memory else type(error)

    def fail(*_: Any) -> None:
        raise error

    do = work(learner, task, adapter)[action]
    learner.clear()
    with unchanged(model):
        with monkeypatch.context() as patch:
            hits = fault.set(patch, model, fail)
            if no_memory and fault.name in OVERCOME:
                output = do()
            else:
                with pytest.raises(expected):
                    do()
            assert hits
        if no_memory and fault.name in OVERCOME:
            assert numbers(output) == pytest.approx(numbers(do()), abs=1e-4), "done again, not done twice"
        proof = learner.verify(full=True)
        assert behaviour(learner, task, adapter) == of_old(architecture, task)
    assert proof.method == "full"
    assert proof.hash == learner.base_hash


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("action", FAULTS)
def test_everything_is_restored_after_success(architecture: str, action: str, task: Task, unchanged: Any) -> None:
    model = tiny_model(architecture)
    odd(model)
    learner = Learner.wrap(model, tiny_tokenizer())
    adapter = learner.adapt(leave_one_out(task), replace(QUICK, dropout=0.5))
    for context in (torch.enable_grad(), torch.no_grad(), torch.inference_mode()):
        with context, unchanged(model):
            assert work(learner, task, adapter)[action]()
            assert learner.verify().method == "pointers"


def poison_first(tensors: list[torch.Tensor]) -> None:
    with torch.no_grad():
        tensors[0].view(-1)[0] = torch.nan


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("stage", ["forward", "gradient", "weights"])
def test_non_finite_numbers_fail_the_training_and_everything_is_restored(
    architecture: str, stage: str, task: Task, unchanged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(architecture)
    odd(model)
    learner = Learner.wrap(model, tiny_tokenizer(pad=False))
    adapter = learner.adapt(leave_one_out(task), QUICK)
    real_clip, real_step = optimizer.clip_gradients, torch.optim.AdamW.step

    def clip(gradients: torch.Tensor, limits: list[float]) -> None:
        real_clip(gradients, limits)
        poison_first([gradients])

    def step(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> None:
        real_step(self, *args, **kwargs)
        poison_first(self.param_groups[0]["params"])

    with unchanged(model):
        with monkeypatch.context() as patch:
            if stage == "forward":
                Fault("", 3, layer, "forward", after=True).set(patch, model, lambda output: output * torch.nan)
            elif stage == "gradient":
                patch.setattr(optimizer, "clip_gradients", clip)
            else:
                patch.setattr(torch.optim.AdamW, "step", step)
            one_step = replace(QUICK, max_steps=2 if stage == "forward" else 1)
            with pytest.raises(AdaptationError, match="not finite"):
                learner.adapt(leave_one_out(task), one_step)
        learner.verify(full=True)
        assert behaviour(learner, task, adapter) == of_old(architecture, task)


@pytest.mark.parametrize("error", [MemoryError("none left"), RuntimeError("[enforce fail] can't allocate memory")])
def test_memory_that_runs_out_fails_the_training(error: Exception, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    learner = Learner.wrap(model, tiny_tokenizer())

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(layer(model), "forward", fail)
    with pytest.raises(AdaptationError, match=r"out of memory while training \(batch 2\)"):
        learner.adapt(leave_one_out(task), QUICK)


def test_a_failing_callback_fails_the_training_and_everything_is_restored(task: Task, unchanged: Any) -> None:
    model = tiny_model("llama")
    odd(model)
    learner = Learner.wrap(model, tiny_tokenizer())

    def stop(step: int, loss: float) -> None:
        raise LookupError(f"at {step}")

    with unchanged(model), pytest.raises(LookupError, match="at 1"):
        learner.adapt(leave_one_out(task), QUICK, on_step=stop)
    assert learner.guarded.charged.backward_tokens > 0, "a failed training is charged for what it did"


def test_a_model_in_training_mode_is_returned_in_training_mode(task: Task, unchanged: Any) -> None:
    model = tiny_model("llama").train().requires_grad_(True)
    learner = Learner.wrap(model, tiny_tokenizer())
    with unchanged(model):
        adapter = learner.adapt(leave_one_out(task), QUICK)
        learner.answer([task], adapter)
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


# --- the proof ------------------------------------------------------------------------------------------------------


def write_in_place(model: nn.Module) -> None:
    with torch.no_grad():
        next(model.parameters()).mul_(2.0)


def replace_a_parameter(model: Any) -> None:
    weight = model.model.layers[1].mlp.up_proj.weight
    model.model.layers[1].mlp.up_proj.weight = nn.Parameter(weight.detach().clone())


def untie_the_head(model: Any) -> None:
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())


def write_to_a_buffer(model: Any) -> None:
    model.model.rotary_emb.inv_freq.add_(1.0)


def swap_the_data(model: nn.Module) -> None:
    parameter = next(model.parameters())
    parameter.data = parameter.data.clone()


def write_through_data(model: nn.Module) -> None:
    next(model.parameters()).data.view(-1)[0] += 1.0


@pytest.mark.parametrize(
    ("change", "full"),
    [
        (write_in_place, False), (replace_a_parameter, False), (untie_the_head, False), (write_to_a_buffer, False),
        (swap_the_data, False), (write_through_data, True),
    ],
)  # fmt: skip
def test_a_changed_base_is_detected_and_the_learner_refuses_all_work(
    change: Callable[[nn.Module], None], full: bool, task: Task
) -> None:
    model = tiny_model("llama")
    learner = Learner.wrap(model, tiny_tokenizer())
    adapter = learner.adapt(leave_one_out(task), QUICK)
    learner.verify(full=True)
    change(model)
    with pytest.raises(BaseChangedError):
        learner.verify(full=full)
    for use in (*work(learner, task, adapter).values(), learner.verify, lambda: learner.verify(full=True)):
        with pytest.raises(BaseChangedError, match="answers no more"):
            use()


def test_the_learner_decides_how_to_verify_unless_overridden() -> None:
    thorough = Learner(Learner.wrap(tiny_model("llama"), tiny_tokenizer()).loaded, verify="full")
    assert thorough.verify().method == "full"
    assert thorough.verify(full=False).method == "pointers"
    with pytest.raises(ValueError, match="'pointers' or 'full'"):
        Learner(thorough.loaded, verify="sometimes")  # type: ignore[arg-type]


def test_a_bound_on_memory_changes_batch_sizes_and_no_answer(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    asked = [*queries(task), task.with_demonstrations(task.demonstrations[:2])]
    sizes: list[int] = []
    real = decoding._BatchDecoder.run

    def run(self: decoding._BatchDecoder) -> Any:
        sizes.append(len(self.rows))
        return real(self)

    monkeypatch.setattr(decoding._BatchDecoder, "run", run)
    results = []
    for memory_bytes in (None, 1):
        learner = Learner(wrap_model(model, tiny_tokenizer()), memory_bytes=memory_bytes)
        results.append(([a.text for a in learner.answer(asked)], [s[-1].all_hit for s in learner.score(queries(task))]))
    assert results[0] == results[1]
    assert sizes == [len(asked), *[1] * len(asked)]


@every_architecture
def test_tokens_per_batch_follow_the_model_and_the_bound(architecture: str) -> None:
    model = tiny_model(architecture)
    config = model.config
    least = 4 * (3 * config.vocab_size + 8 * config.hidden_size)  # of a token, in fp32, without cache and MLP
    assert (1 << 20) / (4 * least) < tokens_that_fit(model, 1 << 20) < (1 << 20) / least
    assert tokens_that_fit(model, 2 << 20) == pytest.approx(2 * tokens_that_fit(model, 1 << 20), abs=1)
    assert tokens_that_fit(model, None) > tokens_that_fit(model, 1 << 20)


def stop_after(calls: int) -> Callable[[], bool]:
    """A stop condition that is false for the first `calls` calls, then true."""
    count = itertools.count(1)
    return lambda: next(count) > calls


@every_architecture
def test_reading_and_scoring_stop_at_any_check(architecture: str, task: Task, unchanged: Any) -> None:
    learner = Learner.wrap(tiny_model(architecture), tiny_tokenizer())
    for work in (lambda: learner.read(task), lambda: learner.score([task])):
        total = itertools.count()
        with learner.guarded.stop_when(lambda: next(total) < 0):  # noqa: B023
            expected = work()
        learner.clear()
        for calls in range(next(total)):
            stopped = learner.guarded.stop_when(stop_after(calls))
            with unchanged(learner.loaded.model), stopped, pytest.raises(DeadlineError, match="allow more time"):
                work()
        assert work() == expected


def test_stopped_decoding_returns_the_tokens_so_far(task: Task, unchanged: Any) -> None:
    learner = Learner.wrap(tiny_model("llama"), tiny_tokenizer())
    whole = learner.answer([task])[0]
    lengths = set()
    for calls in range(20, 200, 7):
        learner.read(task)
        with unchanged(learner.loaded.model), learner.guarded.stop_when(stop_after(calls)):
            (answer,) = learner.answer([task])
        assert whole.text.startswith(answer.text)
        assert answer.ended <= (answer.text == whole.text)
        lengths.add(len(answer.scores.hits))
    assert len(lengths) > 3


def test_stopped_training_returns_the_weights_of_its_last_complete_step(task: Task, unchanged: Any) -> None:
    learner = Learner.wrap(tiny_model("llama"), tiny_tokenizer())
    recipe = Recipe(rank=2, alpha=2.0, dropout=0.0, learning_rate=1e-2, max_steps=6, batch_size=2, warmup_ratio=0.0)
    after_step: dict[int, LoraWeights] = {}
    uncut = learner.adapt(leave_one_out(task), recipe)
    stopped_after = set()
    for calls in range(0, 120, 7):
        steps: list[float] = []
        with unchanged(learner.loaded.model), learner.guarded.stop_when(stop_after(calls)):
            try:
                adapter = learner.adapt(
                    leave_one_out(task), recipe, on_step=lambda _, loss, seen=steps: seen.append(loss)
                )
            except DeadlineError:
                assert not steps, "it is stopped before the first step"
                continue
        record = adapter.training
        assert record.steps == len(steps)
        assert record.stop_reason == ("deadline" if record.steps < recipe.max_steps else "finished")
        assert record.losses == uncut.training.losses[: record.steps]
        same_steps = after_step.setdefault(record.steps, adapter.weights)
        assert all(map(torch.equal, adapter.weights.tensors, same_steps.tensors)), "nothing of an incomplete step"
        stopped_after.add(record.steps)
    assert len(stopped_after) > 3


def test_no_pass_runs_after_training_is_stopped(task: Task) -> None:
    learner = Learner.wrap(tiny_model("llama"), tiny_tokenizer())
    checks, steps = itertools.count(), []

    def should_stop() -> bool:
        return len(steps) == 3 and next(checks) >= 5

    with learner.guarded.stop_when(should_stop):
        learner.adapt(leave_one_out(task), replace(QUICK, max_steps=6), on_step=lambda step, _: steps.append(step))
    assert next(checks) == 6
