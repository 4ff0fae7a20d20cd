"""Rules for the code as a whole: import directions, the cost of importing, and the files of the repository."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import autottt

ROOT = Path(__file__).parents[1]
LAYERS = ("ttt_core", "strategies", "policies", "controller")
"""From the bottom up: each may import those before it."""
OWNERS = {
    "torch": "ttt_core",
    "transformers": "ttt_core",
    "peft": "ttt_core",
    "safetensors": "ttt_core",
    "tokenizers": "ttt_core",
    "sklearn": "policies",
    "skops": "policies",
    "langgraph": "controller",
    "langchain_core": "controller",
    "langsmith": "controller",
    "opentelemetry": "controller",
    "typer": "controller",
    "rich": "controller",
    "fastapi": "controller",
    "starlette": "controller",
    "uvicorn": "controller",
    "prometheus_client": "controller",
    "httpx2": "controller",
    "lm_eval": "controller",
    "inspect_ai": "controller",
}
"""Heavy dependencies, each with the one package that imports it."""
HEAVY = {
    "torch",
    "transformers",
    "peft",
    "sklearn",
    "skops",
    "langgraph",
    "langchain_core",
    "langsmith",
    "numpy",
    "typer",
    "rich",
    "fastapi",
    "starlette",
    "uvicorn",
    "prometheus_client",
    "httpx2",
    "lm_eval",
    "inspect_ai",
}
ROOMS: dict[str, tuple[tuple[str, ...], ...]] = {
    "ttt_core": (
        ("arguments", "clock", "errors", "file_writing", "lazy", "lazy_modules", "recipes", "spans", "standard_json"),
        ("tasks",), ("model",), ("lora",), ("engine",), ("learner",), ("pretraining", "testing"), ("sources",),
    ),
    "strategies": (("base", "registry"), ("adapter_training", "voting")),
    "controller": (
        ("background", "budget", "caller", "plain_tasks", "run_facts", "session"), ("state",),
        ("results", "task_graph", "events"),
        ("nodes",), ("graph",), ("tracing",), ("lazy",), ("runs",), ("scheduler",), ("controller",),
        ("evaluation", "replay", "server"), ("integrations",), ("cli",),
    ),
}  # fmt: skip
"""The import order inside a package, from the bottom up: its modules and sub-packages, each of which may import those
before it and those of its own group. What is not named stands on top: in `strategies`, every strategy."""
OPEN_ENDED = {"strategies"}
"""Packages in which a new file needs no place in `ROOMS`."""
SLOW = {"peft", "sklearn", "skops", "scipy", "langgraph", "langchain_core", "langsmith", "fastapi", "uvicorn"}
"""Libraries that `from autottt import Controller` does not load: they are imported on first use, through `lazy.py`."""
LARGEST = 16 * 2**20
"""Bytes in a file of the repository."""

MODULES = {
    "autottt." + ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for layer in LAYERS
    for path in sorted((ROOT / layer).rglob("*.py"))
}
TOP = {"autottt." + p.stem if p.stem != "__init__" else "autottt": p for p in sorted((ROOT / "autottt").glob("*.py"))}


@cache
def syntax_tree(path: Path) -> ast.Module:
    """Never changed: every test of a module reads the same one."""
    return ast.parse(path.read_text("utf-8"))


@cache
def imports(name: str, path: Path) -> set[str]:
    """Full names of the modules that a module imports, anywhere in it; relative ones resolved, with a leading dot."""
    names: set[str] = set()
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(syntax_tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            prefix = ".".join(part for part in base if part)
            names |= {"." + prefix} if node.module else {f".{prefix}.{alias.name}" for alias in node.names}
    return names


@cache
def imported_modules(name: str) -> set[str]:
    """The modules of this package that a module imports, anywhere in it: also inside functions and for types only."""
    path = MODULES[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    modules: set[str] = set()
    for node in ast.walk(syntax_tree(path)):
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            parent = package[: len(package) - node.level + 1]
            source = ".".join([*parent, *filter(None, [node.module])])
            modules |= {
                f"{source}.{alias.name}" if f"{source}.{alias.name}" in MODULES else source for alias in node.names
            }
    return modules & MODULES.keys()


def room_of(name: str) -> tuple[str, str]:
    """Package, and the module or sub-package of it, that a module is in."""
    _, package, room, *_ = [*name.split("."), ""]
    return package, room


def height(package: str, room: str) -> int:
    groups = ROOMS[package]
    return next((i for i, group in enumerate(groups) if room in group), len(groups))


def circle(arrows: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def layer_of(name: str) -> str:
    return name.removeprefix(".").split(".")[1]


def tracked() -> list[Path]:
    """The files of the repository, and those that would be added to it."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.decode().split("\0") if name]
    return [p for p in paths if p.is_file() and not p.is_symlink()]


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_downwards_only(name):
    allowed = LAYERS[: LAYERS.index(layer_of(name)) + 1]
    upwards = [i for i in imports(name, MODULES[name]) if i.startswith(".") and layer_of(i) not in allowed]
    assert not upwards, f"{name} imports {upwards}; {layer_of(name)} may import {allowed}"


@pytest.mark.parametrize("name", [n for n in MODULES if layer_of(n) in ROOMS])
def test_imports_inside_a_package_follow_its_order(name):
    package, room = room_of(name)
    others = {m: room_of(m) for m in imported_modules(name) if layer_of(m) == package}
    too_high = [m for m, (_, other) in others.items() if other and height(package, other) > height(package, room)]
    assert not too_high, f"{name} imports {too_high}; from the bottom up the order is {ROOMS[package]}"


def test_no_modules_import_each_other_in_a_circle():
    assert not circle({name: imported_modules(name) for name in MODULES})


def test_no_sub_packages_import_each_other_in_a_circle():
    arrows: dict[str, set[str]] = {}
    for name in MODULES:
        here = ".".join(room_of(name))
        there = {".".join(room_of(m)) for m in imported_modules(name)} - {here}
        arrows[here] = arrows.get(here, set()) | there
    assert not circle(arrows)


@pytest.mark.parametrize("package", sorted(ROOMS.keys() - OPEN_ENDED))
def test_every_module_and_sub_package_has_a_place_in_the_import_order(package):
    named = {room for group in ROOMS[package] for room in group}
    rooms = {room for name in MODULES for owner, room in [room_of(name)] if owner == package and room}
    assert rooms <= named


@pytest.mark.parametrize("name", MODULES)
def test_siblings_are_imported_relatively(name):
    """An application that embeds the package may have a `controller` of its own."""
    roots = {i.split(".")[0] for i in imports(name, MODULES[name]) if not i.startswith(".")}
    assert not roots & {"autottt", *LAYERS}


@pytest.mark.parametrize("name", MODULES)
def test_every_heavy_dependency_has_one_owner(name):
    roots = {i.split(".")[0] for i in imports(name, MODULES[name]) if not i.startswith(".")}
    foreign = {root: OWNERS[root] for root in roots if OWNERS.get(root, layer_of(name)) != layer_of(name)}
    assert not foreign, f"{name} imports {foreign}: each belongs to the package named"


LAZY = {name: path for name, path in MODULES.items() if path.name == "lazy.py"}


@pytest.mark.parametrize("name", LAZY)
def test_a_lazy_module_imports_on_first_use_what_its_type_checking_imports_name(name):
    """So that the tests of import direction and ownership, which read import statements, see lazy imports too."""
    tree = syntax_tree(LAZY[name])
    tables = [node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "_MODULES"]
    package = name.rpartition(".")[0]
    table = {f".{package}{m}" if m.startswith(".") else m for m in ast.literal_eval(tables[0]).values()}
    checking = next(node for node in tree.body if isinstance(node, ast.If))
    named = set()
    for node in checking.body:
        relative = isinstance(node, ast.ImportFrom) and node.level
        prefix = (
            f".{package}.{node.module + '.' if node.module else ''}"
            if relative
            else f"{node.module}."
            if isinstance(node, ast.ImportFrom)
            else ""
        )
        named |= {prefix + alias.name for alias in node.names}
    assert named == table


@pytest.mark.parametrize("name", MODULES)
def test_libraries_are_imported_on_first_use_in_lazy_modules_only(name):
    """Elsewhere imports stand at the top; commands import the packages that they call, and no library."""
    if name in LAZY:
        return
    tree = syntax_tree(MODULES[name])
    inside = [
        node for function in ast.walk(tree) if isinstance(function, ast.FunctionDef) for node in ast.walk(function)
    ]
    roots = {a.name.split(".")[0] for node in inside if isinstance(node, ast.Import) for a in node.names}
    roots |= {node.module.split(".")[0] for node in inside if isinstance(node, ast.ImportFrom) and not node.level}
    assert not roots & SLOW


def test_importing_the_controller_loads_torch_and_transformers_but_no_slower_library():
    code = "import sys; from autottt import Controller; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"torch", "transformers"} <= set(loaded)
    assert not SLOW & set(loaded)


def test_the_first_solve_of_a_process_does_not_wait_for_an_import_that_cannot_be_cancelled():
    code = (
        "import sys; from autottt import Controller, make_task; controller = Controller.from_pretrained()\n"
        "before = set(sys.modules); task = make_task([([1, 2], [2, 1]), ([3, 4], [4, 3])], [5, 6])\n"
        "controller.solve(task); assert not {'sklearn', 'skops'} & set(sys.modules), 'to decide'\n"
        "controller.solve(task, strategy='ttt_direct'); controller.solve_many([task, task], strategy='ttt_direct')\n"
        "print(*sorted(m for m in set(sys.modules) - before if m.count('.') < 2))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not [m for m in loaded if m.split(".")[0] in SLOW]


@pytest.mark.parametrize("name", TOP)
def test_the_root_imports_no_dependency_itself(name):
    assert not {i.split(".")[0] for i in imports(name, TOP[name])} & OWNERS.keys()


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, autottt; print(*sorted(m for m in sys.modules if '.' not in m))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not HEAVY & set(loaded)


def test_showing_what_is_stored_and_training_policies_on_it_import_no_model_library():
    modules = (
        "controller.cli.display", "controller.cli.trace_display", "controller.tracing.statistics",
        "controller.tracing.store", "policies.outcome_check", "policies.report", "policies.training",
    )  # fmt: skip
    code = f"import sys, importlib; [importlib.import_module('autottt.' + name) for name in {modules}]; "
    code += "print(*sorted(m for m in sys.modules if '.' not in m))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "peft"} & set(loaded)


def test_importing_the_package_takes_less_than_half_a_second():
    code = "import time; began = time.perf_counter(); import autottt; print(time.perf_counter() - began)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, check=True) for _ in range(3)]
    assert min(float(run.stdout) for run in runs) < 0.5


@pytest.mark.parametrize("name", autottt.__all__)
def test_public_names_can_be_imported(name):
    assert getattr(autottt, name) is not None
    assert name in dir(autottt)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = autottt.no_such_name


@pytest.mark.parametrize("name", {**TOP, **MODULES})
def test_every_module_says_what_it_does(name):
    assert ast.get_docstring(syntax_tree({**TOP, **MODULES}[name]))


def test_links_stand_for_the_folders_of_the_same_name():
    for layer in LAYERS:
        assert (ROOT / "autottt" / layer).resolve() == ROOT / layer


def test_no_file_is_too_large_for_the_repository():
    assert not [p for p in tracked() if p.stat().st_size > LARGEST]


def test_no_package_of_others_is_in_the_repository():
    assert not [p for p in tracked() if p.name.endswith((".whl", ".tar.gz", ".zip"))]


def test_the_list_of_findings_names_every_script():
    table = (ROOT / "findings" / "README.md").read_text("utf-8")
    listed = re.findall(r"^\| (\w+) \|", table, re.MULTILINE)[1:]
    assert sorted(listed) == sorted(p.stem for p in (ROOT / "findings").glob("*.sh"))


def test_no_file_names_a_path_of_this_machine():
    """Neither the path of this checkout nor a home folder."""
    places = re.compile(rf"{re.escape(str(ROOT))}\b|/(?:root|home|Users|work)/\w".encode())
    paths = {p: hit.group() for p in tracked() if (hit := places.search(p.read_bytes()))}
    assert not paths


def test_no_file_that_installs_names_a_registry():
    installing = ("Makefile", "pyproject.toml", "constraints.txt", ".ci/run")
    for name in installing:
        assert not re.search(r"https?://|index-url|find-links", (ROOT / name).read_text("utf-8")), name
