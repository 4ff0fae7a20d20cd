"""The learner: a language model that answers tasks, as it is or adapted, trains adapters, and proves it is unchanged.

Knows nothing about which strategy is worth it. One learner serves one model; its methods may be called from several
threads and take turns.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .engine.adapter_cache import AdapterCache
from .engine.adapter_store import AdapterStore
from .engine.adapter_trainer import AdapterTrainer
from .engine.answering import Answer, Answerer, PromptScores, require_single
from .engine.guarded import GuardedModel, Work
from .engine.prefetch import AnswerPrefetch
from .lora.adapter import Adapter
from .lora.training import OnStep
from .model.context_window import ContextWindow
from .model.encoding import Encoded
from .model.fingerprint import RevertProof
from .model.generation import TokenScores
from .model.loading import LoadedModel, load_model, wrap_model
from .recipes import Recipe, recipe_for, recipes_for_each
from .tasks.task import Task, Value

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Learner:
    """A model with everything that can be asked of it. Build one with `Learner.load` or from a model in memory.

    Each part does its work in a module of its own: `guarded`, `window`, `answerer`, `teacher` and `store`.
    """

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
        self.loaded = loaded
        self.guarded = GuardedModel(loaded, verify, memory_bytes)
        self.window = ContextWindow(loaded)
        ahead = AnswerPrefetch(self.guarded, self.window)
        self.answerer = Answerer(self.guarded, self.window, ahead)
        self.trainer = AdapterTrainer(self.guarded, self.window, self.answerer)
        self.store = AdapterStore(self.guarded, self.trainer, ahead, adapters or AdapterCache())
        self.lock = self.guarded.lock
        """Whose turn it is at the model; others around it wait for the same."""

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
        """A learner around a local folder, a hub id, or the bundled model; see `autottt.ttt_core.model.loading.load_model`."""
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

    # --- the model -------------------------------------------------------------------------------------------------

    @property
    def verification(self) -> Literal["pointers", "full"]:
        """How `verify` proves the base unchanged."""
        return self.guarded.verification

    @property
    def memory_bytes(self) -> int | None:
        """The bound on what is read side by side and kept in training; None: a share of what is free."""
        return self.guarded.memory_bytes

    @memory_bytes.setter
    def memory_bytes(self, most: int | None) -> None:
        self.guarded.memory_bytes = most

    @property
    def adapters(self) -> AdapterCache:
        """Adapters of demonstrations that were met before."""
        return self.store.cache

    @adapters.setter
    def adapters(self, cache: AdapterCache) -> None:
        self.store.cache = cache

    @property
    def work(self) -> Work:
        """All work done so far; take differences."""
        return self.guarded.work

    @property
    def prefetch_seconds(self) -> float:
        """Seconds of training and answering that were done ahead and have been charged so far; take differences."""
        return self.guarded.prefetch_seconds

    @property
    def base_hash(self) -> str:
        """Content hash of the base model, as loaded."""
        return self.guarded.base_hash

    @property
    def precision(self) -> str:
        """Type of the weights, such as bfloat16."""
        return self.guarded.precision

    @property
    def threads(self) -> int:
        """Threads that computing on the CPU uses."""
        return self.guarded.threads

    @property
    def batches_adapters(self) -> bool:
        """Whether passes take rows of many adapters: on accelerators. On a CPU one task's rows fill a core already, and
        padding them to the longest of all costs more than it gives (see `gradients`).
        """
        return self.guarded.batches_adapters

    def verify(self, *, full: bool | None = None) -> RevertProof:
        """Proves that the base is what was loaded. Raises `BaseChangedError`; then the learner refuses all work."""
        return self.guarded.verify(full=full)

    def recipe(self, strategy: str, kind: str = "") -> Recipe:
        """The recipe of a strategy for this model and kind of task, or for any kind, or the general default."""
        return recipe_for(self.loaded.recipes, strategy, kind)

    # --- prompts ---------------------------------------------------------------------------------------------------

    def encode(self, task: Task, answer: Value | None = None) -> Encoded:
        """The task's prompt as ids. Raises `TooLongError` when it does not fit in the context with its answer; where
        none is given, with one as long as the shortest output shown.
        """
        return self.window.encode(task, answer)

    def fits(self, task: Task, answer: Value | None = None) -> bool:
        """Whether the task's prompt and this answer, or else one as long as the shortest shown, fit in the context."""
        return self.window.fits(task, answer)

    def length(self, task: Task) -> int:
        """Tokens of the task's prompt, with its answer where that is known. Raises `TooLongError` as `encode`."""
        return len(self.encode(task, task.answer).ids)

    def max_new_tokens(self, task: Task) -> int:
        """Tokens that an answer may take, where the prompt leaves as many: twice the longest output shown or the query,
        and 16 more.
        """
        return self.window.max_new_tokens(task)

    # --- answering -------------------------------------------------------------------------------------------------

    def read(self, task: Task, adapter: Adapter | None = None) -> PromptScores:
        """Reads the demonstrations and scores each answer on the way. What was read is kept for `answer`."""
        return self.answerer.read(task, adapter)

    def answer(
        self,
        tasks: Sequence[Task],
        adapter: Adapter | None = None,
        *,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[Answer]:
        """One answer per task, decoded in batches: greedy, or sampled at a temperature above 0."""
        return self.answers(tasks, require_single(adapter), temperature=temperature, seed=seed)[0]

    def answers(
        self,
        tasks: Sequence[Task],
        adapter: Adapter | None = None,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        drafts: Sequence[Value | None] = (),
    ) -> list[list[Answer]]:
        """As `answer`, by each adapter of a cross-fitted one: [A][task]. Guesses at the values, one for each task,
        change how quickly they are found and nothing else.
        """
        return self.answerer.answers(tasks, adapter, temperature, seed, drafts)

    def stop_when(self, stop: Callable[[], bool]) -> AbstractContextManager[None]:
        """While inside, answers end where they are once `stop()` is true, which is asked before every pass: what was
        decoded by then may not be readable. What `stop` raises, `answers` raises.
        """
        return self.answerer.stop_when(stop)

    def cached_answer(self, task: Task) -> Value | None:
        """What the base answered to a task lately, where that is known and can be read."""
        return self.answerer.cached_answer(task)

    def score(self, tasks: Sequence[Task], adapter: Adapter | None = None) -> list[list[TokenScores]]:
        """For each task (its right answer given), the teacher-forced scores of every answer in its prompt, in order.

        The last one's `all_hit` says whether greedy decoding would answer the query right: no decoding is needed. What
        the base was asked lately is not worked out again.
        """
        return self.answerer.score(tasks, adapter)

    def clear_scores(self) -> None:
        """Drops the scores of the base: what is scored next costs what it would have, had nothing been asked before."""
        self.answerer.clear_scores()

    # --- training --------------------------------------------------------------------------------------------------

    def adapt(
        self,
        examples: Sequence[Task],
        recipe: Recipe,
        *,
        seed: int = 0,
        deadline: float = math.inf,
        on_step: OnStep | None = None,
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
        recipe: Recipe | Sequence[Recipe],
        seeds: Sequence[int],
        *,
        deadline: float = math.inf,
        on_step: OnStep | None = None,
        charged: bool = True,
        start: Adapter | None = None,
    ) -> list[Adapter]:
        """Trains an adapter for each list of examples, as many side by side as fit in memory and the others afterwards,
        with their share of the time. Each gets what `adapt` would have given it. `recipe` is for all of them, or one
        for each, of one form (`Recipe.form`).

        Not `charged`, it is left to `remembered` to charge the work to who asks for an adapter first, and to the caller
        to look whether one `failed`: only what concerns all of them is raised.
        """
        with self.lock.compute:
            return self.trainer.adapt_many(
                examples, recipes_for_each(recipe, len(examples)), seeds, deadline=deadline, on_step=on_step, charged=charged,
                start=start, prefetched_bytes=self.store.prefetched_bytes,
            )  # fmt: skip

    def cross_validate(
        self,
        examples: Sequence[Sequence[Task]],
        held_out: Sequence[Sequence[Task]],
        recipe: Recipe,
        *,
        seed: int = 0,
        eval_steps: int | None = None,
        patience: int = 4,
        deadline: float = math.inf,
        on_step: OnStep | None = None,
    ) -> Adapter:
        """Trains an adapter per fold, side by side: on its `examples`, judged by its `held` tasks `every` so many
        steps (None: about twelve times in all).

        Keeps all as they were when the held-out tasks were answered best (see `crossfit.HeldOut`). Raises as `adapt`,
        and `AdaptationError` where so many adapters do not fit in memory side by side.
        """
        return self.trainer.cross_validate(
            examples,
            held_out,
            recipe,
            seed=seed,
            eval_steps=eval_steps,
            patience=patience,
            deadline=deadline,
            on_step=on_step,
        )

    # --- adapters --------------------------------------------------------------------------------------------------

    def get_or_train(self, key: object, make: Callable[[], Adapter]) -> tuple[Adapter, bool]:
        """The adapter kept under `key`, or a new one, and whether it was known. Those cut short are not kept.

        One that was prepared is new to who asks for it first, and charged then.
        """
        return self.store.get_or_train(key, make)

    def has_adapter(self, key: object) -> bool:
        """Whether `remembered` would train nothing."""
        return self.store.has_adapter(key)

    def nearest(self, task: Task, recipe: Recipe, most: int) -> Adapter | None:
        """Of the adapters used last, up to `most` of the task's kind and the recipe's rank and targets, the one that
        finds the demonstrations' answers likeliest; None where the base finds them likelier still."""

        def suits(adapter: Adapter) -> bool:
            return adapter.base_hash == self.base_hash and adapter.kind == task.kind and adapter.matches(recipe)

        with self.lock.compute:
            known = self.adapters.most_recent(most, suits, self.loaded.model.device)
            shown = [task.leave_out(len(task.demonstrations) - 1)]
            candidates = [None, *known] if known else []
            likelihoods = [sum(s.total for s in self.score(shown, a)[0][1:]) for a in candidates]
            return candidates[likelihoods.index(max(likelihoods))] if candidates else None

    def export(self, adapter: Adapter, folder: str | os.PathLike[str]) -> None:
        """Writes an adapter as a folder that `peft.PeftModel.from_pretrained` reads. Raises `AdaptationError` for one
        of another base, and `ModelError` for several that were cross-fitted.
        """
        self.guarded.refuse_other_base(adapter)
        adapter.to_peft(Path(folder), self.loaded.model.name_or_path)

    def import_peft(self, folder: str | os.PathLike[str]) -> Adapter:
        """Reads a LoRA adapter of this model from a folder that PEFT wrote, to answer with. Raises `ModelError` for any
        other kind of adapter, and where its layers or their sizes are not the model's.
        """
        return Adapter.from_peft(Path(folder), self.loaded.model, self.base_hash)

    def clear(self) -> None:
        """Drops every adapter and prefix in memory. Adapters in a folder stay there."""
        with self.lock.compute:
            self.answerer.clear()
            self.store.clear()

    def reset_charges(self) -> None:
        """Forgets, but for the adapters in memory: they count as prepared, and whoever asks for one is charged for it.

        So costs can be measured as if nothing were known, without training anything twice. Cross-fitted adapters are
        forgotten: what watching them cost is not kept.
        """
        with self.lock.compute:
            self.answerer.clear()
            self.store.reset_charges()

    # --- ahead of time ---------------------------------------------------------------------------------------------

    def prefetch(
        self,
        keys: Sequence[object],
        examples: Sequence[Sequence[Task]],
        recipe: Recipe | Sequence[Recipe],
        seeds: Sequence[int],
        *,
        on_step: OnStep | None = None,
    ) -> None:
        """Trains adapters side by side, as many at once as fit, to be asked for by `remembered` soon; by one recipe, or
        one for each, of one form.

        Those that fail are not prepared, nor those that would not fit in memory beside the others. What `on_step`
        raises is raised.
        """
        self.store.prefetch(keys, examples, recipes_for_each(recipe, len(keys)), seeds, on_step)

    def prefetch_answers(self, keys: Sequence[object], tasks: Sequence[Sequence[Task]]) -> None:
        """Decodes what prepared adapters answer to some tasks each, side by side, for `answers` to find. What fails
        here is left to be asked again there.
        """
        self.store.prefetch_answers(keys, tasks)

    def release_prefetched(self) -> None:
        """Keeps the prepared adapters that nobody has asked for, as any others; what they cost is charged now. Answers
        that nobody has asked for are forgotten.
        """
        self.store.release_prefetched()
