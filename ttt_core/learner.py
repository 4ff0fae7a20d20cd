"""The learner: a language model that answers tasks, as it is or adapted, trains adapters, and proves it is unchanged.

Knows nothing about which strategy is worth it. One learner serves one model; its methods may be called from several
threads and take turns.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .adapters import Adapter, AdapterCache
from .answering import Answerer, answer_of
from .crossfit import HeldOut, score_of, seeds_of
from .decoding import Generated
from .encoding import Encoded, tokenizer_digest
from .errors import AdaptationError, AutotttError, BaseChangedError, Cancelled
from .gradients import parts_of
from .guarded import memory_errors
from .lora import LoraWeights
from .memory import free_memory
from .model import LoadedModel, load_model, wrap_model
from .recipes import Recipe, recipe_for
from .tasks import Task
from .together import Asked, decode_together
from .training import Training, joint, train

COPIES = 8
"""Of an adapter's weights that its training holds at most: as they were, as they are, at this look and at the best
one, two moments, and the gradients of a pass and of a step; the latter once more for each further part."""
PUT_ASIDE = 4
"""Of these, those that training does not count itself (see `gradients.Buffer.nbytes`)."""


class Learner(Answerer):
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
        super().__init__(loaded, verify, memory_bytes)
        self.adapters = adapters or AdapterCache()
        """Adapters of demonstrations that were met before."""
        self.ahead = 0.0
        """Seconds of training and answering that were done ahead and have been charged so far; take differences."""
        self._prepared: dict[object, Adapter] = {}
        self._ahead: dict[int, tuple[LoraWeights, dict[Encoded, Generated], float]] = {}
        self._reads: str | None = None

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

    def recipe(self, strategy: str, kind: str = "") -> Recipe:
        """The recipe of a strategy for this model and kind of task, or for any kind, or the general default."""
        return recipe_for(self.loaded.recipes, strategy, kind)

    # --- training --------------------------------------------------------------------------------------------------

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
        """Trains an adapter for each list of examples, as many side by side as fit in memory and the others afterwards,
        with their share of the time. Each gets what `adapt` would have given it.

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
        found: list[Adapter] = []
        with memory_errors(f"training (batch {recipe.batch})"), self._use(None):
            encoded = [[self.encode(t, answer_of(t)) for t in some] for some in examples]
            beside = max(1, self._beside(recipe)) if len(examples) > 1 else 1
            for at in range(0, max(1, len(examples)), beside):
                some, now = slice(at, at + beside), time.monotonic()
                share = min(1.0, beside / max(1, len(examples) - at))
                try:
                    weights, trainings = train(
                        self.loaded, encoded[some], recipe, seeds[some],
                        deadline=now + share * (deadline - now), on_step=on_step, memory=self.memory_bytes,
                        charge=self._charge, start=None if start is None else start.weights.copied(),
                    )  # fmt: skip
                finally:
                    if not charged:
                        self.work = before
                if charged:
                    _refuse_failed(trainings)
                found += [
                    Adapter(
                        weights.select(a), recipe, replace(t, seconds=t.seconds / len(trainings)), self.base_hash,
                        kind=mine[0].kind,
                    )
                    for a, (t, mine) in enumerate(zip(trainings, examples[some], strict=True))
                ]  # fmt: skip
                del weights  # before the next are trained
        return found

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

        Keeps all as they were when the held-out tasks were answered best (see `crossfit.HeldOut`). Raises as `adapt`,
        and `AdaptationError` where so many adapters do not fit in memory side by side.
        """
        with memory_errors(f"training (batch {recipe.batch})"), self._use(None):
            learned = [[self.encode(t, answer_of(t)) for t in fold] for fold in examples]
            judged = [[self.encode(t, answer_of(t)) for t in fold] for fold in held]
            size = self._size(recipe)
            needed = len(held) * size * self._copies(len(held), recipe)
            if needed > (most := self._most()):
                raise AdaptationError(
                    f"{len(held)} adapters of rank {recipe.rank} that are trained side by side need up to "
                    f"{needed / 1e6:,.1f} MB; " + ("the bound is" if self.memory_bytes is not None else "there are")
                    + f" {most / 1e6:,.1f} MB; fewer folds or a lower rank need less"
                )  # fmt: skip
            began, work = time.monotonic(), self.work
            scores = iter(self.score([t for fold in held for t in fold]))
            before = [[score_of(next(scores)[-1]) for _ in fold] for fold in held]
            took = time.monotonic() - began
            watch = HeldOut(
                self.loaded, judged, before, every or max(1, recipe.steps // 12), patience, self._charge,
                self._at_once(),
            )  # fmt: skip
            looking = watch.foresee(took, (self.work - work).forward) if deadline < math.inf else 0.0
            seeds = seeds_of(seed, len(held))
            aside = PUT_ASIDE * len(held) * size
            weights, trainings = train(
                self.loaded, learned, recipe, seeds,
                deadline=deadline - looking, on_step=on_step, watch=watch, charge=self._charge,
                memory=None if self.memory_bytes is None else self.memory_bytes - aside,
            )  # fmt: skip
            training = joint(trainings)
            if training.error and watch.best is None:
                _refuse_failed(trainings)
            in_time = watch.best is None or time.monotonic() + watch.seconds <= deadline
            if training.steps and not training.error and in_time:
                watch.look(training.steps, weights)
            best = watch.best or LoraWeights.initial(self.loaded.model, recipe, seeds)
            return Adapter(best, recipe, training, self.base_hash, watch.evidence(), examples[0][0].kind)

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

    # --- remembering -----------------------------------------------------------------------------------------------

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

    def export(self, adapter: Adapter, folder: str | os.PathLike[str]) -> None:
        """Writes an adapter as a folder that `peft.PeftModel.from_pretrained` reads. Raises `AdaptationError` for one
        of another base, and `ModelError` for several that were cross-fitted.
        """
        self._refuse_other_base(adapter)
        adapter.to_peft(Path(folder), self.loaded.model.name_or_path)

    def import_peft(self, folder: str | os.PathLike[str]) -> Adapter:
        """Reads a LoRA adapter of this model from a folder that PEFT wrote, to answer with. Raises `ModelError` for any
        other kind of adapter, and where its layers or their sizes are not the model's.
        """
        return Adapter.from_peft(Path(folder), self.loaded.model, self.base_hash)

    def forget(self) -> None:
        """Drops every adapter and prefix in memory. Adapters in a folder stay there."""
        with self._lock:
            super().forget()
            self.adapters.clear()
            self._prepared.clear()
            self._ahead.clear()

    def charge_anew(self) -> None:
        """Forgets, but for the adapters in memory: they count as prepared, and whoever asks for one is charged for it.

        So costs can be measured as if nothing were known, without training anything twice. Cross-fitted adapters are
        forgotten: what watching them cost is not kept.
        """
        with self._lock:
            unpaid = dict(self._prepared) | {k: a for k, a in self.adapters.clear() if a.evidence is None}
            self.forget()
            self._prepared.update(unpaid)

    def _full(self, key: object) -> object:
        """The key with what else decides an adapter: how prompts are written, and in which precision they are read."""
        if self._reads is None:
            self._reads = tokenizer_digest(self.loaded.tokenizer)
        return key, self.loaded.format.name, self._reads, self.precision

    # --- ahead of time ---------------------------------------------------------------------------------------------

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

    def answer_ahead(self, keys: Sequence[object], tasks: Sequence[Sequence[Task]]) -> None:
        """Decodes what prepared adapters answer to some tasks each, side by side, for `answers` to find. What fails
        here is left to be asked again there.
        """
        with self._lock:
            ready = [(self._prepared.get(self._full(key)), some) for key, some in zip(keys, tasks, strict=True)]
            able = [(a.weights, some) for a, some in ready if a is not None and a.weights.count == 1 and some]
            asked = [[self._asked(t) for t in some] for _, some in able]
            with suppress(AdaptationError), memory_errors("answering"), self._use(None):
                began = time.monotonic()
                found = decode_together(self.loaded, [w for w, _ in able], asked, self._at_once())
                each = (time.monotonic() - began) / max(1, sum(map(len, asked)))
                for (weights, _), mine, answers in zip(able, asked, found, strict=True):
                    self._ahead[id(weights)] = weights, dict(zip([a.prompt for a in mine], answers, strict=True)), each

    def settle(self) -> None:
        """Keeps the prepared adapters that nobody has asked for, as any others; what they cost is charged now. Answers
        that nobody has asked for are forgotten.
        """
        with self._lock:
            self._ahead.clear()
            for key in list(self._prepared):
                self._settled(key)

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
        one = self._size(recipe)
        prepared = sum(a.weights.nbytes for a in self._prepared.values())
        quarter = self._most() / 4
        room = int((quarter - prepared) / one)
        counts = range(int(quarter / (COPIES * one)), 1, -1)
        fit = next((n for n in counts if n * one * self._copies(n, recipe) <= quarter), 1)
        return max(0 if prepared else 1, min(room, fit))

    def _most(self) -> int:
        """Bytes that may be used: the bound, or what is free."""
        return free_memory(self.loaded.model.device) if self.memory_bytes is None else self.memory_bytes

    def _size(self, recipe: Recipe) -> int:
        """Bytes of an adapter."""
        return LoraWeights.initial(self.loaded.model, replace(recipe, rank=1), [0]).nbytes * recipe.rank

    def _copies(self, adapters: int, recipe: Recipe) -> int:
        """Of their weights, that training so many adapters side by side holds at most."""
        workers = 1 if self.stacks else min(self.threads, adapters * recipe.batch)
        return COPIES - 1 + parts_of(adapters, recipe.batch, workers)


def _refuse_failed(trainings: Sequence[Training]) -> None:
    """Raises `AdaptationError` where one of them failed."""
    for training in trainings:
        if training.error:
            raise AdaptationError(training.error)


def _alike(adapter: Adapter, recipe: Recipe) -> bool:
    """Whether an adapter alone has the shape and the scale that the recipe asks for."""
    mine = adapter.recipe
    same = (mine.rank, mine.alpha, mine.targets) == (recipe.rank, recipe.alpha, recipe.targets)
    return adapter.weights.count == 1 and same
