"""What the documents say is so: every example in them runs, and what is generated from the code is up to date.

Run as a script (`make docs`), it writes the generated parts again: the tree, the table of strategies, the graph and
the measured numbers in README.md, docs/primitives.md, and docs/measured.md, which quotes benchmarks/results.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from types import ModuleType

import pytest

import autottt.strategies
from autottt.strategies import base
from autottt.ttt_core.pretraining.generator.core import Domain, Primitive
from autottt.ttt_core.pretraining.generator.families import domains

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PRIMITIVES = ROOT / "docs" / "primitives.md"
MEASURED = ROOT / "docs" / "measured.md"
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
PACKAGES = ("autottt", "controller", "strategies", "ttt_core", "policies")
SKIPPED = ("make", "git", "pip", "cd")
"""Commands of console blocks that are not run: they change the machine."""
MOST_NOT_RUN = 2


# --- examples --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    language: str
    text: str
    line: int
    """Of the opening fence, from 1."""
    remark: str
    """The HTML comment right above: `not run: REASON`, or `file: NAME` for what is written to a file first."""


def blocks(document: Path) -> list[Block]:
    found: list[Block] = []
    lines = iter(enumerate(document.read_text("utf-8").splitlines(), start=1))
    remark = ""
    for number, line in lines:
        if fence := re.fullmatch(r"```(\w*)", line):
            body = [text for _, text in takewhile(lambda item: item[1] != "```", lines)]
            found.append(Block(fence[1], "\n".join(body) + "\n", number, remark))
        comment = re.fullmatch(r"<!-- (.*) -->", line)
        remark = comment[1] if comment else remark if not line.strip() else ""
    return found


def run_python(document, block, namespace):
    code = compile("\n" * block.line + block.text, str(document), "exec", dont_inherit=True)
    exec(code, namespace)


def run_console(block, monkeypatch):
    from autottt.controller.cli import main as cli

    for line in block.text.replace("\\\n", " ").splitlines():
        if not line.startswith("$ "):
            continue
        program, *arguments = shlex.split(line[2:], comments=True)
        if program == "autottt":
            monkeypatch.setattr(sys, "argv", [program, *arguments])
            with pytest.raises(SystemExit) as ended:
                cli.main()
            assert ended.value.code in (None, 0), line
        elif program == "python":
            subprocess.run([sys.executable, *arguments], check=True)
        else:
            assert program in SKIPPED, line


@pytest.fixture
def aside(tmp_path, monkeypatch):
    """An empty folder to run in; strategies registered there are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(base, "_REGISTRY", {name: base.get_strategy(name) for name in base.strategies()})
    return tmp_path


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_every_example_runs(document, aside, monkeypatch):
    namespace = {"__name__": "__main__"}
    for block in blocks(document):
        kind, _, rest = block.remark.partition(": ")
        if kind == "not run":
            assert rest
        elif kind == "file":
            (aside / rest).write_text(block.text, "utf-8")
        elif block.language == "python":
            run_python(document, block, namespace)
        elif block.language == "console":
            run_console(block, monkeypatch)
        else:
            assert block.language in ("", "mermaid", "json"), f"{document.name}:{block.line}: who checks this block?"


def test_few_examples_are_not_run():
    remarks = [b.remark for d in DOCUMENTS for b in blocks(d) if b.remark.startswith("not run")]
    assert len(remarks) <= MOST_NOT_RUN, remarks


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_links_lead_somewhere(document):
    targets = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", document.read_text("utf-8"))
    assert not [t for t in targets if not (document.parent / t).exists()]


def sources() -> dict[str, Path]:
    """Every module of the package by its full name, once: not through the links."""
    paths = [*(ROOT / "autottt").glob("*.py"), *(p for f in PACKAGES[1:] for p in (ROOT / f).rglob("*.py"))]
    names = {p: ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in paths}
    return {n if n.split(".")[0] == "autottt" else f"autottt.{n}": p for p, n in sorted(names.items())}


@pytest.mark.parametrize("name", [n for n, p in sources().items() if ">>>" in p.read_text("utf-8")])
def test_examples_in_docstrings_hold(name, aside):
    assert not doctest.testmod(importlib.import_module(name)).failed


# --- what is generated -----------------------------------------------------------------------------------------------


def region(text: str, name: str) -> str:
    """What stands in a document between `<!-- NAME -->` and `<!-- /NAME -->`."""
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", text, re.DOTALL)
    assert found, f"README.md has no region {name!r}"
    return found[1].strip()


def tree_names(tree: str) -> dict[str, str]:
    """Path -> what a tree says of it. A folder's line stands for its `__init__.py`."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in tree.splitlines():
        entry = re.fullmatch(r"( *)(\S+) +(.*)", line)
        if entry:
            above = [*above[: len(entry[1]) // 2], entry[2]]
            found["".join(above)] = entry[3]
    return found


def modules() -> dict[str, Path]:
    """Path in the tree -> module, for every module of the package; `ttt_core/` is `ttt_core/__init__.py`."""
    paths = sorted(sources().values(), key=lambda p: (PACKAGES.index(p.relative_to(ROOT).parts[0]), _order(p)))
    return {p.relative_to(ROOT).as_posix().removesuffix("__init__.py"): p for p in paths}


def _order(path: Path) -> tuple[object, ...]:
    return tuple((not part.endswith(".py"), part != "__init__.py", part) for part in path.relative_to(ROOT).parts)


def tree() -> str:
    """The tree of the package: known lines as they stand in README.md, new ones from the module's first words."""
    said = tree_names(region(README.read_text("utf-8"), "tree"))
    lines = []
    for path, module in modules().items():
        depth = path.rstrip("/").count("/")
        name = path.rstrip("/").rpartition("/")[2] + ("/" if path.endswith("/") else "")
        lines.append(f"{'  ' * depth + name:24}{said.get(path) or _first_words(module)}")
    rest = [(path, text) for path, text in said.items() if path.split("/")[0] not in PACKAGES]
    return "```\n" + "\n".join([*lines, *(f"{path:24}{text}" for path, text in rest)]) + "\n```"


def _first_words(module: Path) -> str:
    text = " ".join((ast.get_docstring(ast.parse(module.read_text("utf-8"))) or "").split())
    return re.split(r"(?<=\w)[.;:](?:\s|$)", re.sub(r"^(?:`?\w+`? ?){1,3}: ", "", text))[0]


def strategies_table() -> str:
    return "\n".join(x for x in (autottt.strategies.__doc__ or "").splitlines() if x.startswith("|"))


def drawing() -> str:
    """The graph as the docstring of `controller/graph.py` draws it."""
    module = ast.parse((ROOT / "controller" / "graph.py").read_text("utf-8"))
    found = re.search(r"```mermaid\n.*?```", ast.get_docstring(module) or "", re.DOTALL)
    assert found, "controller/graph.py has no drawing in its docstring"
    return found[0]


def measured_table() -> str:
    return str(benchmarks().measured_table(RESULTS, set(base.strategies())))


def policy_table() -> str:
    return str(benchmarks().policy_table(RESULTS))


def benchmarks() -> ModuleType:
    """benchmarks/measured.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("benchmark_measured", ROOT / "benchmarks" / "measured.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATED = {
    "tree": tree, "strategies": strategies_table, "graph": drawing, "measured": measured_table, "policy": policy_table,
}  # fmt: skip


def solves(domain: Domain, primitive: Primitive) -> str:
    return ", ".join(public for public, names in domain.solves.items() if primitive.name in names)


def primitives() -> str:
    """All of docs/primitives.md."""
    every = [(d, p) for d in domains().values() for p in sorted(d.primitives, key=lambda p: p.name)]
    rows = [
        f"| `{p.name}` | {d.name} | {'yes' if p.held_out else ''} | {p.also_benchmark} | {solves(d, p)} | {p.about} |"
        for d, p in every
    ]
    scenes = [
        f"| `{s}` | {d.name} | {d.inputs[s]} | {d.also_benchmark.get(s, '')} |"
        for d in domains().values()
        for s in d.scenes
    ]
    held, shared = sum(p.held_out for _, p in every), sum(bool(p.also_benchmark or solves(d, p)) for d, p in every)
    return "\n".join(
        [
            "# The generator's primitives",
            "",
            "Written by `make docs`; a test holds it to the code. What they are for: [model.md](model.md).",
            "",
            f"{len(every)} primitives in {len(domains())} domains. {held} are held out of pre-training; {shared} do "
            "what a family of a public benchmark does, by its kind or because they alone solve tasks of its open part, "
            "as `python benchmarks/families.py solved DATA` finds.",
            "",
            "Where they come from: for single primitives no source was noted when they were written; what a domain "
            "draws on is below. No file of tasks is read, and tasks that repeat a benchmark's are drawn again.",
            "",
            *(f"- `{d.name}`: {d.origin}" for d in domains().values()),
            "",
            "| primitive | domain | held out | family of this kind in | alone solves tasks of | remark |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            "## Scenes",
            "",
            "A scene draws the inputs of a task.",
            "",
            "| scene | domain | inputs | benchmark with inputs of this form |",
            "|---|---|---|---|",
            *scenes,
            "",
        ]
    )


def test_the_tree_names_every_module_and_no_other():
    said = {n for n in tree_names(region(README.read_text("utf-8"), "tree")) if n.split("/")[0] in PACKAGES}
    assert said == set(modules())


@pytest.mark.parametrize("name", GENERATED)
def test_generated_parts_of_the_readme_are_up_to_date(name):
    assert region(README.read_text("utf-8"), name) == GENERATED[name](), "run `make docs`"


def test_the_list_of_primitives_is_up_to_date():
    assert PRIMITIVES.read_text("utf-8") == primitives(), "run `make docs`"


def test_the_page_of_measured_numbers_is_what_was_measured():
    assert MEASURED.read_text("utf-8") == benchmarks().measured(RESULTS), "run `make docs`"


def test_the_table_names_every_strategy_and_its_price():
    rows = [re.findall(r"[^|]+", row) for row in strategies_table().splitlines()[2:]]
    said = {row[0].strip(" `"): (row[1].strip(), int(row[2])) for row in rows}
    assert said == {name: (s.cost_class, s.min_demonstrations) for name, s in base.strategies().items()}


def write() -> None:
    """Writes the generated parts again."""
    text = README.read_text("utf-8")
    for name, made in GENERATED.items():
        part = f"<!-- {name} -->\n\n{made()}\n\n<!-- /{name} -->"
        text = re.sub(rf"<!-- {name} -->\n.*?<!-- /{name} -->", lambda _, part=part: part, text, flags=re.DOTALL)
    README.write_text(text, "utf-8")
    PRIMITIVES.write_text(primitives(), "utf-8")
    MEASURED.write_text(benchmarks().measured(RESULTS), "utf-8")


if __name__ == "__main__":
    write()
