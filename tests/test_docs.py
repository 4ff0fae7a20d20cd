"""Every example in the documents runs, and every generated part of them (docs/generate.py) is up to date."""

from __future__ import annotations

import doctest
import importlib
import os
import re
import runpy
import shlex
import subprocess
import sys
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import generate
import pytest

from autottt.strategies import registry

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = (README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
SKIPPED = ("make", "git", "pip", "cd")
"""Commands of console blocks that are not run: they change the machine."""
MAX_NOT_RUN = 2


# --- examples --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    language: str
    text: str
    line: int
    """Of the opening fence, from 1."""
    remark: str
    """The HTML comment right above: `not run: REASON`, `prints` for what the Python block above it prints, or
    `file: NAME` for what is written to a file first."""


def blocks(document: Path) -> list[Block]:
    fenced: list[Block] = []
    lines = iter(enumerate(document.read_text("utf-8").splitlines(), start=1))
    remark = ""
    for number, line in lines:
        if fence := re.fullmatch(r"```(\w*)", line):
            body = [text for _, text in takewhile(lambda item: item[1] != "```", lines)]
            fenced.append(Block(fence[1], "\n".join(body) + "\n", number, remark))
        comment = re.fullmatch(r"<!-- (.*) -->", line)
        remark = comment[1] if comment else remark if not line.strip() else ""
    return fenced


def run_python(document, block, namespace):
    code = compile("\n" * block.line + block.text, str(document), "exec", dont_inherit=True)
    exec(code, namespace)


NUMBER = re.compile(r"\d+(?:\.\d+)?x?")


def same_output(printed, expected):
    """Whether two outputs have the same words and integers. Decimals (probabilities) may differ by 0.1, multiples such
    as 194x by a tenth: they vary with the precision in which a machine computes."""

    def close(number, other):
        ours, theirs = float(number.strip("x")), float(other.strip("x"))
        tolerance = theirs / 10 if other.endswith("x") else 0.1 if "." in other else 0
        return abs(ours - theirs) <= tolerance

    same_words = NUMBER.sub("#", printed).split() == NUMBER.sub("#", expected).split()
    return same_words and all(map(close, NUMBER.findall(printed), NUMBER.findall(expected)))


def run_module(name, arguments, folder):
    """Runs a module as `python -m` does, in a process that has imported the libraries."""
    os.chdir(folder)
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def run_console(block, monkeypatch, forkserver):
    from autottt.controller.cli import main as cli

    for line in block.text.replace("\\\n", " ").splitlines():
        if not line.startswith("$ "):
            continue
        program, *arguments = shlex.split(line[2:], comments=True)
        if program == "autottt":
            monkeypatch.setattr(sys, "argv", [program, *arguments])
            with pytest.raises(SystemExit) as exit_info:
                cli.main()
            assert exit_info.value.code in (None, 0), line
        elif program == "python" and arguments[0] == "-m":
            process = forkserver.Process(target=run_module, args=(arguments[1], arguments[2:], os.getcwd()))
            process.start()
            process.join()
            assert process.exitcode == 0, line
        elif program == "python":
            subprocess.run([sys.executable, *arguments], check=True)
        else:
            assert program in SKIPPED, line


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    """An empty working directory; strategies registered in it are removed afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AUTOTTT_TRACE", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setitem(sys.modules, "mlflow", None)  # its database takes longer to create than a policy to train
    monkeypatch.setattr("autottt.policies.scorecard.INTERVAL_RESAMPLES", 40)
    monkeypatch.setattr(registry, "_REGISTRY", {name: registry.get_strategy(name) for name in registry.strategies()})
    return tmp_path


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_every_example_runs(document, empty_folder, monkeypatch, capsys, forkserver):
    namespace = {"__name__": "__main__"}
    printed = ""
    for block in blocks(document):
        kind, _, rest = block.remark.partition(": ")
        if kind == "not run":
            assert rest
        elif kind == "file":
            (empty_folder / rest).write_text(block.text, "utf-8")
        elif kind == "prints":
            assert same_output(printed, block.text), f"{document.name}:{block.line}: received\n{printed}"
        elif block.language == "python":
            capsys.readouterr()
            run_python(document, block, namespace)
            printed = capsys.readouterr().out
        elif block.language == "console":
            run_console(block, monkeypatch, forkserver)
        else:
            assert block.language in ("", "mermaid", "json"), f"{document.name}:{block.line}: who checks this block?"


def test_outputs_may_differ_in_probabilities_and_multiples_only():
    assert same_output("right at 0.66 for 194x", "right at 0.65 for 190x")
    assert not same_output("right at 0.66", "right at 0.46")
    assert not same_output("for 194x", "for 150x")
    assert not same_output("right at 0.66", "wrong at 0.66")
    assert not same_output("(3, 4)", "(3, 5)")


def test_few_examples_are_not_run():
    remarks = [b.remark for d in DOCUMENTS for b in blocks(d) if b.remark.startswith("not run")]
    assert len(remarks) <= MAX_NOT_RUN, remarks


@pytest.mark.parametrize("document", [*DOCUMENTS, *sorted((ROOT / "docs" / "api").glob("*.md"))], ids=lambda p: p.name)
def test_links_lead_somewhere(document):
    targets = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", document.read_text("utf-8"))
    assert not [t for t in targets if not (document.parent / t).exists()]


@pytest.mark.parametrize("name", [n for n, p in generate.sources().items() if ">>>" in p.read_text("utf-8")])
def test_examples_in_docstrings_hold(name, empty_folder):
    assert not doctest.testmod(importlib.import_module(name)).failed


# --- generated parts -------------------------------------------------------------------------------------------------


def tree_places(tree: str) -> list[str]:
    """The paths that a tree names; a folder stands for its `__init__.py`."""
    places: list[str] = []
    parents: list[str] = []
    for line in tree.splitlines():
        if entry := re.fullmatch(r"( *)(\S+) +(.*)", line):
            parents = [*parents[: len(entry[1]) // 2], entry[2]]
            places.append("".join(parents))
    return places


def test_the_tree_names_every_module_and_no_other():
    places = tree_places(generate.region(ROOT / "docs" / "architecture.md", "tree"))
    modules = {p.relative_to(ROOT).as_posix().removesuffix("__init__.py") for p in generate.sources().values()}
    assert sorted(places) == sorted([*modules, *generate.OTHER_FOLDERS])


@pytest.mark.parametrize("document", generate.PAGES, ids=lambda p: p.name)
def test_generated_pages_are_up_to_date(document):
    assert document.read_text("utf-8") == generate.PAGES[document](), "run `make docs`"


@pytest.mark.parametrize(("document", "name"), generate.REGIONS, ids=lambda x: x if isinstance(x, str) else x.name)
def test_generated_regions_are_up_to_date(document, name):
    assert generate.region(document, name) == generate.REGIONS[document, name](), "run `make docs`"


def test_the_picture_of_accuracy_and_cost_shows_what_was_measured():
    numbers = generate.accuracy_cost.description(generate.RESULTS)
    assert numbers in generate.PICTURE.read_text("utf-8"), "run `make docs`"
    numbers = generate.accuracy_cost.description_of_models(generate.RESULTS)
    assert numbers in generate.PICTURE_OF_MODELS.read_text("utf-8"), "run `make docs`"


def test_the_table_names_every_strategy_and_its_cost_class():
    rows = [re.findall(r"[^|]+", row) for row in generate.strategies_table().splitlines()[2:]]
    listed = {row[0].strip(" `"): (row[1].strip(), int(row[2])) for row in rows}
    assert listed == {name: (s.cost_class, s.min_demonstrations) for name, s in registry.strategies().items()}
