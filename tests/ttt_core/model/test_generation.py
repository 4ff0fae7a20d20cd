"""Decoding: when an answer ends, what is scored, and what a sampled token comes from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers

from autottt.ttt_core.lora.weights import LoraWeights
from autottt.ttt_core.model import generation as decoding
from autottt.ttt_core.model.encoding import Encoded, PaddedBatch, encode
from autottt.ttt_core.model.generation import (
    Generated,
    TokenScores,
    decode,
    read_prefix,
    read_prefixes,
    token_scores,
)
from autottt.ttt_core.model.loading import LoadedModel, wrap_model
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.kinds import make_task
from autottt.ttt_core.testing import ARCHITECTURES, VOCABULARY, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")


MPT = "mpt"
"""An architecture that counts places in the cache as positions, so that it does not support padding."""


def loaded_model(architecture: str) -> LoadedModel:
    if architecture != MPT:
        return wrap_model(tiny_model(architecture), tiny_tokenizer())
    torch.manual_seed(0)
    config = transformers.MptConfig(
        vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4, max_seq_len=512, initializer_range=0.25
    )
    loaded = wrap_model(transformers.MptForCausalLM(config).eval(), tiny_tokenizer())
    assert not loaded.supports_padding
    return loaded


@pytest.fixture
def loaded() -> LoadedModel:
    return wrap_model(tiny_model("llama"), tiny_tokenizer())


def scripted(monkeypatch: pytest.MonkeyPatch, loaded: LoadedModel, rows: list[str], sure: float = 30.0) -> list[Any]:
    """The model writes these texts, a token a step, then `z` for ever. Returns the batches that it was given."""
    scripts = [loaded.tokenizer.encode(text, add_special_tokens=False) for text in rows]
    (rest,) = loaded.tokenizer.encode("z", add_special_tokens=False)
    seen: list[PaddedBatch] = []

    def forward(model: Any, batch: PaddedBatch, *_: Any) -> torch.Tensor:
        step = len(seen)
        seen.append(batch)
        logits = torch.zeros(len(scripts), VOCABULARY)
        for row, script in zip(logits, scripts, strict=True):
            row[script[step] if step < len(script) else rest] = sure
        return logits

    monkeypatch.setattr(decoding, "COMPACTION_SHARE", -1.0)  # a script belongs to a row of the batch
    monkeypatch.setattr(decoding, "forward", forward)
    return seen


def written(loaded: LoadedModel, limits: list[int], **settings: Any) -> list[Generated]:
    prompts = [Encoded(tuple(range(5 + 20 * i)), (), 1, loaded.format.ends) for i in range(len(limits))]
    return decode(loaded, prompts, limits, **settings)


@pytest.mark.parametrize(
    ("script", "text", "tokens"),
    [
        ("ab\n\ncd", "ab", 4), ("a<eos>b", "a", 2), ("\n\n", "", 2), ("a\nb\n\n", "a\nb", 5), ("é\n\n", "é", 4),
        ("<eos>", "", 1),
    ],
)  # fmt: skip
def test_an_answer_ends_at_the_end_marker_or_at_an_end_token(
    script: str, text: str, tokens: int, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = scripted(monkeypatch, loaded, [script])
    (answer,) = written(loaded, [20])
    assert (answer.text, answer.ended, len(answer.scores.hits)) == (text, True, tokens)
    assert len(seen) == tokens, "nothing is decoded after the end"


def test_end_tokens_of_the_generation_config_end_an_answer(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    (q,) = loaded.tokenizer.encode("q", add_special_tokens=False)
    loaded.model.generation_config.eos_token_id = [q, 3]
    scripted(monkeypatch, loaded, ["abqc"])
    assert written(loaded, [20])[0].text == "ab"


def test_rows_end_independently_within_their_limits(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = scripted(monkeypatch, loaded, ["a\n\n", "abcdef\n\n", "abcdef"])
    answers = written(loaded, [20, 20, 4])
    assert [(g.text, g.ended, len(g.scores.hits)) for g in answers] == [
        ("a", True, 3), ("abcdef", True, 8), ("abcd", False, 4)
    ]  # fmt: skip
    assert len(seen) == 8
    # A row that is done stays where it is: its positions would leave the context.
    assert [b.positions[:, -1].tolist() for b in seen] == [
        [4, 24, 44], [5, 25, 45], [6, 26, 46], [6, 27, 47], [6, 28, 47], [6, 29, 47], [6, 30, 47], [6, 31, 47],
    ]  # fmt: skip


def test_answers_come_in_the_order_of_the_prompts(loaded: LoadedModel) -> None:
    prompts = [Encoded(tuple(range(n)), (), 1, loaded.format.ends) for n in (9, 3, 6)]
    alone = [decode(loaded, [p], [4])[0].text for p in prompts]
    assert [g.text for g in decode(loaded, prompts, [4, 4, 4], max_tokens=1)] == alone
    assert [g.text for g in decode(loaded, prompts, [4, 4, 4])] == alone
    assert len(set(alone)) == 3


def test_sampling_uses_the_temperature_and_the_generator(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def sampled(temperature: float, seed: int) -> str:
        scripted(monkeypatch, loaded, ["abcdefgh"], sure=8.0)
        generator = torch.Generator().manual_seed(seed)
        return written(loaded, [8], temperature=temperature, generator=generator)[0].text

    assert sampled(0.1, 0) == "abcdefgh"
    assert sampled(5.0, 0) == sampled(5.0, 0) != sampled(5.0, 1)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert sampled(5.0, 0) != "abcdefgh"
    assert torch.equal(before, torch.get_rng_state())


def test_scores_are_log_probability_entropy_and_margin() -> None:
    chances = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.1, 0.2, 0.3, 0.4]])
    scores = token_scores(chances.log(), torch.tensor([0, 2]))
    assert scores.log_probs == pytest.approx((math.log(0.5), math.log(0.3)))
    assert scores.entropies == pytest.approx((1.5 * math.log(2), -sum(p * math.log(p) for p in (0.1, 0.2, 0.3, 0.4))))
    assert scores.margins == pytest.approx((math.log(2), math.log(4 / 3)))
    assert scores.hits == (True, False)
    assert not scores.all_hit
    assert scores.total == pytest.approx(math.log(0.15))
    assert TokenScores((), (), (), ()).all_hit


def test_of_equal_logits_the_token_of_greedy_decoding_is_the_hit() -> None:
    logits = torch.zeros(4, 300)
    logits[:, [40, 7, 200]] = 5.0
    taken = logits.argmax(-1)
    assert token_scores(logits, taken).hits == (True,) * 4
    assert token_scores(logits, torch.full((4,), 200)).hits == (False,) * 4


LINE_ENDS = 7
"""Stands for a vocabulary with a token for two line ends, which is not how the model writes them."""


@pytest.mark.parametrize(
    ("answer", "written_end", "hit"),
    [
        ("cd", [LINE_ENDS], True), ("cd", "\n", True), ("cd", "<eos>", True), ("cd", "e", False), ("cd", " ", False),
        ("c\nd", "\n", False), ("c\nd", "<eos>", True), ("c\nd", [LINE_ENDS], True),
    ],
)  # fmt: skip
def test_an_answer_that_ends_in_another_way_is_hit_all_the_same(
    answer: str, written_end: Any, hit: bool, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ids_of(text: str) -> list[int]:
        return loaded.tokenizer.encode(text, add_special_tokens=False)

    decoded = type(loaded.tokenizer).decode
    monkeypatch.setattr(
        type(loaded.tokenizer), "decode",
        lambda self, ids, **settings: "".join(
            "\n\n" if token == LINE_ENDS else decoded(self, [token], **settings) for token in ids
        ),
    )  # fmt: skip
    told = ids_of(answer) + (written_end if isinstance(written_end, list) else ids_of(written_end))
    ids = (1, 2, *ids_of(answer), LINE_ENDS, 3)
    prompt = Encoded(ids, ((2, len(ids) - 1),), len(ids), ("\n\n",))

    def forward(model: Any, batch: PaddedBatch, positions: torch.Tensor, **_: Any) -> torch.Tensor:
        logits = torch.zeros(int(positions.sum()), VOCABULARY)
        for row, token in zip(logits, [*told, 0], strict=False):
            row[token] = 30.0
        return logits

    monkeypatch.setattr(decoding, "forward", forward)
    scores = [decoding.score_answers(loaded, [prompt])[0][-1], *read_prefix(loaded, prompt).demonstration_scores]
    assert [s.all_hit for s in scores] == [hit] * 2
    assert all(s.hits[:-1] == (True,) * len(ids_of(answer)) for s in scores)
    assert written_end == [LINE_ENDS] or scores[0].log_probs[-1] < -20, "the likelihood stays that of the prompt's end"


def test_reading_a_prefix_scores_the_demonstrations_and_decoding_does_not_change_it(loaded: LoadedModel) -> None:
    prompt = encode(loaded, make_task([("a", "b"), ("c", "de")], "f"))
    with torch.no_grad():
        prefix = read_prefix(loaded, prompt)
        assert prefix.ids == prompt.ids[: prompt.shared_prefix_length]
        assert [len(s.hits) for s in prefix.demonstration_scores] == [end - begin for begin, end in prompt.answers]
        first = decode(loaded, [prompt, prompt], [5, 5], prefix=prefix)
        assert prefix.cache.get_seq_length() == len(prefix.ids)
        again = decode(loaded, [prompt], [5], prefix=prefix)
    assert again[0].text == first[0].text == first[1].text
    assert again[0].scores.log_probs == pytest.approx(first[0].scores.log_probs, abs=1e-4)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, MPT])
@pytest.mark.parametrize("adapters", [1, 2])
@torch.no_grad()
def test_prompts_that_continue_prefixes_of_their_own_are_answered_as_whole_prompts(
    architecture: str, adapters: int
) -> None:
    loaded = loaded_model(architecture)
    pairs = [("ab", "ba"), ("cd", "dc"), ("efg", "gfe")]
    orders = [pairs, pairs[::-1], [pairs[1], pairs[0], pairs[2]]]
    views = [[encode(loaded, make_task(order, query)) for order in orders] for query in ("kl", "m")]
    weights = LoraWeights.initial(loaded.model, Recipe(rank=2, alpha=4.0), range(adapters))
    for _, up in weights.pairs.values():
        up.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    with weights.attached(loaded.model):
        prefixes = read_prefixes(loaded, views[0], adapters)
        for prompts in views:
            limits = [6, 9, 3]
            plain = decode(loaded, prompts, limits, adapters=adapters)
            drafts = [plain[0].ids, (), (*plain[2].ids[:1], 5)]
            for options in ({}, {"max_tokens": 60 * adapters}, {"drafts": drafts}):
                answers = decode(loaded, prompts, limits, prefix=prefixes, adapters=adapters, **options)
                for one, wanted in zip(answers, plain, strict=True):
                    assert (one.ids, one.text, one.ended) == (wanted.ids, wanted.text, wanted.ended), options
                    assert one.scores.log_probs == pytest.approx(wanted.scores.log_probs, abs=1e-3)
                    assert one.prompt_tokens == wanted.prompt_tokens - prefixes.length


# --- guesses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("shared", [False, True])
@torch.no_grad()
def test_a_draft_changes_no_answer(architecture: str, shared: bool) -> None:
    loaded = wrap_model(tiny_model(architecture), tiny_tokenizer())
    prompt = encode(loaded, make_task([("ab", "ba"), ("cd", "dc")], "ef"))
    (plain,) = decode(loaded, [prompt], [8])
    other = (plain.ids[3] + 1) % VOCABULARY
    drafts = [
        plain.ids, plain.ids[:3], (*plain.ids[:3], other), (*plain.ids[:3], other, *plain.ids[4:], 7, 7), (other,),
        (*plain.ids, 5, 5),
    ]  # fmt: skip
    for draft in drafts:
        prefix = read_prefix(loaded, prompt) if shared else None
        (answer,) = decode(loaded, [prompt], [8], prefix=prefix, drafts=[draft])
        assert (answer.ids, answer.text, answer.ended) == (plain.ids, plain.text, plain.ended), draft
        assert answer.scores.hits == plain.scores.hits
        assert answer.scores.log_probs == pytest.approx(plain.scores.log_probs, abs=1e-4)
        assert answer.rejected <= len(draft)


def test_a_right_draft_takes_one_pass_and_tokens_after_a_wrong_one_are_rejected(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = encode(loaded, make_task([("ab", "ba")], "ef"))
    (plain,) = decode(loaded, [prompt], [8])
    passes: list[int] = []
    real = decoding.forward

    def forward(model: Any, batch: PaddedBatch, *rest: Any) -> torch.Tensor:
        passes.append(batch.ids.shape[1])
        return real(model, batch, *rest)

    monkeypatch.setattr(decoding, "forward", forward)
    (right,) = decode(loaded, [prompt], [8], drafts=[plain.ids])
    assert passes == [len(prompt.ids) + 8]
    assert right.rejected == 1, "the last token is decoded, and not read"
    passes.clear()
    wrong = (*plain.ids[:2], (plain.ids[2] + 1) % VOCABULARY, *plain.ids[3:])
    (answer,) = decode(loaded, [prompt], [8], drafts=[wrong])
    assert passes == [len(prompt.ids) + 8, 1, 1, 1, 1, 1]
    assert answer.rejected == 6
    assert answer.ids == plain.ids


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, MPT])
@pytest.mark.parametrize("shared", [False, True])
@torch.no_grad()
def test_drafts_of_many_answers_change_none_of_them(
    architecture: str, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "MIN_ACCEPTED", 2)
    loaded = loaded_model(architecture)
    queries = ["ef", "e", "efgh", "gh", "h"]
    prompts = [encode(loaded, make_task([("ab", "ba"), ("cd", "dc")], q)) for q in queries]
    limits = [12, 3, 12, 9, 12]
    prefix = read_prefix(loaded, prompts[0]) if shared else None
    plain = [decode(loaded, [p], [room])[0] for p, room in zip(prompts, limits, strict=True)]

    def wrong_at(ids: Sequence[int], place: int) -> tuple[int, ...]:
        return (*ids[:place], (ids[place] + 1) % VOCABULARY, *ids[place + 1 :])

    ids = [one.ids for one in plain]
    for drafts in (
        ids,
        [ids[0], (), wrong_at(ids[2], 4), wrong_at(wrong_at(ids[3], 3), 6), wrong_at(ids[4], 0)],
        [ids[0][:5], wrong_at(ids[1], 2), (*ids[2], 1, 2, 3), ids[0], ()],
    ):
        answers = decode(loaded, prompts, limits, prefix=prefix, drafts=drafts)
        for one, wanted in zip(answers, plain, strict=True):
            assert (one.ids, one.text, one.ended) == (wanted.ids, wanted.text, wanted.ended)
            assert one.scores.log_probs == pytest.approx(wanted.scores.log_probs, abs=1e-3)


def test_the_rest_of_a_draft_is_verified_again_and_finished_rows_are_removed(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "MIN_ACCEPTED", 2)
    prompts = [encode(loaded, make_task([("ab", "ba")], q)) for q in ("ef", "gh", "kl")]
    plain = decode(loaded, prompts, [9] * 3)
    passes: list[tuple[int, ...]] = []
    real = decoding.forward

    def forward(model: Any, batch: PaddedBatch, *rest: Any) -> torch.Tensor:
        passes.append(tuple(batch.ids.shape))
        return real(model, batch, *rest)

    monkeypatch.setattr(decoding, "forward", forward)
    ids = plain[1].ids
    wrong = (*ids[:3], (ids[3] + 1) % VOCABULARY, *ids[4:])
    answers = decode(loaded, prompts, [9] * 3, drafts=[plain[0].ids, wrong, plain[2].ids])
    assert [one.ids for one in answers] == [one.ids for one in plain]
    assert passes == [(3, len(prompts[0].ids) + 9), (1, 6)], "one row, its fourth token and the five guessed after it"


def test_sampled_answers_use_no_draft(loaded: LoadedModel) -> None:
    prompt = encode(loaded, make_task([("ab", "ba")], "ef"))
    draw = torch.Generator().manual_seed
    sampled = decode(loaded, [prompt], [8], temperature=1.0, generator=draw(0))
    assert decode(loaded, [prompt], [8], temperature=1.0, generator=draw(0), drafts=[(1, 2)]) == sampled


def test_an_answer_stops_at_the_first_token_after_which_it_cannot_be_read(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, loaded, ["12x45\n\n", "1234\n\n"])
    lost, read = written(loaded, [20, 20], prefix_filters=[lambda text: "x" not in text] * 2)
    assert (lost.text, len(lost.ids), lost.ended) == ("12x", 3, False)
    assert (read.text, read.ended) == ("1234", True)
