"""Chooses the prompt format of a task by evidence: how well the model predicts the demonstrations under each format.

The presence of a chat template says little about which format a model continues best, and the best one differs between
tasks. `standard` is used unless under another format more answers are predicted exactly, and answers are likelier by
more than one standard error (the rule of Breiman et al. 1984, Classification and Regression Trees): a few answers are
weak evidence, and likelihood alone favours formats whose ends are easy to predict. Knows nothing about strategies.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev

from ..errors import ModelError, TaskError
from ..model.context_window import ContextWindow
from ..model.generation import TokenScores, floored
from ..spans import span
from ..tasks.prompts import STANDARD_FORMAT, check_format
from ..tasks.task import Task
from .answering import Answerer
from .cost import Cost
from .guarded_model import GuardedModel

_LOG = logging.getLogger("autottt")
MIN_DEMONSTRATIONS = 3
"""Demonstrations with which formats are compared: the first is not scored, and one difference has no standard error."""
MAX_CACHED_CHOICES = 256
"""Sets of demonstrations whose choice is cached."""
SMALLEST_ERROR = 1e-3
"""Standard errors, in nats, are at least this: a few equal differences are no certainty."""


@dataclass(frozen=True)
class FormatChoice:
    """The prompt format of a task, and why."""

    name: str
    scores: Mapping[str, float] = field(default_factory=dict)
    """Format -> mean log-probability, in nats, of a demonstration's answer and its end, given the demonstrations before
    it; empty where there was nothing to compare."""
    right: Mapping[str, int] = field(default_factory=dict)
    """Format -> demonstrations whose answer and end the model predicts exactly, given the demonstrations before it."""
    reason: str = ""
    """Why nothing was compared."""
    cost: Cost = field(default_factory=Cost)
    """Of reading the demonstrations in the formats that were not chosen; nothing where they were read before."""

    @property
    def margin(self) -> float:
        """Score of the chosen format minus that of the best other one, in nats; 0 where nothing was compared. Negative
        where another one is likelier without enough evidence."""
        others = [score for name, score in self.scores.items() if name != self.name]
        return self.scores[self.name] - max(others) if others else 0.0


@dataclass(frozen=True)
class _Evidence:
    """What is known of the formats of one set of demonstrations, whatever the query."""

    readings: dict[str, FormatReading] = field(default_factory=dict)
    """By format, of those in which the demonstrations were read."""
    refused: set[str] = field(default_factory=set)
    """Formats that the chat template does not allow, of which a warning was logged."""


class FormatChooser:
    """Chooses among the prompt formats of one model. Caches how the demonstrations are predicted in each format, and
    the choices by demonstrations and query: which formats may be used depends on both."""

    def __init__(self, guarded: GuardedModel, window: ContextWindow, answerer: Answerer) -> None:
        self._guarded = guarded
        self._loaded = guarded.loaded
        self._window = window
        self._answerer = answerer
        self._evidence: dict[object, _Evidence] = {}
        """By the demonstrations."""
        self._choices: dict[object, FormatChoice] = {}
        """By the demonstrations and the query."""

    def formatted(self, task: Task) -> Task:
        """The task with its prompt format chosen, unless it has one or there is only one format. Raises `TaskError` for
        an unknown format."""
        if check_format(task.prompt_format) or not self._loaded.formats:
            return task
        return replace(task, prompt_format=self.choose(task).name)

    def choose(self, task: Task) -> FormatChoice:
        """The prompt format of a task, among those in which its prompt fits. One pass over the demonstrations in each
        of them is charged, unless an earlier task had the same demonstrations."""
        if task.prompt_format in self._loaded.formats:
            return FormatChoice(task.prompt_format, reason="the task names its prompt format")
        if not self._loaded.formats:
            return FormatChoice(self._loaded.format.name, reason=self._loaded.format_reason)
        demonstrations = task.kind, task.instruction, task.demonstrations
        key = *demonstrations, task.query
        if key in self._choices:
            return replace(self._choices[key], cost=Cost())
        evidence = self._evidence.setdefault(demonstrations, _Evidence())
        with span("format") as step:
            self._choices[key] = choice = self._compare(task, evidence)
            step.set(name=choice.name, scores=dict(choice.scores), reason=choice.reason)
        for cache in (self._choices, self._evidence):
            if len(cache) > MAX_CACHED_CHOICES:
                del cache[next(iter(cache))]
        return choice

    def clear(self) -> None:
        """Drops the cached choices, and what they are made of."""
        self._choices.clear()
        self._evidence.clear()

    def _compare(self, task: Task, evidence: _Evidence) -> FormatChoice:
        versions = [replace(task, prompt_format=name) for name in self._loaded.formats]
        if len(task.demonstrations) < MIN_DEMONSTRATIONS:
            default = STANDARD_FORMAT.name if task.demonstrations else self._loaded.format.name
            versions.sort(key=lambda version: version.prompt_format != default)
            name = next((v.prompt_format for v in versions if self._usable(v, evidence)), default)
            return FormatChoice(name, reason=f"too few demonstrations to compare formats ({len(task.demonstrations)})")
        fitting = {version.prompt_format: version for version in versions if self._usable(version, evidence)}
        if not fitting:
            return FormatChoice(self._loaded.format.name, reason="the task can be written in no format")
        costs: dict[str, Cost] = {}
        with self._answerer.caching_prefixes(len(fitting)):
            for name, version in fitting.items():
                if name not in evidence.readings:
                    meter = self._guarded.meter()
                    evidence.readings[name] = FormatReading.of(self._answerer.read(version).answers)
                    costs[name] = meter.read()
            readings = {name: evidence.readings[name] for name in fitting}
            name = best_format(readings, STANDARD_FORMAT.name)
            if costs:
                self._answerer.read(fitting[name])  # the prefix that stays cached
        scores = {n: fmean(reading.likelihoods) for n, reading in readings.items()}
        right = {n: reading.right for n, reading in readings.items()}
        return FormatChoice(name, scores, right, cost=sum((c for n, c in costs.items() if n != name), Cost()))

    def _usable(self, version: Task, evidence: _Evidence) -> bool:
        """Whether the task fits in the context in its format. False where an output contains what ends an answer in it,
        and, with a warning for the first query of the demonstrations, where the chat template changes the prompt, or
        raises an error, for this number of turns."""
        try:
            return self._window.fits(version)
        except TaskError:
            return False
        except ModelError as error:
            if version.prompt_format == STANDARD_FORMAT.name:
                raise
            if version.prompt_format in evidence.refused:
                return False
            evidence.refused.add(version.prompt_format)
            problem = re.split(r" \(|: ", str(error))[0]  # what follows may quote the task
            _LOG.warning("%s: the prompt format %s is not used: %s", version.id, version.prompt_format, problem)
            _LOG.debug("why the prompt format is not used: %s", error)
            return False


@dataclass(frozen=True)
class FormatReading:
    """How well the model predicts the demonstrations in one format, the first left out: none precedes it."""

    likelihoods: tuple[float, ...]
    """Log-probability of each answer with its end, in nats."""
    right: int
    """How many of them greedy decoding gives exactly."""

    @classmethod
    def of(cls, answers: Sequence[TokenScores]) -> FormatReading:
        """Of the scores of all demonstrations' answers."""
        likelihoods = [sum(map(floored, answer.log_probs)) for answer in answers[1:]]
        return cls(tuple(likelihoods), sum(answer.all_hit for answer in answers[1:]))


def best_format(readings: Mapping[str, FormatReading], default: str) -> str:
    """The best format for the same answers: of those with more right answers than the default, the one with the largest
    mean advantage in likelihood in units of its standard error, where that is above one; else the default.

    Where the default is not among them, the format with the largest mean is chosen.
    """
    if default not in readings:
        return max(readings, key=lambda name: fmean(readings[name].likelihoods))
    standard, best, advantage = readings[default], default, 1.0
    for name, reading in readings.items():
        differences = [a - b for a, b in zip(reading.likelihoods, standard.likelihoods, strict=True)]
        error = stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.inf
        ratio = fmean(differences) / max(error, SMALLEST_ERROR)
        if reading.right > standard.right and ratio > advantage:
            best, advantage = name, ratio
    return best
