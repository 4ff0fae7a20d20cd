"""Token ids: the same whatever comes after them, with every answer where it is said to be."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from autottt.ttt_core.errors import ModelError, TooLongError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.model.context_window import ContextWindow
from autottt.ttt_core.model.encoding import (
    PaddedBatch,
    batches_by_tokens,
    encode,
    forward,
    logits_only_at,
    pad,
    pad_id_of,
    start_ids,
)
from autottt.ttt_core.model.loading import LoadedModel, wrap_model
from autottt.ttt_core.pretraining.tokenizer import build_tokenizer
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.kinds import kind_of, make_task
from autottt.ttt_core.tasks.task import Task
from autottt.ttt_core.testing import ARCHITECTURES, CONTEXT, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
TOKENIZERS: dict[str, tuple[PreTrainedTokenizerBase, str]] = {
    "bytes-with-bos": (tiny_tokenizer(), "standard"),
    "bytes": (tiny_tokenizer(bos=False, pad=False), "standard"),
    "chat": (tiny_tokenizer(chat=True), "chat"),
    "bundled": (build_tokenizer(), "compact"),
}
TASKS = [
    make_task([([1, 2], [2, 1]), ([40, 56], [56, 40])], [3, 14], answer=[14, 3], instruction="Reverse."),
    make_task([([[1, 2], [3, 4]], [[0]])], [[8], [9]], answer=[[1, 2], [2, 1]]),
    make_task([("été", "ÉTÉ"), ("a b", "A B")], "c", answer="C"),
    make_task([], [1], answer=[2]),
]
every_tokenizer = pytest.mark.parametrize("name", TOKENIZERS)
every_task = pytest.mark.parametrize("task", TASKS, ids=lambda t: f"{t.kind}{len(t.demonstrations)}")


def loaded_with(name: str) -> LoadedModel:
    tokenizer, form = TOKENIZERS[name]
    return wrap_model(tiny_model("llama"), tokenizer, prompt_format=form)


@every_tokenizer
@every_task
def test_answers_stand_where_they_are_said_to_stand(name: str, task: Task) -> None:
    loaded = loaded_with(name)
    encoded = encode(loaded, task, task.answer)
    outputs = [*(d.output for d in task.demonstrations), task.answer]
    assert len(encoded.answers) == len(outputs)
    for (begin, end), value in zip(encoded.answers, outputs, strict=True):
        assert value is not None
        text = loaded.tokenizer.decode(list(encoded.ids[begin:end]))
        shown = kind_of(task).render(value, loaded.format.notation)
        # Decoding stops at the token that ends a turn, so the line break after it is no part of the answer.
        assert text == (shown + "<|end|>" if name == "chat" else " " + shown + loaded.format.ends[0])


@every_tokenizer
@every_task
def test_ids_do_not_depend_on_what_comes_after(name: str, task: Task) -> None:
    loaded = loaded_with(name)
    prompt, answered = encode(loaded, task), encode(loaded, task, task.answer)
    assert answered.ids[: len(prompt.ids)] == prompt.ids
    assert answered.answers[:-1] == prompt.answers


@every_tokenizer
@every_task
def test_the_shared_prefix_depends_only_on_the_demonstrations(name: str, task: Task) -> None:
    loaded = loaded_with(name)
    first = encode(loaded, task)
    query = task.demonstrations[0].input if task.demonstrations else (7, 8)
    second = encode(loaded, replace(task, query=query))
    assert first.shared_prefix_length == second.shared_prefix_length < min(len(first.ids), len(second.ids))
    assert first.ids[: first.shared_prefix_length] == second.ids[: first.shared_prefix_length]
    if task.demonstrations:
        assert first.shared_prefix_length >= first.answers[-1][1]


@pytest.mark.parametrize("bos", [True, False])
def test_the_text_begins_as_the_tokenizer_begins_it(bos: bool) -> None:
    loaded = wrap_model(tiny_model("llama"), tiny_tokenizer(bos=bos))
    ids = encode(loaded, TASKS[0]).ids
    assert start_ids(loaded, loaded.format) == ((loaded.tokenizer.bos_token_id,) if bos else ())
    assert list(ids) == loaded.tokenizer("".join(p.text for p in loaded.format.pieces(TASKS[0]))).input_ids
    chat = loaded_with("chat")
    assert start_ids(chat, chat.format) == (), "a chat template brings its own beginning"


def with_start(text: str, *special: str) -> PreTrainedTokenizerFast:
    """A tokenizer whose template puts other tokens than BOS around a text, `$A`."""
    tokenizer = tiny_tokenizer(bos=False)
    core = tokenizer.backend_tokenizer
    ids = [(name, core.token_to_id(name)) for name in special]
    core.post_processor = processors.TemplateProcessing(single=text, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>")


@pytest.mark.parametrize(
    ("template", "special"), [("<|start|> <|end|> $A", ["<|start|>", "<|end|>"]), ("$A <eos>", ["<eos>"])]
)
def test_all_that_the_tokenizer_puts_before_a_text_begins_the_prompt(template: str, special: list[str]) -> None:
    tokenizer = with_start(template, *special)
    loaded = wrap_model(tiny_model("llama"), tokenizer, prompt_format="standard")
    text = "".join(piece.text for piece in loaded.format.pieces(TASKS[0]))
    whole = [id for id in tokenizer(text).input_ids if id != tokenizer.eos_token_id]
    assert list(encode(loaded, TASKS[0]).ids) == whole


@pytest.mark.parametrize("by_normalizer", [True, False])
@pytest.mark.parametrize("form", ["standard", "compact"])
def test_only_the_text_gets_the_space_that_a_tokenizer_puts_before_it(by_normalizer: bool, form: str) -> None:
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    if by_normalizer:  # as Llama 2's
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    special = ["<unk>", *(f"<0x{n:02X}>" for n in range(256))]
    core.train_from_iterator(
        ["Input: dog Output: god", "a word and another"] * 3,
        trainers.BpeTrainer(vocab_size=320, special_tokens=special),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")
    model = tiny_model("llama")
    model.resize_token_embeddings(512, mean_resizing=False)
    loaded = wrap_model(model, tokenizer, prompt_format=form)
    task = make_task([("dog", "god"), ("a word", "drow a")], "and", answer="dna")
    encoded = encode(loaded, task, task.answer)
    text = "".join(piece.text for piece in loaded.format.pieces(task, task.answer))
    assert tokenizer.decode(encoded.ids) == text
    for (begin, end), answer in zip(encoded.answers, ("god", "drow a", "dna"), strict=True):
        assert tokenizer.decode(encoded.ids[begin:end]).strip() == answer


def test_a_prompt_may_fill_the_context_to_the_last_token() -> None:
    loaded = loaded_with("bytes")
    task = make_task([], "a", id="t9")
    size = len(encode(loaded, task).ids)
    assert len(encode(loaded, task, max_new_tokens=CONTEXT - size).ids) == size
    with pytest.raises(TooLongError, match=rf"t9: .* {size} tokens .* {CONTEXT - size + 1}, .* {CONTEXT} tokens"):
        encode(loaded, task, max_new_tokens=CONTEXT - size + 1)


def test_padding_without_a_padding_token_is_any_token() -> None:
    assert pad_id_of(loaded_with("bytes")) == 0
    assert pad_id_of(loaded_with("bundled")) == build_tokenizer().pad_token_id


def test_a_padding_token_that_the_model_has_no_embedding_for_pads_nothing() -> None:
    tokenizer, model = tiny_tokenizer(pad=False), tiny_model("llama")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    model.resize_token_embeddings(tokenizer.pad_token_id)
    learner = Learner.wrap(model, tokenizer, prompt_format="standard")
    queries = [make_task([([1, 2], [2, 1])], [3] * length, answer=[3]) for length in (1, 4)]
    assert [len(scores) for scores in learner.score(queries)] == [2, 2]
    assert len(learner.answer(queries)) == 2
    assert learner.adapt(queries, Recipe(rank=2, max_steps=1, batch_size=2)).training.steps == 1


@pytest.mark.parametrize(
    ("left", "ids", "mask", "positions"),
    [
        (True, [[9, 1], [2, 3]], [[0, 1], [1, 1]], [[0, 0], [0, 1]]),
        (False, [[1, 9], [2, 3]], [[1, 0], [1, 1]], [[0, 0], [0, 1]]),
    ],
)
def test_rows_are_padded_to_the_longest(left: bool, ids: Any, mask: Any, positions: Any) -> None:
    batch = pad([[1], [2, 3]], 9, torch.device("cpu"), left=left)
    assert (batch.ids.tolist(), batch.mask.tolist(), batch.positions.tolist()) == (ids, mask, positions)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_logits_at_chosen_positions_are_those_of_a_whole_pass(architecture: str) -> None:
    model = tiny_model(architecture)
    batch: PaddedBatch = pad([[5, 6, 7, 8], [9, 10]], 0, model.device, left=False)
    chosen = torch.tensor([[True, False, False, True], [False, True, False, False]])
    whole = model(input_ids=batch.ids, attention_mask=batch.mask).logits
    assert torch.allclose(forward(model, batch, chosen), whole[chosen], atol=1e-5)


def test_the_head_sees_everything_again_after_an_error() -> None:
    model = tiny_model("llama")
    with pytest.raises(LookupError), logits_only_at(model, torch.tensor([[True, False]])):
        raise LookupError
    assert not model.get_output_embeddings()._forward_pre_hooks
    assert model(input_ids=torch.tensor([[1, 2]])).logits.shape[1] == 2


def test_chunks_keep_to_their_budget_and_leave_nothing_out() -> None:
    lengths = [5, 1, 9, 4, 4, 30, 2]
    groups = batches_by_tokens(lengths, 12)
    assert sorted(itertools.chain(*groups)) == list(range(len(lengths)))
    assert all(max(lengths[i] for i in g) * len(g) <= 12 or len(g) == 1 for g in groups)
    assert [sorted(lengths[i] for i in g) for g in groups] == [[1, 2, 4], [4, 5], [9], [30]]
    assert batches_by_tokens([], 12) == []


def numbered(count: int) -> Task:
    return make_task([([n, n + 1], [n + 1, n]) for n in range(count)], [1, 2], id="t8")


OVERSIZED: dict[str, Any] = {
    "demonstrations": lambda: numbered(100_000),
    "demonstrations within the count": lambda: replace(
        numbered(1), demonstrations=tuple(numbered(400).demonstrations), query=tuple(range(100_000))
    ),
    "a query": lambda: make_task([("a", "b")], "x y" * 333_333, id="t8"),
    "an output": lambda: make_task([("a", "ab" * 500_000)], "x", id="t8"),
    "an instruction": lambda: make_task([("a", "b")], "x", instruction="y\n" * 500_000, id="t8"),
    "a list": lambda: make_task([], list(range(300_000)), id="t8"),
    "a row": lambda: make_task([], [[1] * 300_000], kind="grid1d", id="t8"),
}


@every_tokenizer
@pytest.mark.parametrize("size", OVERSIZED)
def test_a_task_far_longer_than_the_context_is_refused_at_once(size: str, name: str) -> None:
    loaded = loaded_with(name)
    loaded.tokens("")
    task = OVERSIZED[size]()
    window = ContextWindow(loaded)
    began = time.process_time()
    for refused in (lambda: encode(loaded, task), lambda: window.encode(task), lambda: window.encode(task, task.query)):
        with pytest.raises(
            TooLongError, match=r"t8: the prompt is too long: it has (at least|more than) \d+ tokens.* fewer or smaller"
        ):
            refused()
    assert not window.fits(task)
    assert time.process_time() - began < 1


def test_the_length_of_a_prompt_within_reach_of_the_context_is_counted() -> None:
    loaded = loaded_with("bytes")
    size = len(encode(loaded, make_task([], "")).ids)
    with pytest.raises(
        TooLongError, match=rf"the prompt is too long: it has {size + 600} tokens, more than the {CONTEXT} tokens"
    ):
        encode(loaded, make_task([], "a" * 600))


@pytest.mark.parametrize(
    ("pairs", "query", "limit"),
    [
        ([], "a" * 50, 2 * 50 + 16),
        ([("a" * 50, "b" * 50), ("a" * 10, "b" * 10)], "a" * 50, 2 * 50 + 16),
        ([("a" * 100, "b"), ("a" * 100, "b" * 3)], "a" * 200, 4 * 3 * 2 + 16),  # a word for a long text
        ([("a" * 100, "b" * 10), ("a" * 10, "b" * 2)], "a" * 50, 4 * 10 + 16),  # the largest ratio counts
        ([("a" * 100, "b" * 40)], "a" * 10, 2 * 40 + 16),
        ([("", "b" * 5)], "a" * 10, 2 * 10 + 16),
    ],
)
def test_an_answer_may_be_longer_than_shown_in_proportion_to_the_query(
    pairs: list[tuple[str, str]], query: str, limit: int
) -> None:
    window = ContextWindow(loaded_with("bytes"))
    assert window.max_new_tokens(make_task(pairs, query)) == limit


def test_a_tokenizer_of_another_model_is_an_error_before_the_model_reads() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama")
    unused = model.get_input_embeddings().num_embeddings - len(tokenizer)
    tokenizer.add_tokens([*(f"<{n}>" for n in range(unused)), "[1, 2]"])
    window = ContextWindow(wrap_model(model, tokenizer, prompt_format="standard"))
    assert window.fits(make_task([], [1]))
    with pytest.raises(
        ModelError, match=rf"gives the id {len(tokenizer) - 1}, but the model has embeddings for ids below"
    ):
        window.encode(make_task([], [1, 2]))
