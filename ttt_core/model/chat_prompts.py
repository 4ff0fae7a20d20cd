"""Chat prompts as token ids: those that the tokenizer gives to the text of the chat template, and the proof of it.

Knows nothing about models. The text of a chat is encoded as a whole, as `apply_chat_template` does, so tokens may span
what different turns wrote; answers are then located in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ModelError
from ..tasks.kinds import STANDARD, kind_of, make_task, shortened
from ..tasks.prompts import ChatFormat, Piece, chat_messages, padded_placeholders, placeholders
from ..tasks.task import Task
from .templates import REMEDY, SWITCHES, Message, Request, TemplateRenderer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
"""First token and one past the last."""
Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class EncodedChat:
    """A chat as token ids."""

    ids: list[int]
    answers: list[Span]
    """Where each answer and its end stand."""
    shown_length: int
    """Tokens up to the end of the last demonstration."""


class ChatEncoder:
    """Encodes the pieces of chats with one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int], encode: Encode) -> None:
        """`stop_ids` are tokens after which nothing belongs to an answer; `encode` gives the ids of a short text."""
        self._tokenizer = tokenizer
        self._stop_ids = stop_ids
        self._encode = encode

    def __call__(self, pieces: Sequence[Piece], *, answered: bool) -> EncodedChat:
        """The pieces of a chat; with `answered`, the last two are the answer to the query and its end."""
        count = len(pieces) - 2 * answered
        text = _Text(self._tokenizer, "".join(piece.text for piece in pieces[:count]))
        ids, answers, shown_length, at, begin = text.ids, [], 0, 0, 0
        for piece in pieces[:count]:
            if piece.role == "answer":
                begin = text.tokens_before(at)
            elif piece.role == "end":
                end_begin = text.tokens_before(at)
                shown_length = text.tokens_through(at + len(piece.text))
                answers.append((begin, self._stop(ids, end_begin, shown_length)))
            at += len(piece.text)
        if answered:
            context, answer, end = (piece.text for piece in pieces[count - 1 :])
            new, end_begin = self._continuation(context, answer, end)
            answers.append((len(ids), len(ids) + self._stop(new, end_begin, len(new))))
            ids = [*ids, *new]
        return EncodedChat(ids, answers, shown_length)

    def _stop(self, ids: Sequence[int], begin: int, end: int) -> int:
        """One past the first token in the range that ends a sequence; the end of the range if none does."""
        return next((n + 1 for n in range(begin, end) if ids[n] in self._stop_ids), end)

    def _continuation(self, context: str, answer: str, end: str) -> tuple[list[int], int]:
        """The ids of an answer and its end as the tokenizer continues the context, and how many are the answer's.

        Where it merges the context with the answer, they are encoded by themselves: the prompt stays as it is.
        """
        before, through = list(self._encode(context)), list(self._encode(context + answer + end))
        if through[: len(before)] == before:
            with_answer = list(self._encode(context + answer))
            return through[len(before) :], _common_length(with_answer, through) - len(before)
        ids = list(self._encode(answer))
        return [*ids, *self._encode(end)], len(ids)


class _Text:
    """A text as token ids, and how many stand before a character. Characters must be given in ascending order."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str) -> None:
        self._tokenizer, self._text = tokenizer, text
        self._offsets: Sequence[tuple[int, int]] = ()
        if tokenizer.is_fast:
            encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            self._offsets = encoding["offset_mapping"]
            self.ids: list[int] = list(encoding["input_ids"])
        else:
            self.ids = list(tokenizer.encode(text, add_special_tokens=False))
        self._passed = 0
        """Tokens that end at or before the last given character."""

    def tokens_before(self, place: int) -> int:
        """Tokens that end at or before the character."""
        return self._tokens(place)[0]

    def tokens_through(self, place: int) -> int:
        """Tokens that begin before the character."""
        return self._tokens(place)[1]

    def _tokens(self, place: int) -> tuple[int, int]:
        """Both counts, which differ where a token spans the place. Where no offset tells, the text is cut there and
        encoded: tokenizers leave white space out of offsets."""
        while self._passed < len(self._offsets) and self._offsets[self._passed][1] <= place:
            self._passed += 1
        if self._passed:
            begin, end = self._offsets[self._passed - 1]
            following = self._offsets[self._passed : self._passed + 1]
            if begin < end == place and all(first >= place for first, _ in following):
                return self._passed, self._passed
        cut = list(self._tokenizer.encode(self._text[:place], add_special_tokens=False))
        length = _common_length(cut, self.ids)
        return (length, length) if length == len(cut) else (length, min(length + 1, len(self.ids)))


def _common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Leading ids that two sequences have in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


def proven_format(tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int]) -> ChatFormat:
    """The chat format of the tokenizer, whose prompts were compared with what `apply_chat_template` gives.

    Compared are the ids of prompts with up to four demonstrations, and of finished answers. Raises `ModelError` with
    the reason if they differ, or if answers cannot be located.
    """
    try:
        return _proven(tokenizer, stop_ids)
    except _DifferentIdsError:
        # Between the two renderings the date may have changed.
        return _proven(tokenizer, stop_ids)


class _DifferentIdsError(ModelError):
    """The ids of a chat differ from those of the template."""


def turn_end_ids(chat: ChatFormat, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The special tokens, one for each of its ends, that end an answer of the format."""
    first = (
        next((t for t in chat.units(end) if t in chat.special_tokens and not t.isspace()), None) for end in chat.ends
    )
    return frozenset(int(tokenizer.convert_tokens_to_ids(token)) for token in first if token is not None)


def _proven(tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int]) -> ChatFormat:
    renderer = TemplateRenderer(tokenizer)
    renderer.try_render(_requests())
    special = tuple(dict.fromkeys(token.content for token in tokenizer.added_tokens_decoder.values()))
    chat = ChatFormat(renderer, special_tokens=special, strips=True)
    samples = [t for t in SAMPLES if t.kind != "grid" or not any(end.isspace() for end in chat.ends)]
    _check_contents(chat, renderer, samples)
    stop_ids |= turn_end_ids(chat, tokenizer)

    def encode(text: str) -> Sequence[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids

    encoder = ChatEncoder(tokenizer, stop_ids, encode)
    for task in samples:
        _compare(chat, tokenizer, encoder, task)
    return chat


def _compare(chat: ChatFormat, tokenizer: PreTrainedTokenizerBase, encoder: ChatEncoder, task: Task) -> None:
    """Raises `ModelError` unless the prompt of the task, and its answer, are what the template makes of them."""
    prompt = encoder(chat.pieces(task), answered=False).ids
    answered = encoder(chat.pieces(task, task.answer), answered=True)
    if not chat.closing:
        _require_equal(tokenizer, task, prompt, _template_ids(tokenizer, chat.messages(task), generation=True))
    finished = answered.ids[: answered.answers[-1][1]]
    whole = _template_ids(tokenizer, chat.messages(task, task.answer), generation=False)
    turn = finished[len(prompt) - 1 :]
    shown = any(whole[n : n + len(turn)] == turn for n in range(len(whole)))
    if chat.closing or not (shown and task.instruction):  # a template may place the instruction by the last turn's role
        _require_equal(tokenizer, task, finished, whole[: len(finished)])
    outputs = [*(d.output for d in task.demonstrations), task.answer]
    for (begin, end), output in zip(answered.answers, outputs, strict=True):
        text = tokenizer.decode(answered.ids[begin:end])
        expected = kind_of(task).render(output, chat.notation) if output is not None else ""
        if "".join(expected.split()) not in "".join(text.split()):
            raise ModelError(
                f"answers cannot be located in the tokens of the chat template: {shortened(text)}; {REMEDY}"
            )


def _require_equal(tokenizer: PreTrainedTokenizerBase, task: Task, ours: list[int], theirs: list[int]) -> None:
    """Raises `ModelError` with the first difference."""
    if ours == theirs:
        return
    place = _common_length(ours, theirs)
    one, other = (shortened(tokenizer.decode(ids[place : place + 1])) for ids in (ours, theirs))
    raise _DifferentIdsError(
        f"with {len(task.demonstrations)} demonstrations, token {place} of a chat is {one} and that of the tokenizer's "
        f"chat template is {other}; {REMEDY}"
    )


def _template_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, generation: bool) -> list[int]:
    """What `apply_chat_template` gives. The messages have been rendered under limits before."""
    try:
        ids = tokenizer.apply_chat_template(
            list(messages), tokenize=True, return_dict=False, add_generation_prompt=generation, **SWITCHES
        )
    except Exception as error:
        raise ModelError(
            f"apply_chat_template fails ({type(error).__name__}: {' '.join(str(error).split())[:200]}); {REMEDY}"
        ) from None
    return list(ids)


def _check_contents(chat: ChatFormat, renderer: TemplateRenderer, samples: Sequence[Task]) -> None:
    """Raises `ModelError` if the template changes contents, as by upper case or escapes."""
    for task in samples:
        text = "".join(piece.text for piece in chat.pieces(task))
        if text != renderer(chat.messages(task), True) + chat.closing:
            raise ModelError(f"the tokenizer's chat template changes the contents of messages; {REMEDY}")


def _samples() -> list[Task]:
    """Tasks of up to four demonstrations, of several kinds, with and without an instruction, and one of long texts."""
    numbers = [([3, 1, 4], [4, 1, 3]), ([15], [15]), ([-9, 26], [26, -9]), ([5, 35], [35, 5])]
    texts = [
        (" two  words ", "(B)"),
        ("\nlines\nof <b>&\"'text\n", "Its 2nd line"),
        ("{{ c }}", "3"),
        ("\u00e9t\u00e9", "no. 4"),
    ]
    lists = [make_task(numbers[:n], [7, 9], answer=[9, 7], id="sample") for n in range(5)]
    instructed = [make_task(texts[:n], " word\n", answer="(A)", instruction=" Say it.", id="sample") for n in range(5)]
    grid = make_task([([[1, 0], [0, 1]], [[0, 1], [1, 0]])] * 2, [[2]], answer=[[3, 3], [3, 3]], id="sample")
    long = make_task([("word " * 400, "(B)")], "word " * 500, answer="(A)", id="sample")
    return [*lists, *instructed, grid, long]


SAMPLES: Sequence[Task] = _samples()
"""Tasks whose prompts are compared."""


def _requests() -> list[Request]:
    """All renderings that the comparison needs, for one process."""
    requests: list[Request] = [(placeholders(("user", "assistant")), False)]
    requests.append((placeholders(("user", "assistant", "user")), True))
    for task in SAMPLES:
        for system_turn in {False, task.instruction is not None}:
            prompt = chat_messages(task, STANDARD, system_turn=system_turn)
            whole = chat_messages(task, STANDARD, task.answer, system_turn=system_turn)
            roles = [message["role"] for message in prompt]
            requests += [
                (placeholders(roles), True),
                (padded_placeholders(roles), True),
                (prompt, True),
                (whole, False),
            ]
    return requests
