"""Writes the parts of the documents that follow from the code and from benchmarks/results. Run it with `make docs`.

`PAGES` are generated as a whole; `REGIONS` are parts between `<!-- NAME -->` and `<!-- /NAME -->` of a page that people
write. tests/test_docs.py holds both to the code. Knows nothing about how examples in documents are run.
"""

from __future__ import annotations

import ast
import importlib.util
import math
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import accuracy_cost
import api_reference

import autottt.strategies
from autottt.policies.feature_glossary import GLOSSARY, stage_of
from autottt.strategies import registry
from autottt.ttt_core.pretraining.generator.core import Domain, Primitive
from autottt.ttt_core.pretraining.generator.families import domains

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"
PICTURE = DOCS / "accuracy_cost.svg"
PICTURE_OF_MODELS = DOCS / "accuracy_cost_models.svg"
PACKAGES = ("autottt", "controller", "strategies", "policies", "ttt_core")
OTHER_FOLDERS = {
    "tests/": "mirror the packages; the contract tests (architecture, documents, packaging, strategies) stand on top",
    "examples/": "programs to start from, each run by a test",
    "benchmarks/": "measurements, each with the command that repeats it; results, and outcomes for training policies",
    "docs/": "these documents, and what generates parts of them (`make docs`)",
}


def sources() -> dict[str, Path]:
    """Every module of the package by its full name, once: links to folders are not followed."""
    paths = [*(ROOT / "autottt").glob("*.py"), *(p for f in PACKAGES[1:] for p in (ROOT / f).rglob("*.py"))]
    names = {p: ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in paths}
    return {n if n.split(".")[0] == "autottt" else f"autottt.{n}": p for p, n in sorted(names.items())}


# --- the tree of files -----------------------------------------------------------------------------------------------


def tree() -> str:
    """One line per module: its place and the first sentence of its docstring. A folder's line is its `__init__.py`."""
    paths = sorted(sources().values(), key=lambda p: (PACKAGES.index(p.relative_to(ROOT).parts[0]), _order(p)))
    lines = []
    for path in paths:
        place = path.relative_to(ROOT).as_posix().removesuffix("__init__.py")
        name = place.rstrip("/").rpartition("/")[2] + ("/" if place.endswith("/") else "")
        lines.append(f"{'  ' * place.rstrip('/').count('/') + name:28}{first_sentence(path)}")
    lines += [f"{place:28}{text}" for place, text in OTHER_FOLDERS.items()]
    return "\n".join(["```", *lines, "```"])


def _order(path: Path) -> tuple[object, ...]:
    """Modules before folders, `__init__.py` first."""
    return tuple((not part.endswith(".py"), part != "__init__.py", part) for part in path.relative_to(ROOT).parts)


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, without its full stop."""
    text = " ".join((ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split())
    return re.split(r"(?<=[\w)`])\.(?:\s|$)", text)[0]


def drawing() -> str:
    """The graph, as the docstring of `controller/graph.py` draws it."""
    module = ast.parse((ROOT / "controller" / "graph.py").read_text("utf-8"))
    match = re.search(r"```mermaid\n.*?```", ast.get_docstring(module) or "", re.DOTALL)
    assert match, "controller/graph.py has no drawing in its docstring"
    return match[0]


# --- tables ----------------------------------------------------------------------------------------------------------


def strategies_table() -> str:
    """The table of strategies in the docstring of `strategies/__init__.py`."""
    return "\n".join(x for x in (autottt.strategies.__doc__ or "").splitlines() if x.startswith("|"))


def measured_table() -> str:
    return str(benchmark("result_tables").measured_table(RESULTS, set(registry.strategies())))


def policy_table() -> str:
    return str(benchmark("result_tables").policy_table(RESULTS))


def measured_page() -> str:
    return str(benchmark("result_tables").measured(RESULTS))


def real_strategies_table() -> str:
    return str(benchmark("result_tables").real_strategies_table(RESULTS))


def real_formats_table() -> str:
    return str(benchmark("result_tables").real_formats_table(RESULTS))


def capacity_tables() -> str:
    return str(benchmark("capacity_tables").capacity(RESULTS))


def real_policies_table() -> str:
    return str(benchmark("policy_real_rows").policies_table(RESULTS))


def outcome_strategies_table() -> str:
    return str(benchmark("policy_real_rows").strategies_table(RESULTS))


def benchmark(name: str) -> ModuleType:
    """A module of benchmarks/, which is not part of the package."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


# --- docs/features.md -------------------------------------------------------------------------------------------------


def features_page() -> str:
    """Every feature with its meaning, range, cost, stage and node."""
    rows = [
        f"| `{name}` | {each.meaning} | {_range(each.low, each.high)} | {each.cost} | {stage_of(name)} |"
        for name, each in GLOSSARY.items()
    ]
    return "\n".join(
        [
            "# Features",
            "",
            "Written by `make docs` from `policies/feature_glossary.py`; a test holds it to the code and to measured "
            "values. What the policy does with them: [policy.md](policy.md).",
            "",
            "The node `measure` measures all of them. Those of stage 0 come with the in-context answer. Those of stage "
            "1, the probe, take one batched scoring pass without decoding, and are measured where the policy says that "
            "they may change its choice and the budget pays for them. `autottt trace show` lists those of a run.",
            "",
            "Log-probabilities per token are clipped at -20. What cannot be measured, such as leave-one-out accuracy "
            "with one demonstration, has a neutral value: 0 for shares and -2 for log-probabilities.",
            "",
            "| feature | meaning | range | cost beyond the in-context answer (D demonstrations) | stage |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _range(low: float, high: float) -> str:
    """A range in words."""
    if math.isinf(low) and math.isinf(high):
        return "any number"
    if math.isinf(high):
        return f"{low:.3g} or more"
    return f"{high:.3g} or less" if math.isinf(low) else f"{low:.3g} to {high:.3g}"


# --- docs/primitives.md ----------------------------------------------------------------------------------------------


def primitives_page() -> str:
    """The primitives and scenes of the generator, with what they share with public benchmarks."""
    every = [(d, p) for d in domains().values() for p in sorted(d.primitives, key=lambda p: p.name)]
    rows = [
        f"| `{p.name}` | {d.name} | {'yes' if p.held_out else ''} | {p.also_benchmark} | {_solves(d, p)} | {p.about} |"
        for d, p in every
    ]
    scenes = [
        f"| `{s}` | {d.name} | {d.inputs[s]} | {d.also_benchmark.get(s, '')} |"
        for d in domains().values()
        for s in d.scenes
    ]
    held_out, shared = sum(p.held_out for _, p in every), sum(bool(p.also_benchmark or _solves(d, p)) for d, p in every)
    return "\n".join(
        [
            "# The generator's primitives",
            "",
            "Written by `make docs`; a test holds it to the code. What they are for: [model.md](model.md).",
            "",
            f"{len(every)} primitives in {len(domains())} domains. {held_out} are held out of pre-training; {shared} "
            "do what a family of a public benchmark does, by its kind or because they alone solve tasks of its open "
            "part, as `python benchmarks/families.py solved DATA` finds.",
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


def _solves(domain: Domain, primitive: Primitive) -> str:
    return ", ".join(public for public, names in domain.solves.items() if primitive.name in names)


# --- writing ---------------------------------------------------------------------------------------------------------

PAGES: Mapping[Path, Callable[[], str]] = {
    DOCS / "features.md": features_page,
    DOCS / "primitives.md": primitives_page,
    DOCS / "measured.md": measured_page,
    DOCS / "api" / "python.md": api_reference.python_page,
    DOCS / "api" / "strategies.md": api_reference.strategies_page,
    DOCS / "api" / "command_line.md": api_reference.commands_page,
}
REGIONS: Mapping[tuple[Path, str], Callable[[], str]] = {
    (DOCS / "architecture.md", "graph"): drawing,
    (DOCS / "architecture.md", "tree"): tree,
    (DOCS / "strategies.md", "strategies"): strategies_table,
    (DOCS / "policy.md", "policy"): policy_table,
    (DOCS / "settings.md", "settings"): api_reference.settings_table,
    (DOCS / "models.md", "formats"): real_formats_table,
    (DOCS / "models.md", "strategies"): real_strategies_table,
    (DOCS / "models.md", "outcomes"): outcome_strategies_table,
    (DOCS / "models.md", "policies"): real_policies_table,
    (DOCS / "capacity.md", "capacity"): capacity_tables,
    (ROOT / "README.md", "measured"): measured_table,
}


def region(document: Path, name: str) -> str:
    """The text between a region's marks. Raises `ValueError` where the document has no such region."""
    match = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", document.read_text("utf-8"), re.DOTALL)
    if not match:
        raise ValueError(f"{document.relative_to(ROOT)} has no region {name!r}")
    return match[1].strip()


def write() -> None:
    """Writes the pictures and every generated page and region."""
    accuracy_cost.draw(RESULTS, PICTURE)
    accuracy_cost.draw_models(RESULTS, PICTURE_OF_MODELS)
    for page, make in PAGES.items():
        page.write_text(make(), "utf-8")
    for (document, name), make in REGIONS.items():
        part = f"<!-- {name} -->\n\n{make()}\n\n<!-- /{name} -->"
        pattern = rf"<!-- {name} -->\n.*?<!-- /{name} -->"
        text = re.sub(pattern, lambda _, part=part: part, document.read_text("utf-8"), flags=re.DOTALL)  # type: ignore[misc]
        document.write_text(text, "utf-8")


if __name__ == "__main__":
    write()
