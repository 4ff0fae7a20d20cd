"""The learner: a language model that answers tasks, trains adapters for them, and proves that it is unchanged.

Knows nothing about which strategy is worth its cost. One learner serves one model; its methods may be called from
several threads and take turns. The work is done by its parts, which are public attributes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from .engine.adapter_cache import AdapterCache
from .engine.adapter_provider import AdapterProvider
from .engine.adapter_trainer import AdapterTrainer
from .engine.answering import Answer, Answerer, PromptScores, require_single
from .engine.format_choice import FormatChooser
from .engine.guarded_model import GuardedModel
from .engine.prefetch import AnswerPrefetch
from .errors import ModelError
from .lora.adapter import Adapter
from .lora.gradients import forget_measurements
from .lora.starting_adapter import refuse_other_base
from .lora.training import OnStep
from .model.context_window import ContextWindow
from .model.fingerprint import RevertProof
from .model.generation import TokenScores
from .model.loading import LoadedModel, load_model, wrap_model
from .model.replica import replica_of
from .recipes import Recipe
from .tasks.task import Task, Value

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Learner:
    """A model and everything that can be done with it. `Learner.load` loads one, `Learner.wrap` takes one in memory.

    | part | what it holds |
    |---|---|
    | `loaded` | the model, its tokenizer, prompt format and recipes |
    | `guarded` | the lock, the running cost, the memory bound and the proof that the model is unchanged |
    | `window` | prompts as token ids, and what fits in the context |
    | `answerer` | decoding and scoring, with their caches |
    | `formats` | the choice of the prompt format for a task |
    | `trainer` | training of adapters |
    | `adapters` | trained adapters: cached, prefetched, or trained on request |
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        verify: Literal["pointers", "full"] = "pointers",
        adapters: AdapterCache | None = None,
        memory_bytes: int | None = None,
        original: Learner | None = None,
        starting_adapter: str | os.PathLike[str] | None = None,
        read_with_adapter: bool = False,
    ) -> None:
        """`verify` is the method of `Learner.verify`; `adapters` is where trained adapters are cached; `original` is
        the learner around the model that `loaded` has a replica of, see `learner_of_replica`.

        `memory_bytes` bounds the memory of training (activations, adapters, gradients, moments) and of batched
        inference; None: a share of what is free. The model itself is not counted. `starting_adapter` is a PEFT folder
        with the adapter that every training starts from, in its rank and modules; with `read_with_adapter` it also
        answers in context. Raises `ModelError` for a folder that does not fit the model.
        """
        self.loaded = loaded
        guard_of_original = None if original is None else original.guarded
        self.guarded: GuardedModel = GuardedModel(loaded, verify, memory_bytes, guard_of_original)
        self.window = ContextWindow(loaded, self.guarded.raise_if_stopped)
        answers = AnswerPrefetch(self.guarded)
        self.answerer = Answerer(self.guarded, self.window, answers)
        self.formats = FormatChooser(self.guarded, self.window, self.answerer)
        self.trainer = AdapterTrainer(self.guarded, self.window, self.answerer)
        self.adapters = AdapterProvider(self.guarded, self.trainer, self.answerer, answers, adapters or AdapterCache())
        self._start_from(starting_adapter, read_with_adapter)

    def __reduce__(self) -> NoReturn:
        """Raises `TypeError`: what is guarded here is this one model in memory."""
        raise TypeError(
            "a Learner, and a Controller around it, cannot be pickled or deep-copied: it guards a model in memory, "
            "with locks; make one in each process, such as with Controller.from_pretrained(...)"
        )

    def _start_from(self, folder: str | os.PathLike[str] | None, read_with_adapter: bool) -> None:
        if folder is None:
            if read_with_adapter:
                raise ModelError("read_with_adapter: expected a starting_adapter as well, the folder of the adapter")
            return
        refuse_other_base(Path(folder), self.base_hash)
        self.adapters.starting = self.import_peft(folder)
        self.answerer.reading = self.adapters.starting if read_with_adapter else None

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
        starting_adapter: str | os.PathLike[str] | None = None,
        read_with_adapter: bool = False,
    ) -> Learner:
        """A learner around a local folder, a hub id, or the bundled model; see `ttt_core.model.loading.load_model`."""
        loaded = load_model(source, device=device, dtype=dtype, prompt_format=prompt_format)
        return cls(
            loaded, verify=verify, adapters=adapters, memory_bytes=memory_bytes, starting_adapter=starting_adapter,
            read_with_adapter=read_with_adapter,
        )  # fmt: skip

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
        starting_adapter: str | os.PathLike[str] | None = None,
        read_with_adapter: bool = False,
    ) -> Learner:
        """A learner around a model that a program already holds. Every call leaves the model as it was."""
        loaded = wrap_model(model, tokenizer, prompt_format=prompt_format)
        return cls(
            loaded, verify=verify, adapters=adapters, memory_bytes=memory_bytes, starting_adapter=starting_adapter,
            read_with_adapter=read_with_adapter,
        )  # fmt: skip

    @property
    def base_hash(self) -> str:
        """Content hash of the base model, as loaded."""
        return self.guarded.base_hash

    def fits(self, task: Task, answer: Value | None = None) -> bool:
        """Whether the task's prompt fits in the context with this answer, or else with one as long as the shortest
        output of the demonstrations."""
        return self.window.fits(task, answer)

    def read(self, task: Task, adapter: Adapter | None = None) -> PromptScores:
        """Reads the demonstrations and scores each answer given those before it. The key-value cache is kept for
        `answer`. Raises `TooLongError`."""
        return self.answerer.read(task, adapter)

    def answer(
        self, tasks: Sequence[Task], adapter: Adapter | None = None, *, temperature: float = 0.0, seed: int = 0
    ) -> list[Answer]:
        """One answer per task, decoded in batches: greedy, or sampled at a temperature above 0. Raises `TooLongError`,
        and `AdaptationError` for a cross-validated adapter (see `answers`)."""
        return self.answerer.answers(tasks, require_single(adapter), temperature, seed)[0]

    def answers(
        self,
        tasks: Sequence[Task],
        adapter: Adapter | None = None,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        drafts: Sequence[Value | None] = (),
    ) -> list[list[Answer]]:
        """The answers by each fold of a cross-validated adapter, [A][task]; one row for any other.

        `drafts`, one per task, are verified instead of decoded token by token: they change the speed and no answer.
        """
        return self.answerer.answers(tasks, adapter, temperature, seed, drafts)

    def score(self, tasks: Sequence[Task], adapter: Adapter | None = None) -> list[list[TokenScores]]:
        """For each task with a known answer: the teacher-forced scores of every answer in its prompt, in order.

        The last one's `all_hit` says whether greedy decoding would answer the query right, without decoding. Scores of
        the base model are cached.
        """
        return self.answerer.score(tasks, adapter)

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

        `deadline` is a time of `ttt_core.clock.monotonic`; `start` is an adapter of the recipe's rank, alpha and
        modules to start from, which stays as it is. Raises `AdaptationError` (a loss that is not finite, no memory,
        nothing to train on); whatever is raised, the model is as it was.
        """
        (adapter,) = self.trainer.adapt_many(
            [examples], [recipe], [seed], deadline=deadline, on_step=on_step, start=start,
            prefetched_bytes=self.adapters.prefetched_bytes,
        )  # fmt: skip
        return adapter

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
        trial_steps: int = 0,
    ) -> Adapter:
        """Trains an adapter per fold in one batch: on its `examples`, evaluated on its `held_out` tasks every
        `eval_steps` steps (None: about twelve times in all). After `trial_steps` steps, unless 0, training is given up
        where no evaluation was better than the base.

        Keeps all adapters as they were when the held-out tasks were answered best (see
        `lora.cross_validation.HeldOutMonitor`). Raises as `adapt`, and `AdaptationError` where the adapters of all
        folds do not fit in memory together.
        """
        return self.trainer.cross_validate(
            examples, held_out, recipe, seed=seed, eval_steps=eval_steps, patience=patience, deadline=deadline,
            on_step=on_step, trial_steps=trial_steps,
        )  # fmt: skip

    def verify(self, *, full: bool | None = None) -> RevertProof:
        """Proves that the base is what was loaded. Raises `BaseChangedError`; then the learner refuses all work."""
        return self.guarded.verify(full=full)

    def export(self, adapter: Adapter, folder: str | os.PathLike[str]) -> None:
        """Writes an adapter as a folder that `peft.PeftModel.from_pretrained` reads. Raises `AdaptationError` for an
        adapter of another base, and `ModelError` for a cross-validated one.
        """
        self.guarded.refuse_other_base(adapter)
        adapter.to_peft(Path(folder), self.loaded.model.name_or_path)

    def import_peft(self, folder: str | os.PathLike[str]) -> Adapter:
        """Reads a LoRA adapter of this model from a folder that PEFT wrote, to answer with. Raises `ModelError` for any
        other kind of adapter, and where its modules or their sizes are not the model's.
        """
        return Adapter.from_peft(Path(folder), self.loaded.model, self.base_hash)

    def clear(self) -> None:
        """Drops every adapter, key-value cache, score and measurement in memory. Adapters in a folder stay there."""
        with self.guarded.lock.compute:
            forget_measurements(self.loaded.model)
            self.answerer.clear()
            self.formats.clear()
            self.adapters.clear()

    def reset_charges(self) -> None:
        """Makes what comes next cost as much as if nothing were cached, without training anything twice: adapters in
        memory count as prefetched (see `AdapterProvider.reset_charges`), everything else is dropped."""
        with self.guarded.lock.compute:
            self.answerer.clear()
            self.formats.clear()
            self.adapters.reset_charges()


def learner_of_replica(learner: Learner) -> Learner | None:
    """A learner that computes at the same time as the given one, in another thread: around a replica of its model,
    which shares the weights, with the same caches of adapters and of the base's answers. None where the model has no
    replica; see `model.replica.replica_of`. Raises `BaseChangedError` where the base is not what was loaded.
    """
    with learner.guarded.compute(None):
        learner.verify()
        model = replica_of(learner.loaded.model)
        if model is None:
            return None
        copy = Learner(
            replace(learner.loaded, model=model), verify=learner.guarded.verification, adapters=learner.adapters.cache,
            memory_bytes=learner.guarded.memory_bytes, original=learner,
        )  # fmt: skip
        copy.adapters.starting, copy.answerer.reading = learner.adapters.starting, learner.answerer.reading
        copy.answerer.base_answers = learner.answerer.base_answers
        return copy
