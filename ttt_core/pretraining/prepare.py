"""Trains a starting adapter for a model on tasks of many families, in rounds that survive a kill of the process.

After each round the adapter answers queries of families that it is not trained on; the best adapter so far is kept, and
training stops when some rounds brought no improvement. Knows nothing about files of tasks or about splits.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import ModelError, TaskError
from ..file_writing import explained, remove_partial, replacing_together, write_whole
from ..learner import Learner
from ..lora.adapter import Adapter
from ..lora.starting_adapter import write_card
from ..recipes import Recipe
from ..tasks.augmentation import leave_one_out_orders
from ..tasks.task import Task

RECIPE = Recipe(
    rank=16, alpha=16.0, dropout=0.0, learning_rate=3e-4, max_steps=10, batch_size=6, warmup_ratio=0.0,
    target_modules=("q_proj", "v_proj", "gate_proj", "up_proj", "down_proj", "o_proj"),
)  # fmt: skip
"""One round. Rank and modules are those of the recipes of small models, so that their trainings start from it."""
_CONTINUES = "free space on its disk; the same command continues after the last round"
STATE = "state.json"
"""What a run reached: the curve, and the names and digests of the adapters after the last and the best round."""


@dataclass(frozen=True)
class Round:
    """The adapter after a round of training, on families that it is not trained on."""

    steps: int
    loss: float
    """Mean training loss of the round, in nats; 0 before the first."""
    right: int
    """Queries that are answered right in context."""
    log_prob: float
    """Mean log-probability per query of the right answers, in nats."""


@dataclass(frozen=True)
class Preparation:
    """How a starting adapter is trained, and what happened so far."""

    recipe: Recipe = RECIPE
    rounds: int = 30
    patience: int = 4
    """Rounds without an improvement on held-out families after which training stops."""
    seed: int = 0
    curve: tuple[Round, ...] = ()
    """Before training, and after each round."""

    @property
    def best(self) -> int:
        """The index of the best round: most right answers, then the highest likelihood; 0: without training."""
        return max(range(len(self.curve)), key=lambda n: (self.curve[n].right, self.curve[n].log_prob))

    @property
    def is_finished(self) -> bool:
        """Whether training has ended."""
        done = len(self.curve) - 1
        return done >= self.rounds or (done >= 0 and done - self.best >= self.patience)

    @property
    def is_past_its_end(self) -> bool:
        """Whether training went on after it should have ended: an earlier run had more rounds, or more patience."""
        return any(replace(self, curve=self.curve[:count]).is_finished for count in range(1, len(self.curve)))


OnRound = Callable[[Preparation], None]
"""Called with what happened so far, after each evaluation."""


def prepare(
    learner: Learner, training: Sequence[Task], held_out: Sequence[Task], folder: Path, settings: Preparation,
    on_round: OnRound | None = None,
) -> Preparation:  # fmt: skip
    """Trains a starting adapter on the `training` tasks, judged by the `held_out` tasks of other families, and writes
    the best one to a PEFT folder. What happened is in `folder`'s neighbour `.NAME.state`, where a killed run continues;
    a run with other tasks or settings, or with fewer rounds than were trained, has a state of its own there, and loses
    none of the others.

    Raises `TaskError` where a family is on both sides, a side is empty, or a task to train on has no demonstrations;
    `ModelError` where no round improved on the model without an adapter: then nothing is written. So it does for a
    learner that has a starting adapter: training begins from new weights.
    """
    if learner.adapters.starting is not None or learner.answerer.reading is not None:
        raise ModelError(
            "expected a learner without a starting adapter, since training begins from new weights; it has one"
        )
    _check(training, held_out)
    state = folder.parent / f".{folder.name}.state" / _identity(learner, training, held_out, settings)
    so_far, adapter = _resumed(state, settings)
    if so_far.is_past_its_end:  # of its earlier rounds only the best adapter is kept
        state = state.with_name(f"{state.name}-{settings.rounds}-{settings.patience}")
        so_far, adapter = _resumed(state, settings)
    with explained(state, _CONTINUES):
        state.mkdir(parents=True, exist_ok=True)
        for written in (folder, state):
            remove_partial(written)
    if not so_far.curve:
        so_far = replace(so_far, curve=(_judged(learner, held_out, None, 0, 0.0),))
        _save_state(state, so_far, None)
    if on_round is not None:
        on_round(so_far)
    while not so_far.is_finished:
        number = len(so_far.curve)
        examples = _examples(training, settings, number)
        adapter = learner.adapt(examples, settings.recipe, seed=settings.seed + number, start=adapter)
        loss = sum(adapter.training.losses) / max(1, len(adapter.training.losses))
        steps = so_far.curve[-1].steps + adapter.training.steps
        so_far = replace(so_far, curve=(*so_far.curve, _judged(learner, held_out, adapter, steps, loss)))
        _save_state(state, so_far, adapter)
        if on_round is not None:
            on_round(so_far)
    if so_far.best == 0:
        raise ModelError(
            f"no round of {settings.recipe.max_steps} steps was better on held-out families than the model without an "
            "adapter: give tasks of more families, or a lower --learning-rate"
        )
    with replacing_together(folder, _CONTINUES) as partial:
        learner.export(Adapter.load(state / _file_of(so_far.best), learner.loaded.model.device), partial)
        write_card(partial, _card(learner, training, held_out, so_far))
    return so_far


def _check(training: Sequence[Task], held_out: Sequence[Task]) -> None:
    families = [{task.family for task in tasks} for tasks in (training, held_out)]
    if not all(families):
        raise TaskError(
            f"expected tasks of families to train on and of others to judge by; received {len(families[0])} and "
            f"{len(families[1])} families: give tasks of more families"
        )
    if shared := sorted(families[0] & families[1]):
        raise TaskError(f"{shared[0]}: this family is both trained on and held out")
    for task in training:
        if not task.demonstrations:
            raise TaskError(f"{task.id}: training an adapter needs demonstrations; this task has none")


def _examples(training: Sequence[Task], settings: Preparation, number: int) -> list[Task]:
    """The prompts of a round: of families in turn, tasks with their demonstrations in random orders."""
    rng = random.Random(f"prepare-{settings.seed}-{number}")
    by_family: dict[str, list[Task]] = {}
    for task in training:
        by_family.setdefault(task.family, []).append(task)
    count = settings.recipe.max_steps * settings.recipe.batch_size
    examples: list[Task] = []
    while len(examples) < count:
        for family in rng.sample(sorted(by_family), len(by_family)):
            examples += leave_one_out_orders(rng.choice(by_family[family]), 1, rng)
    return examples[:count]


def _judged(learner: Learner, held_out: Sequence[Task], adapter: Adapter | None, steps: int, loss: float) -> Round:
    scores = [rows[-1] for rows in learner.score(held_out, adapter)]
    return Round(steps, loss, sum(s.all_hit for s in scores), sum(s.total for s in scores) / len(scores))


def _identity(learner: Learner, training: Sequence[Task], held_out: Sequence[Task], settings: Preparation) -> str:
    """What a run that continues has in common with the one that was interrupted; the number of rounds may grow."""
    sides = [[(t.digest, t.answer, t.comparison, t.family) for t in tasks] for tasks in (training, held_out)]
    model = learner.base_hash, learner.guarded.precision, learner.loaded.prompt_format
    parts = *model, sides, settings.recipe, settings.seed
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _file_of(number: int) -> str:
    """The name of the adapter after a round."""
    return f"round-{number}.safetensors"


def _save_state(state: Path, so_far: Preparation, adapter: Adapter | None) -> None:
    """Saves the adapter after the last round, then the state that names it, then deletes what the state no longer
    names: a kill in between leaves the state before or after the round, with its files."""
    last = len(so_far.curve) - 1
    if adapter is not None:
        adapter.save(state / _file_of(last), remedy=_CONTINUES)
    files = {_file_of(number): _sha256(state / _file_of(number)) for number in {last, so_far.best} - {0}}
    text = json.dumps({"curve": [asdict(one) for one in so_far.curve], "files": files})
    write_whole(state / STATE, text, _CONTINUES)
    _delete_others(state, files)


def _delete_others(state: Path, files: Collection[str]) -> None:
    """Deletes the adapters that a state does not name."""
    for file in state.glob("*.safetensors"):
        if file.name not in files:
            file.unlink(missing_ok=True)


def _resumed(state: Path, settings: Preparation) -> tuple[Preparation, Adapter | None]:
    """What an interrupted run reached; the settings and no adapter if there is none, or if it is damaged."""
    try:
        stored = json.loads((state / STATE).read_text("utf-8"))
        so_far = replace(settings, curve=tuple(Round(**one) for one in stored["curve"]))
        last = len(so_far.curve) - 1
        for number in {last, so_far.best} - {0}:
            if _sha256(state / _file_of(number)) != stored["files"][_file_of(number)]:
                return settings, None
        _delete_others(state, stored["files"])
        return so_far, Adapter.load(state / _file_of(last)) if last else None
    except (OSError, ValueError, LookupError, TypeError, ModelError):
        return settings, None


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _card(learner: Learner, training: Sequence[Task], held_out: Sequence[Task], so_far: Preparation) -> dict[str, Any]:
    return {
        "base_hash": learner.base_hash, "prompt_format": learner.loaded.prompt_format,
        "recipe": asdict(so_far.recipe), "seed": so_far.seed, "best_round": so_far.best,
        "curve": [asdict(one) for one in so_far.curve], "held_out_queries": len(held_out),
        "families": sorted({task.family for task in training}),
        "held_out_families": sorted({task.family for task in held_out}),
    }  # fmt: skip
