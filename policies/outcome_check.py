"""Checks a store of outcomes, or a table of outcomes to import, and sets damaged parts aside.

Knows nothing about how outcomes are measured. Nothing is deleted: a damaged file moves to the folder `damaged`
unchanged, and a new file has its other rows.
"""

from __future__ import annotations

import csv
import io
import json
import secrets
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from ..ttt_core.errors import PolicyError
from .csv_import import check_csv
from .outcome_files import JOURNAL, SHARD, Damage, journals_in, lock_journal, sealing_lock, shards_in
from .outcomes import Key, Outcome, StoredOutcome, read_outcomes_of, write_outcomes

DAMAGED = "damaged"
"""Folder in a store, or beside a table, that damaged files are moved to."""
REPORT = "_report.jsonl"
"""File in that folder with one line for each damaged part. All names in it begin with an underscore, which readers of
Parquet folders skip."""


@dataclass(frozen=True)
class CheckReport:
    """What a check of outcomes shows."""

    outcomes: int
    """Outcomes that can be read."""
    damages: tuple[Damage, ...]
    mended: tuple[Damage, ...] = ()
    """The damaged parts that were set aside."""


@dataclass
class _File:
    """What a journal or shard consists of."""

    path: Path
    sound: list[StoredOutcome] = field(default_factory=list)
    damages: list[Damage] = field(default_factory=list)


def check_outcomes(path: Path, mend: bool = False) -> CheckReport:
    """Checks a store, or a CSV file that is to be imported.

    Damage is a row with a missing, unknown or invalid field, or with another checksum; an incomplete last line; a key
    that occurs again with other values or in the same kind of file; a file that cannot be read; and another version of
    the format. `mend` sets damaged files aside and writes their other rows to new ones; the journals of running
    processes stay as they are. Raises `PolicyError` if there is no such store or table, or if it cannot be written to.
    """
    if path.is_file():
        return _check_table(path, mend)
    if not path.is_dir():
        raise PolicyError(f"{path}: expected the folder of a store, or a CSV file; there is none")
    if not mend:
        files = _read(path)
        return _report(files)
    with sealing_lock(path), ExitStack() as locks:
        locked = {file for file in journals_in(path) if lock_journal(file, locks)}
        files = _read(path)
        damaged = [file for file in files if file.damages and (file.path in locked or file.path.name.endswith(SHARD))]
        for file in damaged:
            _mend(file)
        return _report(files, [damage for file in damaged for damage in file.damages])


def _report(files: Iterable[_File], mended: Sequence[Damage] = ()) -> CheckReport:
    files = list(files)
    keys = {stored.outcome.key for file in files for stored in file.sound}
    return CheckReport(len(keys), tuple(damage for file in files for damage in file.damages), tuple(mended))


def _read(folder: Path) -> list[_File]:
    """The files of a store. The rows that `OutcomeStore.read` ignores, because their key occurs before, are damaged."""
    parts = {file: list(read_outcomes_of(file)) for file in journals_in(folder)}  # first, as a store is read
    parts = {file: list(read_outcomes_of(file)) for file in shards_in(folder)} | parts
    files = [_File(path) for path in parts]
    first: dict[Key, StoredOutcome] = {}
    for file in files:
        for part in parts[file.path]:
            if isinstance(part, Damage):
                file.damages.append(part)
            elif (before := first.setdefault(part.outcome.key, part)) is part or _is_sealed_copy(part, before):
                file.sound.append(part)
            else:
                file.damages.append(Damage(file.path, part.row, _repeated(part.outcome, before)))
    return files


def _is_sealed_copy(part: StoredOutcome, before: StoredOutcome) -> bool:
    """Whether a row of a journal was written to a shard, and a kill of the process kept the journal in place."""
    sealed = before.file.name.endswith(SHARD) and not part.file.name.endswith(SHARD)
    return sealed and part.outcome == before.outcome


def _repeated(outcome: Outcome, before: StoredOutcome) -> str:
    values = "the same" if outcome == before.outcome else "other"
    return (
        f"the key occurs again with {values} values: the first outcome of {outcome.strategy} on {outcome.task_id} with "
        f"seed {outcome.seed} is {before.file}:{before.row}"
    )


def _mend(file: _File) -> None:
    """Writes the sound rows of a file to a new one, and moves the file aside."""
    folder = file.path.parent
    aside = _report_damages(folder, file.path, file.damages)
    if file.sound and file.path.name.endswith(SHARD):
        write_outcomes([stored.outcome for stored in file.sound], folder)
    elif file.sound:
        _write(folder / f"_mended-{secrets.token_hex(4)}{JOURNAL}", b"".join(s.line + b"\n" for s in file.sound))
    file.path.rename(aside)


def _report_damages(folder: Path, file: Path, damages: Iterable[Damage]) -> Path:
    """Adds damaged parts to the report, and returns the path that their file is to be moved to."""
    target = folder / DAMAGED
    try:
        target.mkdir(exist_ok=True)
        name = f"_{file.name.removeprefix('_')}"
        while (target / name).exists():
            name = f"_{secrets.token_hex(4)}-{file.name.removeprefix('_')}"
        lines = [{"file": file.name, "moved_to": name, "row": d.row, "problem": d.problem} for d in damages]
        with (target / REPORT).open("a", encoding="utf-8") as report:
            report.writelines(json.dumps(line) + "\n" for line in lines)
    except OSError as error:
        raise PolicyError(f"{target}: damaged files cannot be moved there ({error.strerror})") from None
    return target / name


def _write(target: Path, content: bytes) -> None:
    """Writes a file completely or not at all."""
    partial = target.with_name(f"_{target.name}.partial")
    partial.write_bytes(content)
    partial.replace(target)


def _check_table(file: Path, mend: bool) -> CheckReport:
    """Checks a CSV file; `mend` replaces it by one without the damaged rows."""
    table, damages = check_csv(file)
    sound = len(table) - 1 if table else 0
    if not (mend and damages):
        return CheckReport(sound, tuple(damages))
    if not sound:
        raise PolicyError(f"{damages[0]}; the table has no row that can be imported, so it stays as it is")
    aside = _report_damages(file.parent, file, damages)
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(table)
    partial = file.with_name(f"_{file.name}.partial")
    partial.write_text(text.getvalue(), "utf-8")
    file.rename(aside)
    partial.replace(file)
    return CheckReport(sound, tuple(damages), tuple(damages))
