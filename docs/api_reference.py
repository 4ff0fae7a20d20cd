"""Writes the API reference in docs/api/ from signatures and docstrings; docs/generate.py calls it.

The commands' page is Typer's own. Knows nothing about regions of other documents.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import typer
from typer.cli import get_docs_for_click

import autottt
from autottt.controller.cli.main import app
from autottt.controller.cli.options import settings
from autottt.strategies import base, registry

ROOT = Path(__file__).parents[1]
NOTE = "Written by `make docs` from the docstrings; a test holds it to the code."
Definition = ast.ClassDef | ast.FunctionDef


def python_page() -> str:
    """The public names of `autottt`, with their public members."""
    names = sorted((n for n in autottt.__all__ if not n.startswith("__")), key=str.lower)
    lines = ["# The Python API", "", f"What `from autottt import ...` gives. {NOTE}", ""]
    lines += [", ".join(f"[`{name}`](#{name.lower()})" for name in names), ""]
    for name in names:
        lines += _entry(*_definition_of(getattr(autottt, name)))
    return _text(lines)


def strategies_page() -> str:
    """The protocol of a strategy, and each registered one with its settings."""
    lines = ["# Strategies", "", f"Recipes, sources and how to add one: [strategies.md](../strategies.md). {NOTE}", ""]
    lines += _entry(*_definition_of(base.Strategy))
    for name, strategy in registry.strategies().items():
        node, path = _definition_of(type(strategy))
        lines += _entry(node, path, title=name, members=False)
    return _text(lines)


def commands_page() -> str:
    """Every command with its arguments and options."""
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="autottt", terminal_width=120)
    text = get_docs_for_click(obj=command, ctx=context, name="autottt", title="The command line")
    title, _, rest = text.partition("\n")
    note = "Written by `make docs` from what `autottt COMMAND --help` prints; a test holds it to the code."
    return _text([title, "", note, "", *(line.rstrip() for line in rest.strip().splitlines())])


def settings_table() -> str:
    """Every setting of the command line with its option, variable, key in the configuration file, and meaning."""
    rows = ["| key | variable | option | meaning |", "|---|---|---|---|"]
    for name, hint in settings().items():
        (option,) = hint.__metadata__  # type: ignore[attr-defined]
        declared = next((d for d in (option.default, *(option.param_decls or ())) if isinstance(d, str)), "")
        flag = declared or f"--{name.replace('_', '-')}"
        rows.append(f"| `{name}` | `{option.envvar}` | `{flag}` | {option.help} |")
    return "\n".join(rows)


def _definition_of(thing: object) -> tuple[Definition, Path]:
    """Where a class or a function is defined, and its syntax tree."""
    source = inspect.getsourcefile(thing)  # type: ignore[arg-type]
    assert source is not None
    path = Path(source).resolve()
    name = thing.__name__  # type: ignore[attr-defined]
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, Definition) and node.name == name:
            return node, path.relative_to(ROOT)
    raise ValueError(f"{path} does not define {name}")


def _entry(node: Definition, path: Path, *, title: str = "", members: bool = True) -> list[str]:
    """A name's section: signature, docstring, fields, and public members."""
    lines = [f"## `{title}`" if title else f"## {node.name}", "", f"[{path}](../../{path})", ""]
    if isinstance(node, ast.FunctionDef):
        return [*lines, *_function(node, node.name)]
    bases = ", ".join(ast.unparse(b) for b in node.bases)
    lines += [
        "```python",
        f"class {node.name}({bases})" if bases else f"class {node.name}",
        "```",
        "",
        *_docstring(node),
    ]
    lines += _fields(node)
    if members:
        for member in _public_functions(node):
            lines += _member(node, member)
    return lines


def _public_functions(node: ast.ClassDef) -> Iterator[ast.FunctionDef]:
    """Public methods and properties in the order of the source, the constructor first where it has a docstring."""
    seen = set()
    for member in node.body:
        if not isinstance(member, ast.FunctionDef) or member.name in seen:
            continue  # a property's setter has its getter's name
        if not member.name.startswith("_") or (member.name == "__init__" and ast.get_docstring(member)):
            seen.add(member.name)
            yield member


def _member(owner: ast.ClassDef, node: ast.FunctionDef) -> list[str]:
    decorators = {ast.unparse(d) for d in node.decorator_list}
    title = owner.name if node.name == "__init__" else f"{owner.name}.{node.name}"
    if "property" in decorators:
        kind = f"`{ast.unparse(node.returns)}`" if node.returns else "property"
        return [f"### {title}", "", f"{kind}, a property.", "", *_docstring(node)]
    return [f"### {title}()", "", *_function(node, title, method="staticmethod" not in decorators)]


def _function(node: ast.FunctionDef, name: str, *, method: bool = False) -> list[str]:
    """A signature, one parameter a line where it is long, and the docstring."""
    arguments = node.args
    if method:
        first = arguments.posonlyargs or arguments.args
        del first[0]
    result = f" -> {ast.unparse(node.returns)}" if node.returns and node.name != "__init__" else ""
    parameters = _parameters(arguments)
    signature = f"{name}({', '.join(parameters)}){result}"
    if len(signature) > 100:
        signature = f"{name}(\n" + "".join(f"    {p},\n" for p in parameters) + f"){result}"
    return ["```python", signature, "```", "", *_docstring(node)]


def _parameters(arguments: ast.arguments) -> list[str]:
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + [*arguments.defaults]
    lines = [_parameter(a, d) for a, d in zip(positional, defaults, strict=True)]
    if arguments.vararg:
        lines.append(f"*{_parameter(arguments.vararg, None)}")
    elif arguments.kwonlyargs:
        lines.append("*")
    lines += [_parameter(a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return lines + ([f"**{_parameter(arguments.kwarg, None)}"] if arguments.kwarg else [])


def _parameter(argument: ast.arg, default: ast.expr | None) -> str:
    kind = f": {ast.unparse(argument.annotation)}" if argument.annotation else ""
    if default is None:
        return argument.arg + kind
    return argument.arg + kind + (" = " if kind else "=") + ast.unparse(default)


def _fields(node: ast.ClassDef) -> list[str]:
    """Annotated attributes with their defaults, and the string below each."""
    lines = []
    for place, statement in enumerate(node.body):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if (name := statement.target.id).startswith("_"):
            continue
        default = f" = {ast.unparse(statement.value)}" if statement.value else ""
        below = node.body[place + 1] if place + 1 < len(node.body) else None
        about = ""
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
            about = ": " + " ".join(below.value.value.split())
        lines.append(f"- `{name}: {ast.unparse(statement.annotation)}{default}`{about}")
    return [*lines, ""] if lines else []


def _docstring(node: Definition) -> list[str]:
    """A docstring's lines; paragraphs that are doctests become blocks of code."""
    lines: list[str] = []
    for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
        example = paragraph.lstrip().startswith(">>>")
        lines += ["```python", *paragraph.splitlines(), "```", ""] if example else [*paragraph.splitlines(), ""]
    return lines if lines != [""] else []


def _text(lines: list[str]) -> str:
    return "\n".join(lines).rstrip() + "\n"
