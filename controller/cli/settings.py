"""Settings of the command line: an argument, else an `AUTOTTT_*` variable, else the configuration file, else a default.

Reads the configuration file and names the source of a value; which settings there are is declared in `options`. The
Python API reads neither the file nor variables, except `AUTOTTT_PLUGINS` and `AUTOTTT_TRACE`.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import typer

from ...ttt_core.errors import SettingsError

CONFIG_VARIABLE = "AUTOTTT_CONFIG"
"""The environment variable with the path of the configuration file."""
_TYPE_NAMES = {str: "a text", Path: "a text", int: "a whole number", float: "a number", list: "a list of texts"}


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"AUTOTTT_{name.upper()}"


def config_file() -> Path:
    """The configuration file: the one that `AUTOTTT_CONFIG` names, else `config.toml` in the user's folder for it."""
    named = os.environ.get(CONFIG_VARIABLE)
    return Path(named).expanduser() if named else Path(typer.get_app_dir("autottt")) / "config.toml"


def read_config(types: Mapping[str, object]) -> dict[str, Any]:
    """The values in the configuration file, by setting; empty if there is no file.

    `types` are the settings with their annotations. A text that begins with `~` is expanded. Raises `SettingsError`
    with the file, and the key that is unknown or has another type.
    """
    file = config_file()
    if not file.exists() and not os.environ.get(CONFIG_VARIABLE):
        return {}
    try:
        values = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"{file}: the configuration file cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and TOMLDecodeError are ValueErrors
        raise SettingsError(f"{file}: not a TOML file ({error})") from None
    return {key: _checked(file, key, value, types) for key, value in values.items()}


def _checked(file: Path, key: str, value: object, types: Mapping[str, object]) -> object:
    """A value of the file as the command line would receive it."""
    if key not in types:
        near = difflib.get_close_matches(key, types, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise SettingsError(f"{file}: unknown key {key!r}{hint} Known: {', '.join(types)}")
    wanted = _plain_type(types[key])
    accepted = {Path: str, float: (int, float)}.get(wanted, wanted)
    valid = isinstance(value, accepted) and not isinstance(value, bool)  # type: ignore[arg-type]
    if isinstance(value, list):
        valid = valid and all(isinstance(element, str) for element in value)
    if not valid:
        raise SettingsError(f"{file}: {key}: expected {_TYPE_NAMES[wanted]}; received {value!r}")
    if isinstance(value, list):
        return [os.path.expanduser(element) for element in value]
    return os.path.expanduser(value) if isinstance(value, str) else value


def _plain_type(annotation: object) -> type:
    """`str` for `str`, `str | None` and `Annotated[str | None, ...]`; `list` for a list of anything."""
    if isinstance(annotation, type):
        return annotation
    parts = [part for part in get_args(annotation) if part is not type(None)]
    if getattr(annotation, "__origin__", None) is list:
        return list
    return _plain_type(parts[0])


def source_of(context: typer.Context, name: str, option: str | None = None) -> str:
    """The source of a parameter's value: `argument --dtype`, `variable AUTOTTT_DTYPE`, `file PATH` or `default`."""
    source = context.get_parameter_source(name)
    match source.name if source is not None else "DEFAULT":
        case "COMMANDLINE":
            return f"argument {option or '--' + name.replace('_', '-')}"
        case "ENVIRONMENT":
            return f"variable {variable(name)}"
        case "DEFAULT_MAP":
            return f"file {config_file()}"
        case _:
            return "default"


def is_argument(context: typer.Context, name: str) -> bool:
    """Whether a parameter was given as an argument."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
