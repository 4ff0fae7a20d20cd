"""The readers of the package, each as a function of damaged bytes. Every one raises an `AutotttError`, or nothing.

Text readers take tens of microseconds. Binary readers and templates use libraries that may crash, and are called in
processes of their own.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import gguf
from soak_files import CSV, RECIPE, TASKS, TEMPLATES, TOML
from soak_models import smallest_model
from soak_mutations import Damager

from autottt.controller.cli.answer_files import Answers
from autottt.controller.cli.options import settings
from autottt.controller.cli.settings import read_config
from autottt.policies import bundle, serving_logs
from autottt.policies.bundle_card import CARD, read_card
from autottt.policies.card_fields import FIELDS, read_field
from autottt.policies.csv_import import check_csv, import_csv
from autottt.policies.outcome_files import Damage, journal_line
from autottt.policies.outcomes import read_outcomes_of
from autottt.ttt_core.errors import AutotttError, PolicyError
from autottt.ttt_core.lora import adapter as adapter_files
from autottt.ttt_core.lora.adapter import Adapter
from autottt.ttt_core.model import gguf_files, template_process
from autottt.ttt_core.model.chat_prompts import proven_format
from autottt.ttt_core.model.loading import _settings
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.readers import LoadedTasks, read_lines, read_tasks
from autottt.ttt_core.testing import tiny_tokenizer

Read = Callable[[bytes], object]
MODEL_SETTINGS = {"prompt_format": "compact", "recipes": {"ttt_direct": RECIPE, "ttt_in_context/list": {"rank": 2}}}


class Reader:
    """One reader with its valid files."""

    def __init__(self, weight: float, valid: list[bytes], read: Read, values_share: float = 0.6) -> None:
        self.weight = weight
        """Share of the inputs, in proportion to those of the others."""
        self.read = read
        self.damagers = [Damager(data, values_share) for data in valid]

    def damaged(self, rng: random.Random) -> bytes:
        """One of the valid files, damaged."""
        return self.damagers[int(rng.random() * len(self.damagers))].damaged(rng)


class TextReaders:
    """The readers of text; those of files read from `scratch`."""

    def __init__(self, valid: Path, scratch: Path) -> None:
        self._scratch = scratch
        self._settings = settings()
        lines = {name: [json.dumps(task).encode() for task in tasks] for name, tasks in TASKS.items()}
        journal, log = (valid / "journal.jsonl").read_bytes(), (valid / "log.jsonl").read_bytes()
        refused = (valid / "refused.jsonl").read_bytes()
        torn = refused[: len(refused) // 2]
        rows = [json.dumps(_without_checksum(line)).encode() for line in journal.splitlines()]
        self.readers = {
            "jsonl": Reader(40, lines["jsonl"], _read_line),
            "messages": Reader(25, lines["messages"], _read_line),
            "recipe": Reader(15, [json.dumps(RECIPE).encode()], _read_recipe),
            "toml": Reader(3, [text.encode() for text in TOML], self._read_toml),
            "csv": Reader(4, [text.encode() for text in CSV], self._read_csv),
            "settings": Reader(2, [json.dumps(MODEL_SETTINGS).encode()], self._read_settings),
            "arc": Reader(2.5, lines["arc"], self._read_tasks),
            "bbh": Reader(2.5, lines["bbh"], self._read_tasks),
            "task file": Reader(1, [b"\n".join(lines["jsonl"] + lines["messages"])], self._read_tasks),
            "answers": Reader(3, [(valid / "answers.jsonl").read_bytes(), refused, torn], self._read_answers),
            "journal": Reader(0.5, [journal], self._read_journal),
            "journal row": Reader(2, rows, self._read_journal),
            "log": Reader(0.5, [log, refused, torn], self._read_log),
            "card": Reader(0.1, [(valid / "bundle" / CARD).read_bytes()], self._read_card),
        }

    def _file(self, name: str, data: bytes) -> Path:
        file = self._scratch / name
        file.write_bytes(data)
        return file

    def _read_tasks(self, data: bytes) -> object:
        return _usable(read_tasks(self._file("tasks.json", data), demonstrations=2))

    def _read_toml(self, data: bytes) -> object:
        self._file("config.toml", data)  # named by the variable for it
        return read_config(self._settings)

    def _read_csv(self, data: bytes) -> object:
        file = self._file("table.csv", data)
        sound, damages = check_csv(file)
        with suppress(PolicyError):
            outcomes = import_csv(file, in_context="icl" if b"icl" in data else "in_context")
            assert not damages, f"imported in spite of {damages[0]}"
            assert len(outcomes) == len(sound) - 1, f"{len(outcomes)} outcomes of {len(sound) - 1} rows"
        return sound

    def _read_settings(self, data: bytes) -> object:
        read = _settings(self._file("autottt.json", data).parent)
        return [Recipe.from_settings(recipe) for recipe in read.get("recipes", {}).values()]

    def _read_answers(self, data: bytes) -> object:
        file = self._file("answers.jsonl", data)
        answers = Answers.read(file, 0)
        answers.prepare_to_append({"model": min(answers.models, default="")})
        again = Answers.read(file, 0)
        assert (again.ids, again.problems, again.incomplete) == (answers.ids, answers.problems, False), "other answers"
        return answers

    def _read_journal(self, data: bytes) -> object:
        for part in read_outcomes_of(self._file("_x.journal.jsonl", data + b"\n")):
            if not isinstance(part, Damage):
                journal_line(asdict(part.outcome))
        return None

    def _read_log(self, data: bytes) -> object:
        rows = serving_logs.read_log([self._file("log.jsonl", data)])
        if rows:
            serving_logs.base_of(rows)
            serving_logs.outcomes_of(rows)
            serving_logs.summary(rows, None)
        return rows

    def _read_card(self, data: bytes) -> object:
        return read_every_field(self._file(CARD, data).parent)


class BinaryReaders:
    """The readers of binary files and of chat templates."""

    def __init__(self, valid: Path, scratch: Path) -> None:
        self._scratch, self._valid = scratch, valid
        self._tokenizer = tiny_tokenizer(chat=True)
        self._model = smallest_model("gpt2")
        adapter, data = (valid / "adapter.safetensors").read_bytes(), (valid / "tiny.gguf").read_bytes()
        tensors = gguf.GGUFReader(valid / "tiny.gguf").data_offset
        self._tensors = data[tensors:]
        self._card = json.loads((valid / "bundle" / CARD).read_text())
        with zipfile.ZipFile(valid / "bundle" / bundle.ESTIMATORS) as archive:
            self._parts = {name: archive.read(name) for name in archive.namelist()}
        size = int.from_bytes(adapter[:8], "little")
        metadata = json.loads(adapter[8 : 8 + size])["__metadata__"]["adapter"].encode()
        templates = [text.encode() for text in TEMPLATES]
        self.readers = {
            "adapter": Reader(35, [adapter], self._read_adapter, 0),
            "adapter metadata": Reader(14, [metadata], self._read_adapter_with_checksum),
            "peft config": Reader(1, [(valid / "peft" / "adapter_config.json").read_bytes()], self._read_peft),
            "shard": Reader(12, [(valid / "shard.parquet").read_bytes()], self._read_shard, 0),
            "bundle card": Reader(0.5, [(valid / "bundle" / CARD).read_bytes()], self._read_bundle),
            "estimators": Reader(1, [(valid / "bundle" / bundle.ESTIMATORS).read_bytes()], self._read_estimators, 0),
            "estimators' schema": Reader(0.5, [self._parts["schema.json"]], self._read_schema),
            "gguf": Reader(12, [data[:tensors]], self._read_gguf_header, 0),
            "gguf model": Reader(0.15, [data[:tensors]], self._read_gguf, 0),
            "template": Reader(25, templates, _read_template, 0.3),
            "template in its process": Reader(0.4, templates, self._read_template_in_process, 0.3),
        }

    def _file(self, name: str, data: bytes) -> Path:
        file = self._scratch / name
        file.write_bytes(data)
        return file

    def _read_adapter(self, data: bytes) -> object:
        return Adapter.load(self._file("a.safetensors", data))

    def _read_adapter_with_checksum(self, data: bytes) -> object:
        """Reads an adapter with these metadata and a checksum that holds."""
        from safetensors.torch import load_file, save_file

        try:
            text = data.decode()
        except UnicodeDecodeError:
            return None
        tensors = load_file(self._valid / "adapter.safetensors")
        header = {
            "format": str(adapter_files.FORMAT), "adapter": text, "checksum": adapter_files._checksum(text, tensors),
        }  # fmt: skip
        save_file(tensors, self._scratch / "b.safetensors", metadata=header)
        return Adapter.load(self._scratch / "b.safetensors")

    def _read_peft(self, data: bytes) -> object:
        folder = self._scratch / "peft"
        folder.mkdir(exist_ok=True)
        shutil.copy(self._valid / "peft" / "adapter_model.safetensors", folder)
        (folder / "adapter_config.json").write_bytes(data)
        return Adapter.from_peft(folder, self._model, "base")

    def _read_shard(self, data: bytes) -> object:
        return list(read_outcomes_of(self._file("outcomes-x.parquet", data)))

    def _bundle(self, card: bytes, estimators: bytes | None = None) -> object:
        folder = self._scratch / "bundle"
        folder.mkdir(exist_ok=True)
        (folder / CARD).write_bytes(card)
        if estimators is None:
            shutil.copy(self._valid / "bundle" / bundle.ESTIMATORS, folder)
        else:
            (folder / bundle.ESTIMATORS).write_bytes(estimators)
        return bundle.load_bundle(folder)

    def _read_bundle(self, data: bytes) -> object:
        return self._bundle(data)

    def _read_estimators(self, data: bytes) -> object:
        """Loads a bundle whose card has the checksum of these estimators."""
        card = self._card | {"estimators_sha256": hashlib.sha256(data).hexdigest()}
        return self._bundle(json.dumps(card).encode(), data)

    def _read_schema(self, data: bytes) -> object:
        """Loads a bundle whose archive of estimators has this schema."""
        file = self._scratch / "schema.zip"
        with zipfile.ZipFile(file, "w") as archive:
            for name, part in (self._parts | {"schema.json": data}).items():
                archive.writestr(name, part)
        return self._read_estimators(file.read_bytes())

    def _read_gguf_header(self, data: bytes) -> object:
        return gguf_files._read_header(self._file("x.gguf", data + self._tensors))

    def _read_gguf(self, data: bytes) -> object:
        cache = self._scratch / "gguf"
        try:
            return gguf_files.converted_folder(gguf_files.GgufFile(self._file("x.gguf", data + self._tensors)), cache)
        finally:
            shutil.rmtree(cache, ignore_errors=True)

    def _read_template_in_process(self, data: bytes) -> object:
        """Proves the format of a tokenizer with this template, which is rendered as in use: in limited processes."""
        self._tokenizer.chat_template = data.decode(errors="replace")
        return proven_format(self._tokenizer, frozenset({256}))


def _read_line(data: bytes) -> object:
    return [_usable(loaded) for loaded in read_lines([data])]


def _usable(loaded: LoadedTasks) -> LoadedTasks:
    """The tasks, whose digests can be computed."""
    for task in loaded.tasks:
        task.digest  # noqa: B018 - raises for a content that cannot be written
    for problem in loaded.problems:
        str(problem).encode()
    return loaded


def _read_recipe(data: bytes) -> object:
    try:
        value: Any = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return Recipe.from_settings(value)


def _without_checksum(line: bytes) -> dict[str, Any]:
    return {name: value for name, value in json.loads(line).items() if name != "crc32"}


def read_every_field(folder: Path) -> object:
    """Reads a card as the loader of a bundle does, without the estimators."""
    card = read_card(folder)
    bundle._check_features(folder, card, False)
    try:
        return {name: read_field(card, name) for name in FIELDS}
    except AutotttError:
        raise
    except ValueError:  # which the loader of a bundle makes a `PolicyError` of
        return None


class RenderingTooLongError(BaseException):
    """A template that is rendered in this process takes too long; in use, its process would be ended."""


def _too_long(signal_number: int, frame: FrameType | None) -> None:
    raise RenderingTooLongError


def _read_template(data: bytes) -> object:
    """Renders chats by the code of the limited process, in this one."""
    chat = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "cd"}]
    variables = {"bos_token": "<bos>", "eos_token": "<eos>", "enable_thinking": False, "tools": None}
    signal.signal(signal.SIGVTALRM, _too_long)
    signal.setitimer(signal.ITIMER_VIRTUAL, template_process.MAX_SECONDS)
    try:
        return template_process.answer({
            "source": data.decode(errors="replace"), "now": "2026-01-02", "variables": variables,
            "requests": [[chat, True], [chat[:2], False]],
        })  # fmt: skip
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
