"""The learner: a language model that answers tasks, as it is or adapted, trains adapters, and proves it is unchanged.

Knows nothing about which strategy is worth it. One learner serves one model; its methods may be called from several
threads and take turns.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .adapters import Adapter, AdapterCache
from .crossfit import HeldOut, score_of
from .decoding import TOKENS_AT_ONCE, Generated, Prefix, TokenScores, decode, read_prefix, score_answers
from .encoding import Encoded, encode, tokenizer_digest
from .errors import AdaptationError, AutotttError, BaseChangedError, Cancelled, ParseError, TooLongError
from .fingerprint import Fingerprint, RevertProof, restored
from .kinds import kind_of
from .lora import LoraWeights
from .memory import free_memory, out_of_memory, tokens_that_fit
from .model import LoadedModel, load_model, wrap_model
from .recipes import Recipe, recipe_for
from .tasks import Task, Value
from .together import Asked, decode_together
from .training import Training, joint, train
from .turns import turns_at

COPIES = 8
"""Of an adapter's weights that its training holds at most: gradients in parts, moments, what is put aside."""
GUESSES = 256
"""Answers of the base that are kept as guesses at those of adapters."""
SCORES = 256
"""Prompts whose scores by the base are kept."""


@dataclass(frozen=True)
class Answer:
    """A model's answer to one query."""

    value: Value | None
    """None where the text is not a value of the task's kind."""
    text: str
    scores: TokenScores
    ended: bool
    """Whether the model ended the answer, rather than running out of room or into what is no value."""


@dataclass(frozen=True)
class Reading:
    """What was seen while reading a prompt: the scores of each demonstration's answer given those before it."""

    answers: tuple[TokenScores, ...]


@dataclass(frozen=True)
class Work:
    """Tokens that went through the model."""

    forward: int = 0
    backward: int = 0

    def __sub__(self, other: Work) -> Work:
        return Work(self.forward - other.forward, self.backward - other.backward)

    @property
    def passes(self) -> int:
        """Forward-token equivalents: a backward pass counts as two forward passes."""
        return self.forward + 2 * self.backward


class Learner:
    """A model with everything that can be asked of it. Build one with `Learner.load` or from a model in memory."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        verify: Literal["pointers", "full"] = "pointers",
        adapters: AdapterCache | None = None,
        memory_bytes: int | None = None,
    ) -> None:
        """`verify` is how `Learner.verify` proves the base unchanged; `adapters` is where trained ones are kept.

        `memory_bytes` bounds what training keeps for its backward passes, adapters with their gradients and moments
        included, and what is read side by side; None: a share of what is free. The model itself is not counted.
        """
        if verify not in ("pointers", "full"):
            raise ValueError(f"verify: expected 'pointers' or 'full'; received {verify!r}")
        self.loaded = loaded
        self.verification = verify
        self.work = Work()
        """All work done so far; take differences."""
        self.ahead = 0.0
        """Seconds of training and answering that were done ahead and have been charged so far; take differences."""
        self._fingerprint = Fingerprint(loaded.model)
        self.turns = turns_at(loaded.model)
        """Whose turn it is at the model; other learners around it wait for the same."""
        self._lock = self.turns.use
        self._changed: BaseChangedError | None = None
        self._prefix: tuple[LoraWeights | None, Prefix] | None = None
        self.adapters = adapters or AdapterCache()
        """Adapters of demonstrations that were met before."""
        self.memory_bytes = memory_bytes
        self._unadapted: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._prepared: dict[object, Adapter] = {}
        self._scored: dict[Encoded, list[TokenScores]] = {}
        self._reads: str | None = None
        self._ahead: dict[int, tuple[LoraWeights, dict[Encoded, Generated], float]] = {}

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str] | None = None,
        *,
        device: str | None = None,
        dtype: str | None = None,
        prompt_format: str | None = None,
        verify: Literal["pointers", "full"] = "pointers",
        adapters: AdapterCache | None = None,
        memory_bytes: int | None = None,
    ) -> Learner:
        """A learner around a local folder, a hub id, or the bundled model; see `autottt.ttt_core.model.load_model`."""
        loaded = load_model(source, device=device, dtype=dtype, prompt_format=prompt_format)
        return cls(loaded, verify=verify, adapters=adapters, memory_bytes=memory_bytes)

    @classmethod
    def wrap(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        prompt_format: str | None = None,
        verify: Literal["pointers", "full"] = "pointers",
        adapters: AdapterCache | None = None,
        memory_bytes: int | None = None,
    ) -> Learner:
        """A learner around a model that a program already holds. The model is given back as it was after every call."""
        loaded = wrap_model(model, tokenizer, prompt_format=prompt_format)
        return cls(loaded, verify=verify, adapters=adapters, memory_bytes=memory_bytes)

    @property
    def base_hash(self) -> str:
        """Content hash of the base model, as loaded."""
        return self._fingerprint.hash

    @property
    def precision(self) -> str:
        """Type of the weights, such as bfloat16."""
        return str(self.loaded.model.dtype).removeprefix("torch.")

    @property
    def threads(self) -> int:
        """Threads that computing on the CPU uses."""
        return torch.get_num_threads()

    def recipe(self, strategy: str, kind: str = "") -> Recipe:
        """The recipe of a strategy for this model and kind of task, or for any kind, or the general default."""
        return recipe_for(self.loaded.recipes, strategy, kind)

    def encode(self, task: Task, answer: Value | None = None) -> Encoded:
        """The task's prompt as ids. Raises `TooLongError` when it does not fit in the context with its answer; where
        none is given, with one as long as the shortest output shown.
        """
        least = 0 if answer is not None else min(min(self._sizes(task), default=1), self.room(task))
        return encode(self.loaded, task, answer, least)

    def fits(self, task: Task) -> bool:
        """Whether the task's prompt and its answer fit in the context."""
        try:
            self.encode(task)
        except TooLongError:
            return False
        return True

    def length(self, task: Task) -> int:
        """Tokens of the task's prompt, with its answer where that is known. Raises `TooLongError` as `encode`."""
        return len(self.encode(task, task.answer).ids)

    def room(self, task: Task) -> int:
        """Tokens that an answer may take, where the prompt leaves as many: twice the longest output shown or the query,
        and 16 more.
        """
        (query,) = self._tokens(task, [task.query])
        return 2 * max([*self._sizes(task), query]) + 16

    def _sizes(self, task: Task) -> list[int]:
        """Tokens of each output shown."""
        return self._tokens(task, [d.output for d in task.demonstrations])

    def _tokens(self, task: Task, values: Sequence[Value]) -> list[int]:
        kind, notation = kind_of(task), self.loaded.format.notation
        return [len(self.loaded.tokens(kind.render(v, notation))) for v in values]

    def _left(self, task: Task, prompt: Encoded) -> int:
        """Tokens that the answer to a prompt may take."""
        return min(self.room(task), self.loaded.context - len(prompt.ids))

    # --- answering -------------------------------------------------------------------------------------------------

    def read(self, task: Task, adapter: Adapter | None = None) -> Reading:
        """Reads the demonstrations and scores each answer on the way. What was read is kept for `answer`."""
        with _memory("reading the demonstrations"), self._use(_single(adapter)):
            return Reading(self._prefix_of(self.encode(task), adapter, whole=True).reading)

    def answer(
        self,
        tasks: Sequence[Task],
        adapter: Adapter | None = None,
        *,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[Answer]:
        """One answer per task, decoded in batches: greedy, or sampled at a temperature above 0."""
        return self.answers(tasks, _single(adapter), temperature=temperature, seed=seed)[0]

    def answers(
        self,
        tasks: Sequence[Task],
        adapter: Adapter | None = None,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        guesses: Sequence[Value | None] = (),
    ) -> list[list[Answer]]:
        """As `answer`, by each adapter of a cross-fitted one: [A][task]. Guesses at the values, one for each task,
        change how quickly they are found and nothing else.
        """
        count = 1 if adapter is None else adapter.weights.count
        if not tasks:
            return [[] for _ in range(count)]
        with _memory("answering"), self._use(adapter):
            prompts = [self.encode(t) for t in tasks]
            if adapter is not None and temperature == 0 and (known := self._answered_ahead(adapter, prompts)):
                return [[self._as_answer(t, g) for t, g in zip(tasks, known, strict=True)]]
            first = prompts[0]
            same = all(p.shared == first.shared and p.ids[: p.shared] == first.ids[: first.shared] for p in prompts)
            tried = [
                self._guessed(t, p, v) for t, p, v in zip(tasks, prompts, guesses or [None] * len(tasks), strict=True)
            ]
            if adapter is not None and len(prompts) == 1 and not tried[0]:
                tried = [self._unadapted.get(first.ids, ())]
            prefix = self._prefix_of(first, adapter, whole=len(prompts) == 1 and not tried[0]) if same else None
            most = self._at_once() if temperature == 0 else TOKENS_AT_ONCE  # what is drawn is to follow from the seed
            generated = decode(
                self.loaded, prompts, [self._left(t, p) for t, p in zip(tasks, prompts, strict=True)],
                prefix=prefix, temperature=temperature, generator=torch.Generator().manual_seed(seed), adapters=count,
                guesses=tried, readable=[partial(self.loaded.format.may_begin, t) for t in tasks], most=most,
            )  # fmt: skip
            if adapter is None and temperature == 0:
                self._guess_later(dict(zip([p.ids for p in prompts], [g.ids for g in generated], strict=True)))
            skipped = len(prefix.ids) if prefix else 0
            if prefix and len(prompts) == 1 and not tried[0] and prefix.begins(first):
                skipped = len(first.ids)
            read = sum(len(p.ids) - skipped for p in prompts) * count
            self._charge(forward=read + sum(len(g.ids) + g.vain for g in generated))
            found = [self._as_answer(t, g) for t, g in zip(list(tasks) * count, generated, strict=True)]
            return [found[a * len(tasks) : (a + 1) * len(tasks)] for a in range(count)]

    def guess(self, task: Task) -> Value | None:
        """What the base answered to a task lately, where that is known and can be read."""
        ids = self._unadapted.get(self.encode(task).ids)
        if ids is None:
            return None
        text = self.loaded.tokenizer.decode(ids, skip_special_tokens=True)
        cut = min((at for end in self.loaded.format.ends if end and (at := text.find(end)) >= 0), default=len(text))
        try:
            return self.loaded.format.read(task, text[:cut])
        except ParseError:
            return None

    def _guessed(self, task: Task, prompt: Encoded, value: Value | None) -> tuple[int, ...]:
        """The tokens of a guess."""
        if value is None:
            return ()
        try:
            return self.encode(task, value).ids[len(prompt.ids) :]
        except TooLongError:
            return ()

    def score(self, tasks: Sequence[Task], adapter: Adapter | None = None) -> list[list[TokenScores]]:
        """For each task (its right answer given), the teacher-forced scores of every answer in its prompt, in order.

        The last one's `all_hit` says whether greedy decoding would answer the query right: no decoding is needed. What
        the base was asked lately is not worked out again.
        """
        with _memory("scoring answers"), self._use(_single(adapter)):
            prompts = [self.encode(t, _answer_of(t)) for t in tasks]
            found = {} if adapter is not None else {p: self._scored[p] for p in prompts if p in self._scored}
            new = [p for p in dict.fromkeys(prompts) if p not in found]
            self._charge(forward=sum(len(p.ids) for p in new))
            found |= zip(new, score_answers(self.loaded, new, self._at_once()), strict=True)
            if adapter is None:
                self._scored |= found
                _at_most(self._scored, SCORES)
            return [found[p] for p in prompts]

    # --- learning --------------------------------------------------------------------------------------------------

    def adapt(
        self,
        examples: Sequence[Task],
        recipe: Recipe,
        *,
        seed: int = 0,
        deadline: float = math.inf,
        on_step: Callable[[int, float], None] | None = None,
        start: Adapter | None = None,
    ) -> Adapter:
        """Trains one adapter on tasks whose answers are known. The base is not touched.

        `deadline` is a time of `time.monotonic`; `start` is an adapter of the recipe's rank, alpha and targets to begin
        with, which stays as it is. Raises `AdaptationError` (a loss that is not a number, no memory, nothing to train
        on); whatever is raised, the model is as it was.
        """
        (adapter,) = self.adapt_many([examples], recipe, [seed], deadline=deadline, on_step=on_step, start=start)
        return adapter

    def adapt_many(
        self,
        examples: Sequence[Sequence[Task]],
        recipe: Recipe,
        seeds: Sequence[int],
        *,
        deadline: float = math.inf,
        on_step: Callable[[int, float], None] | None = None,
        charged: bool = True,
        start: Adapter | None = None,
    ) -> list[Adapter]:
        """Trains an adapter for each list of examples, side by side; each gets what `adapt` would have given it.

        Not `charged`, it is left to `remembered` to charge the work to who asks for an adapter first, and to the caller
        to look whether one `failed`: only what concerns all of them is raised.
        """
        before = self.work
        if start is not None:
            self._refuse_other_base(start)
            if not _alike(start, recipe) or len(seeds) != 1:
                raise AdaptationError(
                    f"one adapter of rank {recipe.rank}, alpha {recipe.alpha:g}, on {recipe.targets} cannot begin as "
                    f"{start.weights.count} of rank {start.recipe.rank}, alpha {start.recipe.alpha:g}, on "
                    f"{start.recipe.targets}"
                )
        with _memory(f"training (batch {recipe.batch})"), self._use(None):
            encoded = [[self.encode(t, _answer_of(t)) for t in some] for some in examples]
            try:
                weights, trainings = train(
                    self.loaded, encoded, recipe, seeds,
                    deadline=deadline, on_step=on_step, memory=self.memory_bytes, charge=self._charge,
                    start=None if start is None else start.weights.copied(),
                )  # fmt: skip
            finally:
                if not charged:
                    self.work = before
            if charged:
                _refuse_failed(trainings)
            shares = [replace(t, seconds=t.seconds / len(seeds)) for t in trainings]
            return [
                Adapter(weights.select(a), recipe, share, self.base_hash, kind=some[0].kind)
                for a, (share, some) in enumerate(zip(shares, examples, strict=True))
            ]

    def nearest(self, task: Task, recipe: Recipe, most: int) -> Adapter | None:
        """Of the adapters used last, up to `most` of the task's kind and the recipe's rank and targets, the one that
        finds the demonstrations' answers likeliest; None where the base finds them likelier still."""

        def suits(adapter: Adapter) -> bool:
            return adapter.base_hash == self.base_hash and adapter.kind == task.kind and _alike(adapter, recipe)

        with self._lock:
            known = self.adapters.newest(most, suits, self.loaded.model.device)
            shown = [task.leave_out(len(task.demonstrations) - 1)]
            candidates = [None, *known] if known else []
            likelihoods = [sum(s.total for s in self.score(shown, a)[0][1:]) for a in candidates]
            return candidates[likelihoods.index(max(likelihoods))] if candidates else None

    def crossfit(
        self,
        examples: Sequence[Sequence[Task]],
        held: Sequence[Sequence[Task]],
        recipe: Recipe,
        *,
        seed: int = 0,
        every: int | None = None,
        patience: int = 4,
        deadline: float = math.inf,
        on_step: Callable[[int, float], None] | None = None,
    ) -> Adapter:
        """Trains an adapter per fold, side by side: on its `examples`, judged by its `held` tasks `every` so many
        steps (None: about twelve times in all).

        Keeps all as they were when the held-out tasks were answered best (see `crossfit.HeldOut`). Raises as `adapt`.
        """
        with _memory(f"training (batch {recipe.batch})"), self._use(None):
            learned = [[self.encode(t, _answer_of(t)) for t in fold] for fold in examples]
            judged = [[self.encode(t, _answer_of(t)) for t in fold] for fold in held]
            began = time.monotonic()
            scores = iter(self.score([t for fold in held for t in fold]))
            before = [[score_of(next(scores)[-1]) for _ in fold] for fold in held]
            looking = time.monotonic() - began
            watch = HeldOut(self.loaded, judged, before, every or max(1, recipe.steps // 12), patience, self._charge)
            seeds = [seed + a for a in range(len(held))]
            weights, trainings = train(
                self.loaded, learned, recipe, seeds,
                deadline=deadline - looking, on_step=on_step, watch=watch, memory=self.memory_bytes,
                charge=self._charge,
            )  # fmt: skip
            training = joint(trainings)
            if training.error and watch.best is None:
                _refuse_failed(trainings)
            in_time = watch.best is None or time.monotonic() + watch.seconds <= deadline
            if training.steps and not training.error and in_time:
                watch.look(training.steps, weights)
            best = watch.best or LoraWeights.initial(self.loaded.model, recipe, seeds)
            return Adapter(best, recipe, training, self.base_hash, watch.evidence(), examples[0][0].kind)

    def remembered(self, key: object, make: Callable[[], Adapter]) -> tuple[Adapter, bool]:
        """The adapter kept under `key`, or a new one, and whether it was known. Those cut short are not kept.

        One that was prepared is new to who asks for it first, and charged then.
        """
        with self._lock:
            key = self._full(key)
            if key in self._prepared:
                return self._settled(key), False
            known = self.adapters.get(key, self.base_hash, self.loaded.model.device)
            if known is not None:
                return known, True
            adapter = make()
            if adapter.training.stopped not in ("deadline", "failed"):
                self.adapters.put(key, adapter)
            return adapter, False

    def knows(self, key: object) -> bool:
        """Whether `remembered` would train nothing."""
        with self._lock:
            key = self._full(key)
            return key in self._prepared or self.adapters.get(key, self.base_hash, self.loaded.model.device) is not None

    def _full(self, key: object) -> object:
        """The key with what else decides an adapter: how prompts are written, and in which precision they are read."""
        if self._reads is None:
            self._reads = tokenizer_digest(self.loaded.tokenizer)
        return key, self.loaded.format.name, self._reads, self.precision

    def prepare(
        self,
        keys: Sequence[object],
        examples: Sequence[Sequence[Task]],
        recipe: Recipe,
        seeds: Sequence[int],
        *,
        on_step: Callable[[int, float], None] | None = None,
    ) -> None:
        """Trains adapters side by side, as many at once as fit, to be asked for by `remembered` soon.

        Those that fail are not prepared, nor those that would not fit in memory beside the others. What `on_step`
        raises is raised.
        """
        with self._lock:
            at = 0
            while at < len(keys) and (beside := self._beside(recipe)):
                some = slice(at, at := at + beside)
                try:
                    adapters = self.adapt_many(examples[some], recipe, seeds[some], charged=False, on_step=on_step)
                except (BaseChangedError, Cancelled):
                    raise
                except AutotttError:
                    continue  # one of them may be to blame; each fails, or not, when it is asked for
                made = zip(map(self._full, keys[some]), adapters, strict=True)
                self._prepared.update((key, adapter) for key, adapter in made if adapter.training.stopped != "failed")

    @property
    def stacks(self) -> bool:
        """Whether passes take rows of many adapters: on accelerators. On a CPU one task's rows fill a core already, and
        padding them to the longest of all costs more than it gives (see `gradients`).
        """
        return bool(self.loaded.model.device.type != "cpu")

    def answer_ahead(self, keys: Sequence[object], tasks: Sequence[Sequence[Task]]) -> None:
        """Decodes what prepared adapters answer to some tasks each, side by side, for `answers` to find. What fails
        here is left to be asked again there.
        """
        with self._lock:
            ready = [(self._prepared.get(self._full(key)), some) for key, some in zip(keys, tasks, strict=True)]
            able = [(a.weights, some) for a, some in ready if a is not None and a.weights.count == 1 and some]
            asked = [[self._asked(t) for t in some] for _, some in able]
            with suppress(AdaptationError), _memory("answering"), self._use(None):
                began = time.monotonic()
                found = decode_together(self.loaded, [w for w, _ in able], asked, self._at_once())
                each = (time.monotonic() - began) / max(1, sum(map(len, asked)))
                for (weights, _), mine, answers in zip(able, asked, found, strict=True):
                    self._ahead[id(weights)] = weights, dict(zip([a.prompt for a in mine], answers, strict=True)), each

    def _asked(self, task: Task) -> Asked:
        prompt = self.encode(task)
        return Asked(prompt, self._left(task, prompt), partial(self.loaded.format.may_begin, task))

    def _answered_ahead(self, adapter: Adapter, prompts: Sequence[Encoded]) -> list[Generated]:
        """What an adapter answered to the prompts before it was asked, charged now; nothing where one is missing."""
        _, known, seconds = self._ahead.get(id(adapter.weights), (None, {}, 0.0))
        if not all(p in known for p in prompts):
            return []
        found = [known[p] for p in prompts]
        self.ahead += seconds * len(prompts)
        self._charge(forward=sum(len(p.ids) for p in prompts) + sum(len(g.ids) for g in found))
        return found

    def settle(self) -> None:
        """Keeps the prepared adapters that nobody has asked for, as any others; what they cost is charged now. Answers
        that nobody has asked for are forgotten.
        """
        with self._lock:
            self._ahead.clear()
            for key in list(self._prepared):
                self._settled(key)

    def _settled(self, key: object) -> Adapter:
        """The prepared adapter of a full key: charged, and kept as any other."""
        adapter = self._prepared.pop(key)
        self._charge(adapter.training.tokens, adapter.training.tokens)
        self.ahead += adapter.training.seconds
        self.adapters.put(key, adapter)
        return adapter

    def _beside(self, recipe: Recipe) -> int:
        """How many adapters of a recipe may be trained side by side: weights, gradients, moments and copies of them
        take no more than a quarter of the memory that is free, or the bound, and what is prepared as much; 0: none.
        """
        one = LoraWeights.initial(self.loaded.model, replace(recipe, rank=1), [0]).nbytes * recipe.rank
        prepared = sum(a.weights.nbytes for a in self._prepared.values())
        quarter = (free_memory(self.loaded.model.device) if self.memory_bytes is None else self.memory_bytes) / 4
        room = int((quarter - prepared) / one)
        return max(0 if prepared else 1, min(room, max(1, int(quarter / (COPIES * one)))))

    def forget(self) -> None:
        """Drops every adapter and prefix in memory. Adapters in a folder stay there."""
        with self._lock:
            self.adapters.clear()
            self._prepared.clear()
            self._ahead.clear()
            self._unadapted.clear()
            self._scored.clear()
            self._prefix = None

    def forget_scores(self) -> None:
        """Drops the scores of the base: what is scored next costs what it would have, had nothing been asked before."""
        with self._lock:
            self._scored.clear()

    def charge_anew(self) -> None:
        """Forgets, but for the adapters in memory: they count as prepared, and whoever asks for one is charged for it.

        So costs can be measured as if nothing were known, without training anything twice. Cross-fitted adapters are
        forgotten: what watching them cost is not kept.
        """
        with self._lock:
            unpaid = dict(self._prepared) | {k: a for k, a in self.adapters.clear() if a.evidence is None}
            self.forget()
            self._prepared.update(unpaid)

    # --- reverting -------------------------------------------------------------------------------------------------

    def verify(self, *, full: bool | None = None) -> RevertProof:
        """Proves that the base is what was loaded. Raises `BaseChangedError`; then the learner refuses all work."""
        with self._lock:
            self._refuse_if_changed()
            try:
                return self._fingerprint.verify(
                    self.loaded.model, full=self.verification == "full" if full is None else full
                )
            except BaseChangedError as error:
                self._changed = error
                raise

    def _refuse_if_changed(self) -> None:
        if self._changed is not None:
            raise BaseChangedError(
                f"this learner's base model is not what was loaded, so it answers no more: {self._changed}"
            )

    def _refuse_other_base(self, adapter: Adapter) -> None:
        if adapter.base_hash != self.base_hash:
            raise AdaptationError("this adapter was trained on another base model; train it again on this one")

    @contextmanager
    def _use(self, adapter: Adapter | None) -> Iterator[None]:
        """The model in evaluation mode without gradients, with the adapter attached; all of it undone at the end."""
        with self._lock:
            self._refuse_if_changed()
            if adapter is not None:
                self._refuse_other_base(adapter)
            model = self.loaded.model
            with restored(model), torch.inference_mode(False), torch.no_grad():
                model.eval()
                model.requires_grad_(False)
                with adapter.weights.attached(model) if adapter is not None else nullcontext():
                    yield

    def _prefix_of(self, prompt: Encoded, adapter: Adapter | None, whole: bool) -> Prefix:
        """The prompt's shared beginning, read now or just before; `whole`: and the rest, where it is read now."""
        owner = adapter.weights if adapter is not None else None
        ids = prompt.ids[: prompt.shared]
        if self._prefix is None or self._prefix[0] is not owner or self._prefix[1].ids != ids:
            count = 1 if owner is None else owner.count
            prefix = read_prefix(self.loaded, prompt, count, whole)
            self._prefix = owner, prefix
            self._charge(forward=(len(ids) + len(prefix.rest)) * count)
        return self._prefix[1]

    def _at_once(self) -> int:
        """Tokens that are read side by side."""
        return min(TOKENS_AT_ONCE, tokens_that_fit(self.loaded.model, self.memory_bytes))

    def _guess_later(self, answers: Mapping[tuple[int, ...], tuple[int, ...]]) -> None:
        """Keeps the base's answers to prompts: guesses at what adapters will answer."""
        self._unadapted.update(answers)
        _at_most(self._unadapted, GUESSES)

    def _as_answer(self, task: Task, generated: Generated) -> Answer:
        try:
            value = self.loaded.format.read(task, generated.text) if generated.ended else None
        except ParseError:
            value = None
        return Answer(value, generated.text, generated.scores, generated.ended)

    def _charge(self, forward: int = 0, backward: int = 0) -> None:
        self.work = replace(self.work, forward=self.work.forward + forward, backward=self.work.backward + backward)


@contextmanager
def _memory(what: str) -> Iterator[None]:
    """Turns what running out of memory raises into an `AdaptationError`."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise AdaptationError(f"out of memory while {what}: {error}") from error


def _refuse_failed(trainings: Sequence[Training]) -> None:
    """Raises `AdaptationError` where one of them failed."""
    for training in trainings:
        if training.error:
            raise AdaptationError(training.error)


def _at_most(kept: dict[Any, Any], most: int) -> None:
    """Lets go of the oldest entries beyond so many."""
    while len(kept) > most:
        del kept[next(iter(kept))]


def _alike(adapter: Adapter, recipe: Recipe) -> bool:
    """Whether an adapter alone has the shape and the scale that the recipe asks for."""
    mine = adapter.recipe
    same = (mine.rank, mine.alpha, mine.targets) == (recipe.rank, recipe.alpha, recipe.targets)
    return adapter.weights.count == 1 and same


def _single(adapter: Adapter | None) -> Adapter | None:
    """The adapter, which must be one alone."""
    if adapter is not None and adapter.weights.count != 1:
        parts = adapter.weights.count
        raise AdaptationError(f"a cross-fitted adapter of {parts} parts has as many answers: ask `answers` for them")
    return adapter


def _answer_of(task: Task) -> Value:
    if task.answer is None:
        raise AdaptationError(f"{task.id}: scoring and training need the right answer of the query; this task has none")
    return task.answer
