"""Outcomes: what each strategy achieved and cost on each query, in a folder that survives a kill of the process.

Knows nothing about how outcomes are measured or what is trained on them. Each writer appends outcomes to a journal of
its own (JSON lines), and seals many at once into a shard: a Parquet file, written completely or not at all. A damaged
row never hides the others.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from itertools import takewhile
from numbers import Integral
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, get_type_hints

from ..ttt_core.arguments import as_number
from ..ttt_core.errors import FileError, PolicyError, shortened
from ..ttt_core.file_writing import replacing
from ..ttt_core.tasks.fields import MAX_SEED, MISSING, is_utf8
from .outcome_files import (
    SHARD,
    Damage,
    journal_line,
    journals_in,
    lock_journal,
    open_journal,
    pyarrow_if_installed,
    read_file,
    sealing_lock,
    shards_in,
    write_shard,
)

BASE = "in_context"
"""The strategy that is always run, since it yields the features; relative costs are multiples of its cost."""
SHARD_ROWS = 512
"""Outcomes after which a writer seals its journal."""
STATUSES = ("answered", "unreadable", "failed", "too_long", "too_few")
"""What an attempt can end with; see `Outcome.status`."""


class Key(NamedTuple):
    """What identifies an outcome; a store holds one outcome per key."""

    base_hash: str
    dataset: str
    task_id: str
    strategy: str
    seed: int
    recipe: str


@dataclass(frozen=True)
class Outcome:
    """One strategy on one query with one seed."""

    task_id: str
    group: str
    """Queries of one group share their demonstrations: they are queries of one task."""
    family: str
    """A family is never on both sides of a split."""
    dataset: str
    kind: str
    strategy: str
    seed: int
    status: str
    """`answered`, `unreadable` (not parsed), `failed`, `too_long` (exceeds the context window) or `too_few`
    (demonstrations)."""
    correct: float
    """1 for the right answer, else 0; every failure is 0."""
    seconds: float
    token_equivalents: int
    """Tokens forward, plus twice the tokens backward."""
    relative_cost: float
    """`token_equivalents` as a multiple of those of the in-context answer to the same query."""
    base_hash: str
    """Content hash of the model that answered."""
    features: Mapping[str, float] = field(default_factory=dict)
    """All stages; on the rows of `in_context` only."""
    features_version: int = 0
    probe_cost: float = 0.0
    """Cost of the probe (stage 1) in the unit of `relative_cost`; on the rows of `in_context` only."""
    recipe: str = ""
    """Digest of the strategy's recipe for this kind of task (see `strategies.base.recipe_digest_for`); empty if it
    has none, or if it is unknown."""
    digest: str = ""
    """Content digest of the task (`Task.digest`); empty if unknown."""
    forward_tokens: int = 0
    """0 together with `backward_tokens` if only their weighted sum is known."""
    backward_tokens: int = 0
    """Each counts twice in `token_equivalents`."""
    confidence: float = 0.0
    """Probability of the answer, or the share of the votes for it; 0 if unknown."""
    answer: str = ""
    """Content digest of the answer (`content_digest`): equal for strategies that agree. Empty without an answer."""
    held_out_gain: float = 1.0
    """Held-out accuracy after training minus before (`CrossValidationResult.gain`), -1 to 1; 1 without held-out
    demonstrations."""
    losses: tuple[float, ...] = ()
    """Mean loss of each training step in nats, up to the first that is not finite; empty without training."""
    vote_shares: Mapping[str, float] = field(default_factory=dict)
    """Content digest of each answer -> its share of the votes; empty for strategies that do not vote."""
    prompt_format: str = ""
    """Format of the prompts (see `load_model`); empty if unknown, which matches every format."""
    starting_adapter: str = ""
    """Digest of the adapter that training started from (`LoraWeights.digest`); empty if it started from zero."""
    policy: str = ""
    """Name and digest of the policy that chose the strategy in serving; empty if it was collected."""
    time: str = ""
    """When the run began, in ISO 8601; empty if unknown."""
    versions: str = ""
    """Versions of the packages that answered; empty if unknown."""
    comparison: str = ""
    """How the answer was compared with the right one, a key of `answers.COMPARISONS`; empty if unknown."""

    @property
    def key(self) -> Key:
        return Key(self.base_hash, self.dataset, self.task_id, self.strategy, self.seed, self.recipe)


def finite(losses: Iterable[float]) -> tuple[float, ...]:
    """The losses before the first that is not finite, at which training failed."""
    return tuple(takewhile(math.isfinite, losses))


def outcome_from(row: Mapping[str, Any]) -> Outcome:
    """The outcome with the given fields, as a row of a store has them. Raises `ValueError` naming the field, what was
    expected, and what was received."""
    if unknown := sorted(map(shortened, row.keys() - _checks())):
        raise ValueError(f"the unknown field {unknown[0]}; known are {', '.join(_checks())}")
    values: dict[str, Any] = {}
    for name, (expected, read) in _checks().items():
        received = row.get(name, MISSING)
        if (received is MISSING and name in _optional()) or (received is None and name in ("losses", "vote_shares")):
            continue  # shards may hold null for an empty list or map
        try:
            values[name] = read(received)
        except (ValueError, TypeError, OverflowError):
            raise ValueError(f"{name}: expected {expected}; received {shortened(received)}") from None
    return Outcome(**values)


@cache
def _checks() -> dict[str, tuple[str, Callable[[Any], Any]]]:
    """Field of an outcome -> what it has to be, in words and as a function that returns it or raises."""
    by_type: dict[Any, tuple[str, Callable[[Any], Any]]] = {
        str: ("a text that can be written as UTF-8", _text),
        int: ("an integer of 64 bits", _integer),
        float: ("a finite number", _number),
        tuple[float, ...]: ("a list of finite numbers", _numbers),
        Mapping[str, float]: ("an object with texts as names and finite numbers as values", _named_numbers),
    }
    own = {
        "status": (f"one of {', '.join(STATUSES)}", _status),
        "correct": ("a number from 0 to 1", _share),
    }
    return {name: by_type[hint] for name, hint in get_type_hints(Outcome).items()} | own


@cache
def _optional() -> frozenset[str]:
    """Fields that have a default."""
    return frozenset(
        f.name for f in fields(Outcome) if f.default is not NO_DEFAULT or f.default_factory is not NO_DEFAULT
    )


def _text(value: object) -> str:
    if not isinstance(value, str) or not is_utf8(value):
        raise ValueError
    return value


def _status(value: object) -> str:
    if value not in STATUSES:
        raise ValueError
    return str(value)


def _integer(value: object) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or abs(int(value)) > MAX_SEED:
        raise ValueError
    return int(value)


def _number(value: object) -> float:
    if not math.isfinite(number := as_number(value)):
        raise ValueError
    return number


def _share(value: object) -> float:
    if not 0 <= (number := _number(value)) <= 1:
        raise ValueError
    return number


def _numbers(value: object) -> tuple[float, ...]:
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise ValueError
    return tuple(map(_number, value))


def _named_numbers(value: object) -> dict[str, float]:
    pairs = list(value.items()) if isinstance(value, Mapping) else value  # a shard holds maps as pairs
    if not isinstance(pairs, list):
        raise ValueError
    numbers = {_text(name): _number(number) for name, number in pairs}
    if len(numbers) < len(pairs):
        raise ValueError
    return numbers


class StoredOutcome(NamedTuple):
    """An outcome and its place in a store."""

    file: Path
    row: int
    """Line of a journal, or row of a shard, counted from 1."""
    outcome: Outcome
    line: bytes
    """The line of a journal; empty for a shard."""


def read_outcomes_of(file: Path) -> Iterator[StoredOutcome | Damage]:
    """The outcomes and the damaged parts of a journal or shard, in their order."""
    for row in read_file(file):
        if isinstance(row, Damage):
            yield row
            continue
        try:
            yield StoredOutcome(file, row.row, outcome_from(row.fields), row.line)
        except ValueError as error:
            yield Damage(file, row.row, f"not an outcome ({error})")


def write_outcomes(outcomes: Sequence[Outcome], folder: Path) -> Path:
    """Writes a shard, completely or not at all, and returns its path."""
    target = folder / f"outcomes-{secrets.token_hex(6)}{SHARD}"
    _write_shard(outcomes, target)
    return target


def _write_shard(outcomes: Sequence[Outcome], target: Path) -> None:
    hints = get_type_hints(Outcome)
    columns = {name: [_plain(getattr(outcome, name)) for outcome in outcomes] for name in hints}
    write_shard(columns, hints, target)


def _plain(value: Any) -> Any:
    return list(value.items()) if isinstance(value, Mapping) else value


class OutcomeStore:
    """A folder of outcomes, one per key. Any number of processes may write to it at once."""

    def __init__(self, folder: str | os.PathLike[str], shard_rows: int = SHARD_ROWS) -> None:
        self.folder = Path(folder)
        self.shard_rows = shard_rows
        self._rows = 0

    _journal: BinaryIO | None = None

    def append(self, outcome: Outcome) -> None:
        """Adds one outcome, which survives a kill of the process right after the call. Raises `PolicyError` naming the
        field that a store cannot hold, and `FileError` where the store cannot be written."""
        line = journal_line(asdict(checked(outcome)))
        try:
            journal = self._open_journal()
            journal.write(line)
            journal.flush()
        except OSError as error:
            self.close()
            raise FileError(
                f"{self.folder}: an outcome cannot be stored ({error.strerror or error}): free space on its disk; the "
                "store keeps the outcomes so far, and the same command continues after them"
            ) from error
        self._rows += 1
        if self._rows >= self.shard_rows:
            self.seal()

    def read(self) -> list[Outcome]:
        """Every outcome, sorted by key. Damaged rows are skipped with a warning that names the first of each file.

        Raises `PolicyError` naming a file that is damaged as a whole, or that is in another version of the format.
        """
        by_key: dict[Key, Outcome] = {}
        journals = journals_in(self.folder)  # before the shards: an outcome sealed in between is read twice, not lost
        unsealed = [outcome for file in journals for outcome in self._sound(file)]
        for file in shards_in(self.folder):
            for outcome in self._sound(file):
                by_key.setdefault(outcome.key, outcome)
        for outcome in unsealed:
            by_key.setdefault(outcome.key, outcome)
        return [by_key[key] for key in sorted(by_key)]

    def _sound(self, file: Path) -> list[Outcome]:
        """The outcomes of a file that are not damaged."""
        outcomes, damages = _split(file)
        remedy = f"`autottt outcomes check {self.folder} --mend` sets"
        for damage in damages:
            if damage.kind == "file" or (damage.kind == "version" and not outcomes):
                raise PolicyError(f"{damage}. {remedy} it aside, and `autottt collect` measures its outcomes again")
        if rows := [damage for damage in damages if damage.kind != "torn"]:
            logging.getLogger("autottt").warning(
                "%s%s; skipped. %s damaged rows aside, and `autottt collect` measures them again",
                rows[0], f" and {len(rows) - 1} more" if rows[1:] else "", remedy,
            )  # fmt: skip
        return outcomes

    def missing(
        self, outcomes: Iterable[Outcome], same_costs: bool = False, stored: Iterable[Outcome] | None = None
    ) -> list[Outcome]:
        """The given outcomes that the store does not hold. Raises `PolicyError` if it holds one of the same key and
        answer that was judged differently or, with `same_costs`, has another cost. `stored` is what `read` returned;
        None: it is read."""
        known = {outcome.key: outcome for outcome in (self.read() if stored is None else stored)}
        new = []
        for outcome in outcomes:
            before = known.get(outcome.key)
            if before is None:
                new.append(known.setdefault(outcome.key, outcome))
                continue
            differing = "correct" if judged_differently(before, outcome) else ""
            if same_costs and not math.isclose(before.seconds, outcome.seconds):
                differing = differing or "seconds"
            if differing:
                raise PolicyError(
                    f"{outcome.task_id}: the outcome of {outcome.strategy} with seed {outcome.seed} has {differing} = "
                    f"{getattr(before, differing):g} in {self.folder} or among the new outcomes, and also {differing} "
                    f"= {getattr(outcome, differing):g}; nothing was added. Correct one of them, or use another --store"
                )
        return new

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Appends outcomes and seals them. Raises as `append`."""
        for outcome in outcomes:
            self.append(outcome)
        self.seal()

    def replace(self, outcomes: Sequence[Outcome], dropped: Collection[Key] = ()) -> None:
        """Puts outcomes in the place of those with their keys, and drops others, file by file, each of which is
        replaced whole or not at all. Raises `PolicyError`, before anything is replaced, where another process writes to
        such a file, or it is damaged."""
        new = {outcome.key: checked(outcome) for outcome in outcomes}
        if not new and not dropped:
            return
        self.close()
        with sealing_lock(self.folder), ExitStack() as locks:
            replaced: dict[Path, list[Outcome]] = {}
            for file in [*journals_in(self.folder), *shards_in(self.folder)]:
                stored, damages = _split(file)
                if not any(outcome.key in new or outcome.key in dropped for outcome in stored):
                    continue
                if not file.name.endswith(SHARD) and not lock_journal(file, locks):
                    raise PolicyError(f"{file}: another process writes to it; try again when it has ended")
                if damaged := [damage for damage in damages if damage.kind != "torn"]:
                    raise PolicyError(
                        f"{damaged[0]}; `autottt outcomes check {self.folder} --mend` sets it aside, and then other "
                        "outcomes of this file can be replaced"
                    )
                replaced[file] = [new.get(o.key, o) for o in stored if o.key not in dropped]
            for file, stored in replaced.items():
                if not stored:
                    file.unlink()
                elif file.name.endswith(SHARD):
                    _write_shard(stored, file)
                else:
                    with replacing(file) as partial:
                        partial.write_bytes(b"".join(journal_line(asdict(outcome)) for outcome in stored))

    def seal(self) -> None:
        """Moves the journals of this writer, and of writers that no longer run, into a shard. Without pyarrow the
        journals stay, which are read as well; so does a journal with damaged rows, whose others are sealed."""
        if pyarrow_if_installed() is None or not self.folder.is_dir():
            return
        with sealing_lock(self.folder), ExitStack() as locks:
            journals = [file for file in journals_in(self.folder) if self._is_own(file) or lock_journal(file, locks)]
            sealed = {outcome.key for file in shards_in(self.folder) for outcome in _split(file)[0]}
            rows: dict[Key, Outcome] = {}
            complete = []
            for file in journals:
                outcomes, damages = _split(file)
                for outcome in outcomes:
                    if outcome.key not in sealed:
                        rows.setdefault(outcome.key, outcome)
                if all(damage.kind == "torn" for damage in damages):
                    complete.append(file)
            if rows:
                write_outcomes([rows[key] for key in sorted(rows)], self.folder)
            for file in complete:
                file.unlink(missing_ok=True)
            self.close()

    @contextmanager
    def sealed(self) -> Iterator[None]:
        """Seals the store when the block ends. Where the block raises, an error of sealing is a warning, since it must
        not hide the first one: the outcomes then stay in the journal."""
        try:
            yield
        except BaseException:
            try:
                self.seal()
            except Exception as error:
                logging.getLogger("autottt").warning(
                    "the outcomes so far stay in a journal, which is read too: %s", error
                )
            raise
        self.seal()

    def close(self) -> None:
        """Closes the journal, which keeps its outcomes."""
        if self._journal is not None:
            with suppress(OSError):  # a part of a line that a full disk could not take
                self._journal.close()
        self._journal, self._rows = None, 0

    def __del__(self) -> None:
        self.close()

    def _open_journal(self) -> BinaryIO:
        """This writer's journal, locked while the writer lives; a new one if it has been deleted."""
        while self._journal is None or os.fstat(self._journal.fileno()).st_nlink == 0:
            self.close()
            self._journal = open_journal(self.folder)
        return self._journal

    def _is_own(self, file: Path) -> bool:
        """Whether a journal belongs to this writer."""
        return self._journal is not None and file.name == Path(self._journal.name).name


def judged_differently(one: Outcome, other: Outcome) -> bool:
    """Whether two outcomes of one key have the same answer, and one of them is right and the other wrong."""
    return one.answer == other.answer and not math.isclose(one.correct, other.correct)


def checked(outcome: Outcome) -> Outcome:
    """The outcome with numbers as `int` and `float`. Raises `PolicyError` naming the field that a store cannot hold."""
    try:
        return outcome_from({f.name: getattr(outcome, f.name) for f in fields(outcome)})
    except ValueError as error:
        raise PolicyError(
            f"the outcome of {shortened(outcome.strategy)} on {shortened(outcome.task_id)} cannot be stored: {error}"
        ) from None


def _split(file: Path) -> tuple[list[Outcome], list[Damage]]:
    """The outcomes and the damaged parts of a journal or shard."""
    outcomes: list[Outcome] = []
    damages: list[Damage] = []
    for part in read_outcomes_of(file):
        if isinstance(part, Damage):
            damages.append(part)
        else:
            outcomes.append(part.outcome)
    return outcomes, damages
