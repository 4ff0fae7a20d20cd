"""pyproject.toml lists the packages, data and dependencies that exist, and the wheel holds each file once."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections import Counter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
FOR_TESTS = ("test", "browser")
"""Extras that only the tests import."""
FOLDERS = ("autottt", "controller", "strategies", "ttt_core", "policies")


def folder_of(package: str) -> Path:
    """Where a package's files are, by `package-dir`."""
    parts = package.split(".")
    for size in range(len(parts), 0, -1):
        if (top := ".".join(parts[:size])) in SETUPTOOLS["package-dir"]:
            return ROOT.joinpath(SETUPTOOLS["package-dir"][top], *parts[size:])
    raise AssertionError(f"{package} has no folder")


def sources() -> list[Path]:
    """Every module, once: not through the links."""
    deep = [p for folder in FOLDERS[1:] for p in (ROOT / folder).rglob("*.py")]
    return sorted([*(ROOT / "autottt").glob("*.py"), *deep])


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(requirements: list[str]) -> set[str]:
    return {normal(re.match(r"[\w.-]+", r).group()) for r in requirements}


NAMESPACES = {
    "opentelemetry": "opentelemetry-sdk",  # and the API, which it requires
    "opentelemetry.exporter.otlp.proto.http": "opentelemetry-exporter-otlp-proto-http",
}
"""Modules of a root that several distributions share, each with its distribution."""


def root_of(module: str) -> str:
    """The part of a module's name that says which distribution it is of."""
    return max((n for n in NAMESPACES if f"{module}.".startswith(f"{n}.")), key=len, default=module.split(".")[0])


def imported() -> set[str]:
    """Distributions whose modules the package imports, anywhere."""
    roots: set[str] = set()
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                roots |= {root_of(alias.name) for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                roots.add(root_of(node.module or ""))
    owners = {root: {normal(name) for name in names} for root, names in packages_distributions().items()}
    owners |= {root: {name} for root, name in NAMESPACES.items()}
    owners["mlflow"] = {"mlflow"}  # the test extra installs mlflow-skinny, a part of it
    owners |= {
        name: {normal(name)} for name in ("reasoning_gym", "lm_eval", "inspect_ai")
    }  # which the test extra lacks
    third_party = {root: owners.get(root, {root}) for root in roots - set(sys.stdlib_module_names)}
    known = declared(PYPROJECT["project"]["dependencies"])
    return {min(names & known or names) for names in third_party.values()}


def test_every_package_folder_is_listed():
    on_disk = {p.parent for p in sources() if p.name == "__init__.py"}
    assert {folder_of(p) for p in SETUPTOOLS["packages"]} == on_disk


def test_every_module_is_in_a_package():
    assert {p.parent for p in sources()} <= {folder_of(p) for p in SETUPTOOLS["packages"]}


@pytest.mark.parametrize(("package", "pattern"), [(p, g) for p, gs in SETUPTOOLS["package-data"].items() for g in gs])
def test_every_data_pattern_matches_files(package, pattern):
    assert [p for p in folder_of(package).glob(pattern) if p.is_file()]


def test_every_data_file_is_shipped():
    patterns = [(folder_of(p), g) for p, gs in SETUPTOOLS["package-data"].items() for g in gs]
    shipped = {p for folder, pattern in patterns for p in folder.glob(pattern)}
    files = {p for f in FOLDERS[1:] for p in (ROOT / f).rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert files - set(sources()) <= shipped


def test_dependencies_are_what_is_imported():
    extras = PYPROJECT["project"]["optional-dependencies"]
    optional = set().union(*(declared(extras[name]) for name in extras if name not in FOR_TESTS))
    assert declared(PYPROJECT["project"]["dependencies"]) == imported() - optional
    assert optional <= imported()


def test_every_dependency_has_a_lower_and_an_upper_bound():
    for requirement in PYPROJECT["project"]["dependencies"]:
        assert re.fullmatch(r"[\w.-]+>=[\d.]+,<[\d.]+", requirement), requirement


def test_constraints_pin_versions_of_declared_dependencies():
    pins = [line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if line[:1] not in ("", "#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", pin) for pin in pins)
    assert declared(pins) <= declared(PYPROJECT["project"]["dependencies"])
    assert "torch" in declared(pins)


def test_a_wheel_holds_every_file_once(tmp_path):
    tree = tmp_path / "a tree"
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tree / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    code = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=tree, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if ".dist-info/" not in n]
    assert not [n for n, times in Counter(names).items() if times > 1]
    modules = {p.relative_to(ROOT) for p in sources()}
    expected = {p.as_posix() if p.parts[0] == "autottt" else f"autottt/{p.as_posix()}" for p in modules}
    assert {n for n in names if n.endswith(".py")} == expected
    assert "autottt/py.typed" in names
    data = {p.relative_to(ROOT).as_posix() for f in FOLDERS[1:] for p in (ROOT / f).rglob("*") if p.is_file()}
    assert {f"autottt/{d}" for d in data if "__pycache__" not in d} <= set(names)
