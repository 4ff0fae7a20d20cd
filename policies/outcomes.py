"""Outcomes: what each strategy achieved and cost on each query, in a folder that survives a kill.

Knows nothing about how outcomes come about or what is learned from them. A writer adds each outcome to a journal of its
own, a line of JSON, and seals many at once as a shard: a Parquet file, whole or not there.
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

try:
    import fcntl
except ImportError:  # only there can a journal be told to be some living writer's
    fcntl = None  # type: ignore[assignment]

BASE = "in_context"
"""The strategy that measuring runs anyway, and that costs are multiples of."""
SHARD_ROWS = 512
"""Outcomes that a writer seals at once."""
JOURNAL, SHARD, SEALING = ".journal.jsonl", ".parquet", "_sealing.lock"
"""What names end with, and a lock. All but shards begin with an underscore: readers of Parquet pass over those."""


class Key(NamedTuple):
    """What an outcome is of; a store holds one of each."""

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
    """Queries of one group share their demonstrations."""
    family: str
    """Families never straddle a split."""
    dataset: str
    kind: str
    strategy: str
    seed: int
    status: str
    """`answered`, `unreadable`, `failed`, `too_long` (does not fit in the context) or `too_few` (demonstrations)."""
    correct: float
    """1 for the right answer, else 0; every failure is 0."""
    seconds: float
    work: int
    """Tokens forward, and twice those backward."""
    cost: float
    """`work` as a multiple of what answering this query in context takes."""
    base_hash: str
    """Content hash of the model that answered."""
    features: Mapping[str, float] = field(default_factory=dict)
    """All stages; on the rows of `in_context` only."""
    features_version: int = 0
    probe_cost: float = 0.0
    """What measuring stage 1 took, in the unit of `cost`; on the rows of `in_context` only."""
    recipe: str = ""
    """Digest of the strategy's recipe for this kind of task (see `strategies.base.strategy_recipe_digest`); empty where it has none, or
    where it is not known."""
    digest: str = ""
    """What is asked, by its content (`Task.digest`); empty where it is not known."""
    forward: int = 0
    """Tokens forward, of `work`; 0 with `backward` where they are not known apart."""
    backward: int = 0
    """Tokens backward, each of which counts twice in `work`."""
    confidence: float = 0.0
    """Of the attempt: the probability of its answer, or the share of votes for it; 0 where it is not known."""
    answer: str = ""
    """The answer, by its content (`content_digest`): strategies with the same one agree. Empty for none."""
    gain: float = 1.0
    """What held-out demonstrations say that training gains (`Evidence.gain`), -1 to 1; 1 where none were held out."""
    losses: tuple[float, ...] = ()
    """Mean loss of each training step in nats, of strategies that train, as far as they are numbers."""
    votes: Mapping[str, float] = field(default_factory=dict)
    """Share of the votes for each answer, by its content; empty for strategies that do not vote."""
    prompt_format: str = ""
    """How the model was asked (see `load_model`); empty where it is not known, and then it counts as any."""

    @property
    def key(self) -> Key:
        return Key(self.base_hash, self.dataset, self.task_id, self.strategy, self.seed, self.recipe)


def finite(losses: Iterable[float]) -> tuple[float, ...]:
    """The losses up to the first that is no number: training that fails ends there."""
    return tuple(takewhile(math.isfinite, losses))


class OutcomeStore:
    """A folder of outcomes, one of each key. Any number of processes may write to it at once."""

    def __init__(self, folder: str | os.PathLike[str], shard_rows: int = SHARD_ROWS) -> None:
        self.folder = Path(folder)
        self.shard_rows = shard_rows
        self._rows = 0

    _journal: BinaryIO | None = None

    def append(self, outcome: Outcome) -> None:
        """Adds one outcome; it is there even if the process is killed right after."""
        try:
            line = json.dumps(asdict(outcome), allow_nan=False) + "\n"
        except ValueError:
            raise PolicyError(f"an outcome has finite numbers only; received {outcome}") from None
        journal = self._opened()
        journal.write(line.encode())
        journal.flush()
        self._rows += 1
        if self._rows >= self.shard_rows:
            self.seal()

    def read(self) -> list[Outcome]:
        """Every outcome, in the order of the keys. Raises `PolicyError` naming a file and line that is none."""
        found: dict[Key, Outcome] = {}
        journals = self._journals()  # before the shards: what is sealed meanwhile is seen twice
        written = [outcome for file in journals for outcome in _journaled(file)]
        for file in sorted(self.folder.glob(f"*{SHARD}")):
            found |= {outcome.key: outcome for outcome in _sealed(file)}
        for outcome in written:
            found.setdefault(outcome.key, outcome)
        return [found[key] for key in sorted(found)]

    def missing(self, outcomes: Iterable[Outcome]) -> list[Outcome]:
        """Those that are not there yet. Raises `PolicyError` where one is that says otherwise what was right."""
        known = {outcome.key: outcome for outcome in self.read()}
        new = []
        for outcome in outcomes:
            stored = known.get(outcome.key)
            if stored is None:
                new.append(outcome)
                known[outcome.key] = outcome
            elif stored.answer == outcome.answer and not math.isclose(stored.correct, outcome.correct):
                raise PolicyError(
                    f"{outcome.task_id}: {outcome.strategy} with seed {outcome.seed} is {stored.correct:g} right in "
                    f"{self.folder}, or in what is to be added, and {outcome.correct:g} there as well; nothing was "
                    "added. Correct it, or use another --store"
                )
        return new

    def seal(self) -> None:
        """Moves what this writer, and writers that are gone, have written into a shard. Without pyarrow, nothing moves:
        journals are read as well."""
        if _pyarrow() is None or not self.folder.is_dir():
            return
        with _alone(self.folder / SEALING), ExitStack() as held:
            left = [file for file in self._journals() if self._may_seal(file, held)]
            sealed = {outcome.key for file in self.folder.glob(f"*{SHARD}") for outcome in _sealed(file)}
            rows = {o.key: o for file in left for o in _journaled(file) if o.key not in sealed}
            if rows:
                target = self.folder / f"outcomes-{secrets.token_hex(6)}{SHARD}"
                _write_shard([rows[key] for key in sorted(rows)], target)
            for file in left:
                file.unlink(missing_ok=True)
            self.close()

    def close(self) -> None:
        """Lets go of the journal; what is in it stays."""
        if self._journal is not None:
            self._journal.close()
        self._journal, self._rows = None, 0

    def __del__(self) -> None:
        self.close()

    def _journals(self) -> list[Path]:
        """Of all writers; early versions had one, `outcomes.jsonl`."""
        return sorted([*self.folder.glob(f"_*{JOURNAL}"), *self.folder.glob("outcomes.jsonl")])

    def _opened(self) -> BinaryIO:
        """This writer's journal, locked for as long as it lives; another one where it has been deleted."""
        while self._journal is None or os.fstat(self._journal.fileno()).st_nlink == 0:
            self.close()
            self.folder.mkdir(parents=True, exist_ok=True)
            self._journal = open(self.folder / f"_{os.getpid()}-{secrets.token_hex(4)}{JOURNAL}", "ab")  # noqa: SIM115
            if fcntl is not None:
                fcntl.flock(self._journal, fcntl.LOCK_EX)
        return self._journal

    def _may_seal(self, file: Path, held: ExitStack) -> bool:
        """Whether a journal is this writer's, or that of one that is gone: then its lock is free, and held from now."""
        if self._journal is not None and file.name == Path(self._journal.name).name:
            return True
        if fcntl is None:
            return False
        try:
            opened = held.enter_context(file.open("r+b"))
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # it is held, or gone
            return False
        return True


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """While inside, no other process is."""
    with lock.open("ab") as opened:
        if fcntl is not None:
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def _journaled(file: Path) -> list[Outcome]:
    """The outcomes of a journal; a last line torn by a kill is none."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:  # sealed since it was listed
        return []
    lines = data[: data.rfind(b"\n") + 1].splitlines()
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(_outcome(json.loads(line)))
        except (ValueError, TypeError) as error:
            known = ", ".join(f.name for f in fields(Outcome))
            raise PolicyError(
                f"{file}:{number}: not an outcome ({error}); expected a JSON object with {known}. A later version of "
                "this package may have written it: update. If it is damaged, remove the line to measure it again"
            ) from None
    return found


def _outcome(row: Mapping[str, Any]) -> Outcome:
    """What a line or a row says; early versions have fewer columns."""
    found = Outcome(**row)
    return replace(
        found, features=dict(found.features), losses=tuple(found.losses or ()), votes=dict(found.votes or {})
    )


def _pyarrow() -> ModuleType | None:
    try:
        import pyarrow.parquet
    except ImportError:
        return None
    return pyarrow  # type: ignore[no-any-return]


def _write_shard(outcomes: Sequence[Outcome], target: Path) -> None:
    """Writes a Parquet file, whole or not at all; features are a map in one column, so that all shards are alike."""
    arrow = _pyarrow()
    assert arrow is not None
    kinds = {str: arrow.string(), int: arrow.int64(), float: arrow.float64()}
    types = {name: kinds.get(hint) for name, hint in get_type_hints(Outcome).items()}
    types["features"] = types["votes"] = arrow.map_(arrow.string(), arrow.float64())
    types["losses"] = arrow.list_(arrow.float64())
    columns = {name: arrow.array([_plain(getattr(o, name)) for o in outcomes], type) for name, type in types.items()}
    partial = target.with_name(f"_{target.name}.partial")
    arrow.parquet.write_table(arrow.table(columns), partial, compression="zstd")
    partial.replace(target)


def _plain(value: Any) -> Any:
    return list(value.items()) if isinstance(value, Mapping) else value


def _sealed(file: Path) -> Iterable[Outcome]:
    """The outcomes of a shard."""
    arrow = _pyarrow()
    if arrow is None:
        raise PolicyError(f"{file}: reading shards of outcomes needs pyarrow: pip install 'autottt[policy]'")
    try:
        rows: list[dict[str, Any]] = arrow.parquet.read_table(file).to_pylist()
        for row in rows:
            yield _outcome(row)
    except (arrow.ArrowException, OSError, TypeError, KeyError) as error:
        raise PolicyError(
            f"{file}: not a shard of outcomes ({error}). A later version of this package may have written it: "
            "update. If it is damaged, remove it to measure them again"
        ) from None
