"""Control characters of tasks and files never reach the terminal, and lines are wrapped on a terminal only."""

from __future__ import annotations

import io
import json
import logging

import pytest
from rich.table import Table
from rich.text import Text

from autottt.controller.cli import console
from autottt.controller.cli.console import SafeConsole, escaped
from tests.controller.cli.commands import call, task, tasks_file

HOSTILE = {
    "colour": "\x1b[31m", "title": "\x1b]0;x\x07", "8-bit sequence": "\x9b31m", "carriage return": "a\rb",
    "backspace": "a\bb", "delete": "\x7f", "override": "\u202e", "isolate": "\u2066", "line separator": "\u2028",
    "byte order mark": "\ufeff", "tag": "\U000e0041", "surrogate": "\ud800", "null": "\x00", "next line": "\x85",
}  # fmt: skip
hostile = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)


def is_safe(printed: str) -> bool:
    return all(c == "\n" or escaped(c) == c for c in printed)


@hostile
def test_control_characters_are_escaped(text):
    assert escaped(text).isascii()
    assert escaped(text).isprintable()
    assert "\\u" in escaped(text).lower()


@pytest.mark.parametrize("text", ["plain", "Größe ≤ 3 → 中文", "👩\u200d💻 ♥", "two\nlines", ""])
def test_other_text_is_unchanged(text):
    assert escaped(text) == text


@hostile
def test_a_console_escapes_whatever_it_renders(text):
    file = io.StringIO()
    screen = SafeConsole(file=file)
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text, Text(text, "bold"))
    for renderable in (text, Text(text), table):
        screen.print(renderable)
    screen.print_json(json.dumps({text: text}), ensure_ascii=True)
    assert is_safe(file.getvalue())


def test_styles_reach_a_terminal():
    file = io.StringIO()
    SafeConsole(file=file, force_terminal=True, color_system="standard").print(Text("x", "red"))
    assert "\x1b[31m" in file.getvalue()


@hostile
def test_ids_and_keys_are_escaped_in_errors(tmp_path, model, text):
    lines = [task(f"{text}a", queries=[{"input": [1] * 900}]), {text: 1}, task(f"{text}b", kind=text), task("c")]
    code, out, err = call("solve", tasks_file(tmp_path, *lines), "--model", model, "--strategy", "in_context")
    assert code == 1
    assert is_safe(out)
    assert is_safe(err)
    assert len(err.splitlines()) == 3, "one line for each"


@pytest.mark.parametrize(
    "option", ["--strategy", "--budget", "--device", "--out", "--plugin", "--policy", "--bad\x1b[31m"]
)
def test_arguments_are_escaped_in_errors(tmp_path, option):
    code, out, err = call("solve", tasks_file(tmp_path, task("a")), option, "x\x1b[31m/\u202ey")
    assert code == 2
    assert is_safe(out + err)


def test_the_consoles_print_markup_as_it_is(monkeypatch):
    for printer in (console.screen, console.errors):
        file = io.StringIO()
        monkeypatch.setattr(printer, "file", file)
        table = Table()
        table.add_row("[red]a[/red] [/] :smile:")
        printer.print(table)
        assert "[red]a[/red] [/] :smile:" in file.getvalue()


def test_markup_in_ids_is_no_markup(tmp_path, model):
    file = tasks_file(tmp_path, task("[red]a[/red]", queries=[{"input": [1] * 900}]))
    _, _, err = call("solve", file, "--model", model)
    assert "[red]a[/red]" in err


def test_warnings_of_the_package_are_escaped(monkeypatch):
    file = io.StringIO()
    console.quiet()
    monkeypatch.setattr(console.errors, "file", file)
    logging.getLogger("autottt").warning("failed on %s", "\x1b[31m\nid")
    assert file.getvalue() == "failed on \\u001b[31m\\u000aid\n"


def test_warnings_about_tasks_are_escaped(tmp_path):
    """The reader warns of a field that is nearly a known one, before a model is loaded."""
    near = task("\x1b[31mid", anwser=[1])
    code, _, err = call("solve", tasks_file(tmp_path, near), "--policy", "no-policy")
    assert (code, is_safe(err)) == (2, True)
    (tmp_path / "model").mkdir()
    broken = {"config.json": '{"model_type": "llama"}', "model.safetensors": "", "tokenizer.json": ""}
    for name, content in broken.items():
        (tmp_path / "model" / name).write_text(content)
    code, _, err = call("evaluate", tasks_file(tmp_path, near), "--device", "cpu", "--model", str(tmp_path / "model"))
    assert (code, is_safe(err), "anwser" in err) == (2, True, True)


def test_tracebacks_are_escaped(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(console.errors, "file", file)
    error = ValueError("\x1b[31m")
    console.print_traceback(ValueError, error, None)
    assert file.getvalue().rstrip() == "ValueError: \\u001b[31m"


@pytest.mark.parametrize("columns", ["20", "80"])
def test_lines_are_not_wrapped_off_a_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    file = io.StringIO()
    screen = SafeConsole(file=file)
    table = Table()
    table.add_row("word " * 100)
    screen.print("word " * 100)
    screen.print(table)
    lines = file.getvalue().splitlines()
    assert lines[0].count("word") == 100
    assert sum("word" in line for line in lines) == 2


def test_lines_are_wrapped_on_a_terminal():
    file = io.StringIO()
    SafeConsole(file=file, force_terminal=True, width=40).print("word " * 100)
    assert max(map(len, file.getvalue().splitlines())) <= 40


def test_the_list_of_strategies_is_not_wrapped():
    _, out, _ = call("strategies")
    line = next(line for line in out.splitlines() if line.split()[:1] == ["ttt_crossfit"])
    assert line.rstrip().endswith("a vote of all")
