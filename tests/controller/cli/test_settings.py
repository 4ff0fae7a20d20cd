"""An argument precedes a variable, a variable the configuration file, and the file the default."""

from __future__ import annotations

import inspect
import os
import tomllib
from pathlib import Path

import pytest
import typer

from autottt import Controller
from autottt.controller.cli import main as cli
from autottt.controller.cli.options import (
    ModelOptions,
    PolicyOptions,
    ResourceOptions,
    TaskOptions,
    TraceOptions,
    command,
    settings,
)
from autottt.controller.cli.settings import config_file, read_config, variable
from autottt.strategies import registry
from autottt.ttt_core.errors import SettingsError
from tests.controller.cli.commands import call, task, tasks_file

SAMPLES = {
    "model": ("arg", "env", "file"),
    "device": ("cpu", "cuda", "mps"),
    "dtype": ("bf16", "fp32", "bf16"),
    "prompt_format": ("auto", "standard", "compact"),
    "policy": (Path("arg"), Path("env"), Path("file")),
    "starting_adapter": (Path("arg"), Path("env"), Path("file")),
    "cost_weight": (0.1, 0.2, 0.3),
    "budget": ("1s", "2s", "3x"),
    "adapters": (Path("arg"), Path("env"), Path("file")),
    "memory": (1.0, 2.0, 3.0),
    "seed": (1, 2, 3),
    "trace": ("off", "local", "other.sqlite"),
}
"""Values as argument, variable and in the file."""
OPTIONS = {"trace": "--trace-store"}
"""Options that are not called like their setting."""


def write_config(text: str) -> Path:
    file = config_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def in_toml(value: object) -> str:
    return str(value) if isinstance(value, (int, float)) else f'"{value}"'


@pytest.fixture
def received(monkeypatch) -> list[dict[str, object]]:
    """What a command receives that takes every setting."""
    calls: list[dict[str, object]] = []
    application = typer.Typer(cls=cli._Group)

    @application.callback()
    def common() -> None: ...

    def probe(
        model: ModelOptions,
        policy: PolicyOptions,
        resources: ResourceOptions,
        tasks: TaskOptions,
        tracing: TraceOptions,
    ) -> None:
        calls.append({**vars(model), **vars(policy), **vars(resources), **vars(tasks), **vars(tracing)})

    probe.__annotations__ = inspect.get_annotations(probe, eval_str=True)
    command(application)(probe)
    monkeypatch.setattr(cli, "app", application)
    return calls


@pytest.mark.parametrize("name", SAMPLES)
def test_an_argument_precedes_a_variable_and_a_variable_precedes_the_file(name, received, monkeypatch):
    argument, in_environment, in_file = SAMPLES[name]
    call("probe")
    default = received[-1][name]
    write_config(f"{name} = {in_toml(in_file)}\n")
    call("probe")
    monkeypatch.setenv(variable(name), str(in_environment))
    call("probe")
    call("probe", OPTIONS.get(name, f"--{name.replace('_', '-')}"), str(argument))
    assert [values[name] for values in received] == [default, in_file, in_environment, argument]


def test_every_setting_is_tested():
    assert set(settings()) == {*SAMPLES, "plugins"}


def test_plug_ins_follow_the_same_order(received, monkeypatch):
    monkeypatch.setenv(registry.PLUGINS, "")
    write_config('plugins = ["json", "csv"]\n')
    assert call("probe")[0] == 0
    assert registry.plugin_sources() == ["json", "csv"], "worker processes read the variable"
    monkeypatch.setenv(registry.PLUGINS, os.pathsep.join(["ast", "abc"]))
    assert call("probe")[0] == 0
    assert registry.plugin_sources() == ["ast", "abc"]
    assert call("probe", "--plugin", "json", "--plugin", "ast")[0] == 0
    assert registry.plugin_sources() == ["json", "ast"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('modle = "x"', "unknown key 'modle'; did you mean 'model'? Known: model, "),
        ('[solve]\nmodel = "x"', "unknown key 'solve'"),
        ("zzzz = 1", "unknown key 'zzzz'. Known: model, "),
        ("seed = 'one'", "seed: expected a whole number; received 'one'"),
        ("seed = true", "seed: expected a whole number; received True"),
        ("seed = 1.5", "seed: expected a whole number; received 1.5"),
        ("memory = '4'", "memory: expected a number; received '4'"),
        ("model = 3", "model: expected a text; received 3"),
        ("policy = ['a']", "policy: expected a text; received ['a']"),
        ("plugins = 'a'", "plugins: expected a list of texts; received 'a'"),
        ("plugins = [1]", "plugins: expected a list of texts; received [1]"),
        ("dtype = 'int3'", "expected one of bf16, fp32; received 'int3'"),
        ("budget = 'soon'", "such as 10s"),
        ("device = 'abacus'", "expected one of cpu, cuda"),
        ("memory = -1", "expected a number of at least 0; received -1"),
        ("memory = nan", "expected a number of at least 0; received nan"),
        ("cost_weight = inf", "expected a number of at least 0; received inf"),
        ("model = ", "not a TOML file"),
        ("seed = 1\nseed = 2", "not a TOML file"),
    ],
)
def test_an_invalid_file_is_refused_with_its_path_and_the_key(tmp_path, text, says):
    file = write_config(text)
    code, out, err = call("solve", tasks_file(tmp_path, task("a")))
    assert (code, out) == (2, "")
    assert str(file) in err
    assert says in err
    assert err.count("\n") == 1


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    file = write_config("")
    file.write_bytes(b'model = "\xff"')
    code, _, err = call("solve", tasks_file(tmp_path, task("a")))
    assert (code, f"{file}: not a TOML file" in err) == (2, True)


def test_a_named_file_that_does_not_exist_is_an_error_and_the_default_one_need_not_exist(tmp_path, monkeypatch):
    assert read_config(settings()) == {}
    monkeypatch.setenv("AUTOTTT_CONFIG", str(tmp_path / "none.toml"))
    with pytest.raises(SettingsError, match=r"none\.toml: the configuration file cannot be read"):
        read_config(settings())


def test_help_and_version_are_printed_in_spite_of_an_invalid_file():
    write_config("nonsense = 1")
    assert call("--version")[0] == 0
    code, out, _ = call("solve", "--help")
    assert (code, "AUTOTTT_MODEL" in out) == (0, True)


def test_a_variable_with_an_invalid_value_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOTTT_DTYPE", "int3")
    code, _, err = call("solve", tasks_file(tmp_path, task("a")))
    assert (code, "variable AUTOTTT_DTYPE: expected one of bf16, fp32; received 'int3'" in err) == (2, True)


def test_the_example_in_the_documents_is_valid():
    text = (Path(__file__).parents[3] / "docs" / "settings.md").read_text("utf-8")
    example = text.split("```toml\n")[1].split("```")[0]
    write_config(example)
    assert read_config(settings()).keys() == tomllib.loads(example).keys()


def test_a_home_folder_is_expanded():
    write_config('adapters = "~/adapters"\nplugins = ["~/mine.py"]\n')
    values = read_config(settings())
    assert values == {"adapters": os.path.expanduser("~/adapters"), "plugins": [os.path.expanduser("~/mine.py")]}


def test_doctor_prints_each_setting_with_its_source(model, monkeypatch):
    file = write_config('dtype = "fp32"\nadapters = "stored"\n')
    monkeypatch.setenv("AUTOTTT_SEED", "7")
    monkeypatch.setenv("AUTOTTT_DEVICE", "cpu")
    code, out, _ = call("doctor", "--model", model)
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in out.splitlines() if line.startswith("  ")}
    assert code == 0
    assert lines["model"] == f"{model} (argument --model)"
    assert lines["device"] == "cpu (variable AUTOTTT_DEVICE)"
    assert lines["dtype"] == f"fp32 (file {file})"
    assert lines["adapters"] == f"stored (file {file})"
    assert lines["seed"] == "7 (variable AUTOTTT_SEED)"
    assert lines["budget"] == "not set (default)"
    assert lines.keys() == settings().keys()


def test_a_forced_strategy_precedes_a_configured_policy(tmp_path, model):
    write_config('policy = "public"\ncost_weight = 0.5\n')
    words = ["solve", tasks_file(tmp_path, task("a")), "--model", model, "--strategy", "in_context"]
    assert call(*words)[0] == 0
    code, _, err = call(*words, "--policy", "public")
    assert (code, "leaves a policy no choice" in err) == (2, True)


def test_the_python_api_reads_neither_variables_nor_the_file(model, monkeypatch):
    write_config("nonsense = 1")
    monkeypatch.setenv("AUTOTTT_MODEL", "no/such/model")
    assert Controller.from_pretrained(model).learner.loaded.name
