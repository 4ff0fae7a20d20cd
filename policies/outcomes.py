"""Outcomes: what each strategy achieved and cost on each query, in a folder that survives a kill of the process.

Knows nothing about how outcomes are measured or what is trained on them. Each writer appends outcomes to a journal of
its own (JSON lines), and seals many at once into a shard: a Parquet file, written completely or not at all.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple, get_type_hints

from ..ttt_core.errors import PolicyError
from .versions import OUTCOMES_VERSION

try:
    import fcntl
except ImportError:  # without file locks nothing tells whether the writer of a journal is still alive
    fcntl = None  # type: ignore[assignment]

BASE = "in_context"
"""The strategy that is always run, since it yields the features; relative costs are multiples of its cost."""
SHARD_ROWS = 512
"""Outcomes after which a writer seals its journal."""
JOURNAL, SHARD, SEALING = ".journal.jsonl", ".parquet", "_sealing.lock"
"""Suffixes of journals and shards, and the name of the lock. Journals and the lock begin with an underscore, which
readers of Parquet folders skip."""
VERSION_KEY = b"autottt_outcomes_version"
"""Where a shard's metadata holds the version of its format."""


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

    @property
    def key(self) -> Key:
        return Key(self.base_hash, self.dataset, self.task_id, self.strategy, self.seed, self.recipe)


def finite(losses: Iterable[float]) -> tuple[float, ...]:
    """The losses before the first that is not finite, at which training failed."""
    return tuple(takewhile(math.isfinite, losses))


class OutcomeStore:
    """A folder of outcomes, one per key. Any number of processes may write to it at once."""

    def __init__(self, folder: str | os.PathLike[str], shard_rows: int = SHARD_ROWS) -> None:
        self.folder = Path(folder)
        self.shard_rows = shard_rows
        self._rows = 0

    _journal: BinaryIO | None = None

    def append(self, outcome: Outcome) -> None:
        """Adds one outcome, which survives a kill of the process right after the call."""
        try:
            line = json.dumps({"version": OUTCOMES_VERSION, **asdict(outcome)}, allow_nan=False) + "\n"
        except ValueError:
            raise PolicyError(f"an outcome holds finite numbers only; received {outcome}") from None
        journal = self._open_journal()
        journal.write(line.encode())
        journal.flush()
        self._rows += 1
        if self._rows >= self.shard_rows:
            self.seal()

    def read(self) -> list[Outcome]:
        """Every outcome, sorted by key. Raises `PolicyError` naming the file and line that is not an outcome, or that
        has another version of the format."""
        by_key: dict[Key, Outcome] = {}
        journals = self._journals()  # before the shards: an outcome sealed in between is read twice, not lost
        unsealed = [outcome for file in journals for outcome in _read_journal(file)]
        for file in sorted(self.folder.glob(f"*{SHARD}")):
            by_key |= {outcome.key: outcome for outcome in _read_shard(file)}
        for outcome in unsealed:
            by_key.setdefault(outcome.key, outcome)
        return [by_key[key] for key in sorted(by_key)]

    def missing(self, outcomes: Iterable[Outcome]) -> list[Outcome]:
        """The given outcomes that the store does not hold. Raises `PolicyError` if it holds one of the same key and
        answer that was judged differently."""
        known = {outcome.key: outcome for outcome in self.read()}
        new = []
        for outcome in outcomes:
            stored = known.get(outcome.key)
            if stored is None:
                new.append(outcome)
                known[outcome.key] = outcome
            elif stored.answer == outcome.answer and not math.isclose(stored.correct, outcome.correct):
                raise PolicyError(
                    f"{outcome.task_id}: the outcome of {outcome.strategy} with seed {outcome.seed} has correct = "
                    f"{stored.correct:g} in {self.folder} or among the new outcomes, and also correct = "
                    f"{outcome.correct:g}; nothing was added. Correct one of them, or use another --store"
                )
        return new

    def seal(self) -> None:
        """Moves the journals of this writer, and of writers that no longer run, into a shard. Without pyarrow the
        journals stay, which are read as well."""
        if _pyarrow() is None or not self.folder.is_dir():
            return
        with _file_lock(self.folder / SEALING), ExitStack() as locks:
            journals = [file for file in self._journals() if self._may_seal(file, locks)]
            sealed = {outcome.key for file in self.folder.glob(f"*{SHARD}") for outcome in _read_shard(file)}
            rows = {o.key: o for file in journals for o in _read_journal(file) if o.key not in sealed}
            if rows:
                target = self.folder / f"outcomes-{secrets.token_hex(6)}{SHARD}"
                _write_shard([rows[key] for key in sorted(rows)], target)
            for file in journals:
                file.unlink(missing_ok=True)
            self.close()

    def close(self) -> None:
        """Closes the journal, which keeps its outcomes."""
        if self._journal is not None:
            self._journal.close()
        self._journal, self._rows = None, 0

    def __del__(self) -> None:
        self.close()

    def _journals(self) -> list[Path]:
        """The journals of all writers; version 1 of the format had a single one, `outcomes.jsonl`."""
        return sorted([*self.folder.glob(f"_*{JOURNAL}"), *self.folder.glob("outcomes.jsonl")])

    def _open_journal(self) -> BinaryIO:
        """This writer's journal, locked while the writer lives; a new one if it has been deleted."""
        while self._journal is None or os.fstat(self._journal.fileno()).st_nlink == 0:
            self.close()
            self.folder.mkdir(parents=True, exist_ok=True)
            self._journal = open(self.folder / f"_{os.getpid()}-{secrets.token_hex(4)}{JOURNAL}", "ab")  # noqa: SIM115
            if fcntl is not None:
                fcntl.flock(self._journal, fcntl.LOCK_EX)
        return self._journal

    def _may_seal(self, file: Path, locks: ExitStack) -> bool:
        """Whether a journal belongs to this writer, or to one that no longer runs: then its lock is free, and is
        taken."""
        if self._journal is not None and file.name == Path(self._journal.name).name:
            return True
        if fcntl is None:
            return False
        try:
            opened = locks.enter_context(file.open("r+b"))
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # it is locked, or deleted
            return False
        return True


@contextmanager
def _file_lock(lock: Path) -> Iterator[None]:
    """Holds an exclusive lock between processes."""
    with lock.open("ab") as opened:
        if fcntl is not None:
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def _read_journal(file: Path) -> list[Outcome]:
    """The outcomes of a journal; an incomplete last line, which a kill leaves, is skipped."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:  # sealed since it was listed
        return []
    lines = data[: data.rfind(b"\n") + 1].splitlines()
    outcomes = []
    for number, line in enumerate(lines, start=1):
        place = f"{file}:{number}"
        try:
            row = json.loads(line)
            version = int(row.pop("version", 1))
            outcome = _from_row(row) if version == OUTCOMES_VERSION else None
        except (ValueError, TypeError, AttributeError) as error:
            names = ", ".join(f.name for f in fields(Outcome))
            raise PolicyError(
                f"{place}: not an outcome ({error}); expected a JSON object with version, {names}. If the line is "
                "damaged, remove it, and `autottt collect` measures that outcome again"
            ) from None
        if outcome is None:
            raise _other_version(place, version)
        outcomes.append(outcome)
    return outcomes


def _other_version(place: str, version: int) -> PolicyError:
    remedy = (
        "update this package" if version > OUTCOMES_VERSION else "collect again: `autottt collect TASKS --store NEW`"
    )
    return PolicyError(
        f"{place}: outcomes in version {version} of the format, and this package reads version {OUTCOMES_VERSION}; "
        f"{remedy}"
    )


def _from_row(row: Mapping[str, Any]) -> Outcome:
    outcome = Outcome(**row)
    features, vote_shares = dict(outcome.features), dict(outcome.vote_shares or {})
    return replace(outcome, features=features, losses=tuple(outcome.losses or ()), vote_shares=vote_shares)


def _pyarrow() -> ModuleType | None:
    try:
        import pyarrow.parquet
    except ImportError:
        return None
    return pyarrow  # type: ignore[no-any-return]


def _write_shard(outcomes: Sequence[Outcome], target: Path) -> None:
    """Writes a Parquet file, completely or not at all. Features are one column of maps, so that all shards have the
    same schema."""
    arrow = _pyarrow()
    assert arrow is not None
    kinds = {str: arrow.string(), int: arrow.int64(), float: arrow.float64()}
    types = {name: kinds.get(hint) for name, hint in get_type_hints(Outcome).items()}
    types["features"] = types["vote_shares"] = arrow.map_(arrow.string(), arrow.float64())
    types["losses"] = arrow.list_(arrow.float64())
    columns = {name: arrow.array([_plain(getattr(o, name)) for o in outcomes], type) for name, type in types.items()}
    table = arrow.table(columns).replace_schema_metadata({VERSION_KEY: str(OUTCOMES_VERSION)})
    partial = target.with_name(f"_{target.name}.partial")
    arrow.parquet.write_table(table, partial, compression="zstd")
    partial.replace(target)


def _plain(value: Any) -> Any:
    return list(value.items()) if isinstance(value, Mapping) else value


def _read_shard(file: Path) -> Iterable[Outcome]:
    """The outcomes of a shard."""
    arrow = _pyarrow()
    if arrow is None:
        raise PolicyError(f"{file}: reading Parquet files of outcomes needs pyarrow: pip install 'autottt[policy]'")
    try:
        table = arrow.parquet.read_table(file)
        version = int((table.schema.metadata or {}).get(VERSION_KEY, b"1"))
        if version != OUTCOMES_VERSION:
            raise _other_version(str(file), version)
        rows: list[dict[str, Any]] = table.to_pylist()
        for row in rows:
            yield _from_row(row)
    except (arrow.ArrowException, OSError, TypeError, KeyError) as error:
        raise PolicyError(
            f"{file}: not a shard of outcomes ({error}). If the file is damaged, remove it, and `autottt collect` "
            "measures its outcomes again"
        ) from None
