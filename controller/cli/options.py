"""The options of the commands, each declared once: groups of options, and the decorator that expands them.

A command takes `model: ModelOptions`; `command` puts the fields of the group into the signature that Typer reads. Every
command has `--debug`, and those that may run strategies have `--plugin`. Options with an environment variable are
settings (see `settings`).
"""

from __future__ import annotations

import inspect
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from ...strategies.registry import PLUGINS, check_plugins
from ...ttt_core.errors import BudgetError, PolicyError, SettingsError
from ...ttt_core.model.source_check import check_source
from ..budget import Budget
from ..tracing import EXPECTED_TARGETS, named_targets
from .console import print_problems
from .settings import source_of, variable

if TYPE_CHECKING:
    from ...ttt_core.learner import Learner
    from ...ttt_core.tasks.readers import LoadedTasks
    from ..controller import Controller
    from ..state import Recorder

F = TypeVar("F", bound=Callable[..., None])
DEBUG, CONFIG_ERROR, CONFIG_VALUES = "autottt.debug", "autottt.config_error", "autottt.config_values"
"""Keys of `Context.meta`, which the contexts of a command and of its groups share."""
DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu", "mtia", "npu", "xla")
"""Types of devices that torch or its extensions run models on."""
DTYPES = ("bf16", "fp32")
FORMATS = ("auto", "chat", "standard", "compact")


def _one_of(choices: tuple[str, ...]) -> Callable[..., str | None]:
    """A callback that refuses a value that is not among the choices."""

    def check(ctx: typer.Context, param: typer.CallbackParam, value: str | None) -> str | None:
        if value is not None and value not in choices:
            raise _invalid(ctx, param, f"one of {', '.join(choices)}", value)
        return value

    return check


def _check_device(ctx: typer.Context, param: typer.CallbackParam, value: str | None) -> str | None:
    """Refuses what names no type of device; whether the device is there, only torch can say."""
    if value is not None and not re.fullmatch(rf"({'|'.join(DEVICES)})(:\d+)?", value):
        raise _invalid(ctx, param, f"one of {', '.join(DEVICES)}, or one with an index such as cuda:1", value)
    return value


def check_amount(ctx: typer.Context, param: typer.CallbackParam, value: float | None) -> float | None:
    """Refuses what is not a number of at least 0."""
    if value is not None and not 0 <= value < math.inf:
        raise _invalid(ctx, param, "a number of at least 0", value)
    return value


def check_share(ctx: typer.Context, param: typer.CallbackParam, value: float | None) -> float | None:
    """Refuses what is not between 0 and 1."""
    if value is not None and not 0 < value < 1:
        raise _invalid(ctx, param, "a share above 0 and below 1", value)
    return value


def _check_budget(ctx: typer.Context, param: typer.CallbackParam, value: str | None) -> str | None:
    try:
        if value is not None:
            Budget.parse(value)
    except BudgetError as error:
        raise BudgetError(f"{source_of(ctx, param.name or '')}: {error}") from None
    return value


def _check_no_file(ctx: typer.Context, param: typer.CallbackParam, value: Path | None) -> Path | None:
    if value is not None and value.exists() and not value.is_dir():
        where = source_of(ctx, param.name or "")
        raise SettingsError(f"{where}: expected a folder, which may be new; received the file {value}")
    return value


def _invalid(ctx: typer.Context, param: typer.CallbackParam, expected: str, value: object) -> SettingsError:
    source = source_of(ctx, param.name or "", param.opts[0])
    return SettingsError(f"{source}: expected {expected}; received {value!r}")


def _setting(name: str, text: str, *declarations: str, **more: Any) -> Any:
    """An option that is also an environment variable and a key of the configuration file."""
    return typer.Option(*declarations, envvar=variable(name), help=text, **more)


def _note_debug(ctx: typer.Context, value: bool) -> bool:
    ctx.meta[DEBUG] = value
    return value


Files = Annotated[
    list[Path], typer.Argument(help="Task files or folders: JSONL, ARC JSON, BIG-Bench Hard JSON, chat messages.")
]
Seed = Annotated[
    int, _setting("seed", "The same seed gives the same answers; with ttt_warm, to tasks in the same order.")
]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Use this many tasks of each file: a sample that the seed determines.")
]
Demonstrations = Annotated[
    int | None, typer.Option(min=1, help="Demonstrations per task of a file that does not separate them from queries.")
]
Adapters = Annotated[
    Path | None,
    _setting("adapters", "Store trained adapters in this folder and reuse those in it.", callback=_check_no_file),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Plugins = Annotated[
    list[Path] | None,
    _setting(
        "plugins", "Module or .py file with your own strategies; may be repeated.", "--plugin",
        metavar="MODULE_OR_FILE",
    ),
]  # fmt: skip
_Debug = Annotated[
    bool, typer.Option("--debug", help="Show the traceback of an error.", is_eager=True, callback=_note_debug)
]


@dataclass(frozen=True)
class ModelOptions:
    """Which model answers, and how it is loaded."""

    model: Annotated[
        str | None,
        _setting(
            "model",
            "Folder, GGUF file, hub id, or name in `autottt models list` of a causal language model; default: the "
            "bundled model.",
        ),
    ] = None
    device: Annotated[
        str | None,
        _setting("device", "cpu, cuda, cuda:1, mps ...; default: a GPU if there is one.", callback=_check_device),
    ] = None
    dtype: Annotated[
        str | None,
        _setting("dtype", "bf16 or fp32; default: the faster one on the device.", callback=_one_of(DTYPES)),
    ] = None
    prompt_format: Annotated[
        str | None,
        _setting(
            "prompt_format", "auto (chosen for each task), chat, standard or compact; default: what the model says.",
            callback=_one_of(FORMATS),
        ),
    ] = None  # fmt: skip
    starting_adapter: Annotated[
        Path | None,
        _setting(
            "starting_adapter", "Folder of the adapter that training starts from, as `autottt prepare` writes it."
        ),
    ] = None
    read_with_adapter: Annotated[
        bool, typer.Option("--read-with-adapter", help="Answer in context with the starting adapter as well.")
    ] = False

    def check(self) -> None:
        """Raises `ModelError` for what cannot be a model, before anything slow is imported."""
        check_source(self.model)

    def load_learner(self) -> Learner:
        """The model, without a policy."""
        self.check()
        from ...ttt_core.learner import Learner

        return Learner.load(
            self.model, device=self.device, dtype=self.dtype, prompt_format=self.prompt_format,
            starting_adapter=self.starting_adapter, read_with_adapter=self.read_with_adapter,
        )  # fmt: skip


@dataclass(frozen=True)
class PolicyOptions:
    """Which policy decides."""

    policy: Annotated[
        Path | None,
        _setting(
            "policy",
            "Folder or name (`autottt policy list`) of a policy; default: the one of the model, else the one for any.",
        ),
    ] = None
    ignore_mismatch: Annotated[
        bool,
        typer.Option(
            "--ignore-mismatch", help="Use --policy even if it was trained for another model or other recipes."
        ),
    ] = False
    cost_weight: Annotated[
        float | None,
        _setting(
            "cost_weight", "Accuracy that one in-context cost is worth; default: as the policy was trained.",
            callback=check_amount,
        ),
    ] = None  # fmt: skip

    def check(self) -> None:
        """Raises `PolicyError` if the folder is not a bundle of the format that this version reads."""
        check_bundle(self.policy)


def _check_trace(ctx: typer.Context, param: typer.CallbackParam, value: str | None) -> str | None:
    """Refuses what names no target of traces; an empty text is no value."""
    try:
        named_targets(value or "off")
    except ValueError as error:
        raise SettingsError(f"{source_of(ctx, 'trace', '--trace-store')}: {error}") from None
    return value or None


TraceSetting = Annotated[
    str | None,
    _setting(
        "trace", f"Where traces of runs go: {EXPECTED_TARGETS}; commas separate several; default: local.",
        "--trace-store", callback=_check_trace,
    ),
]  # fmt: skip


@dataclass(frozen=True)
class TraceOptions:
    """Where traces of runs go."""

    trace: TraceSetting = None

    @property
    def recorder(self) -> str:
        """The argument `trace` of a controller."""
        return self.trace or "local"


@dataclass(frozen=True)
class TaskOptions:
    """Which tasks of the files are used."""

    seed: Seed = 0
    limit: Limit = None
    demonstrations: Demonstrations = None

    def read(self, files: list[Path]) -> LoadedTasks:
        """The tasks of files. Problems are printed."""
        from ...ttt_core.tasks.readers import read_tasks

        loaded = read_tasks(files, limit=self.limit, seed=self.seed, demonstrations=self.demonstrations)
        print_problems(loaded.problems)
        return loaded


@dataclass(frozen=True)
class AnswerOptions:
    """What an answer may take, and where adapters are stored."""

    budget: Annotated[
        str | None,
        _setting("budget", "Per query: 10s, or 20x the in-context time.", callback=_check_budget),
    ] = None
    adapters: Adapters = None
    memory: Annotated[
        float | None,
        _setting("memory", "GiB for training and answering, without the model itself.", callback=check_amount),
    ] = None

    @property
    def memory_bytes(self) -> int | None:
        return None if self.memory is None else round(self.memory * (1 << 30))


@dataclass(frozen=True)
class ResourceOptions(AnswerOptions):
    """The same, and how many tasks are answered side by side."""

    batch_size: Annotated[
        int, typer.Option(min=1, help="Queries that are decided on, and trained for, side by side; 1 answers soonest.")
    ] = 32


def check_bundle(*folders: Path | None) -> None:
    """Raises `PolicyError` for a folder that is not a policy bundle, before anything slow is imported."""
    from ...policies.bundle_card import bundle_folder, read_card

    for folder in folders:
        if folder is not None:
            read_card(bundle_folder(folder))


def load_controller(
    model: ModelOptions, policy: PolicyOptions, *, trace: str | Recorder = "off", **more: Any
) -> Controller:
    """See `Controller.from_pretrained`, which gets `more` as well. No run is recorded without `trace`."""
    policy.check()
    model.check()
    from ...strategies.registry import strategies
    from ..controller import Controller

    strategies()  # a plug-in that cannot be imported is an error before the model is loaded
    return Controller.from_pretrained(
        model=model.model, policy=policy.policy, device=model.device, dtype=model.dtype,
        prompt_format=model.prompt_format, ignore_mismatch=policy.ignore_mismatch, cost_weight=policy.cost_weight,
        trace=trace, starting_adapter=model.starting_adapter, read_with_adapter=model.read_with_adapter, **more,
    )  # fmt: skip


@contextmanager
def made_folders(**folders: Path) -> Iterator[None]:
    """Makes the folders that options name, and removes those that it made and that are empty at the end, as after an
    error. Raises `PolicyError` for one that cannot be written to."""
    made: list[Path] = []
    try:
        for option, folder in folders.items():
            made += [path for path in (folder, *folder.parents) if not path.exists()]
            make_folder(folder, f"--{option} {folder}", "name another place")
        yield
    finally:
        for folder in made:
            with suppress(OSError):  # it is in use
                folder.rmdir()


def make_folder(folder: Path, name: str, remedy: str) -> None:
    """Makes a folder if there is none. Raises `PolicyError`, which names it so, where it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PolicyError(f"{name}: the folder cannot be created ({error.strerror}): {remedy}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PolicyError(f"{name}: the folder cannot be written to: {remedy}")


def settings() -> dict[str, object]:
    """Every setting with its type."""
    groups = (ModelOptions, PolicyOptions, ResourceOptions, TaskOptions, TraceOptions)
    hints = {n: h for group in groups for n, h in get_type_hints(group, include_extras=True).items()}
    return {name: hint for name, hint in (hints | {"plugins": _Plugins}).items() if _envvar(hint)}


def _envvar(hint: object) -> str | None:
    return next((o.envvar for o in getattr(hint, "__metadata__", ()) if isinstance(o.envvar, str)), None)


def command(app: typer.Typer, name: str | None = None, *, plugins: bool = True) -> Callable[[F], F]:
    """Adds a function to an application as a command, with its groups of options expanded.

    The function itself is returned unchanged. `plugins` adds `--plugin`.
    """

    def add(function: F) -> F:
        app.command(name)(_expanded(function, plugins))
        return function

    return add


def _expanded(function: Callable[..., None], plugins: bool) -> Callable[..., None]:
    """A function with the signature that Typer reads, which calls `function` with groups of options."""
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters = {"ctx": _parameter("ctx", typer.Context)}
    for name, parameter in inspect.signature(function).parameters.items():
        own = _fields(groups[name]) if name in groups else {name: _parameter(name, hints[name], parameter.default)}
        parameters |= own
    parameters |= {"plugins": _parameter("plugins", _Plugins, None)} if plugins else {}
    parameters |= {"debug": _parameter("debug", _Debug, False)}

    @wraps(function)
    def run(ctx: typer.Context, **values: Any) -> None:
        if CONFIG_ERROR in ctx.meta:
            raise ctx.meta[CONFIG_ERROR]
        del values["debug"]  # its callback has noted it
        use_plugins(values.pop("plugins", None) or [])
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        function(**({"ctx": ctx} if "ctx" in hints else {}), **values)

    run.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    run.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
    return run


def _fields(group: Any) -> dict[str, inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return {
        field.name: _parameter(
            field.name, hints[field.name], inspect.Parameter.empty if field.default is MISSING else field.default
        )
        for field in fields(group)
    }


def _parameter(name: str, annotation: object, default: object = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def use_plugins(sources: list[Path]) -> None:
    """Makes plug-ins known to the registry, also in worker processes. Raises `StrategyError` for a missing one."""
    names = [str(source) for source in sources]
    check_plugins(names)
    if names:
        os.environ[PLUGINS] = os.pathsep.join(names)


def defaults_of(group: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The `default_map` of a group of commands: for every command, the settings that it takes."""
    return {
        name: defaults_of(child, values) if hasattr(child, "commands") else
        {p.name: values[p.name] for p in child.params if p.envvar and p.name in values}
        for name, child in group.commands.items()
    }  # fmt: skip
