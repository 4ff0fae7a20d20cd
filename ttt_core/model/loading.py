"""Loads a causal language model and its tokenizer, and chooses device, precision and prompt format for them.

Knows nothing about tasks. Weights are read from safetensors only, and no code from a model folder is ever run.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars
from jinja2 import TemplateError
from safetensors import SafetensorError
from torch import nn
from transformers.utils import logging as bars

from .. import lazy as libraries
from ..errors import ModelError
from ..recipes import Recipe
from ..tasks.prompts import PLAIN_FORMATS, STANDARD_FORMAT, ChatFormat, PromptFormat
from . import lazy
from .probe import can_pad

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_UNLOADABLE = (
    OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, SafetensorError, StrictDataclassError
)  # fmt: skip
"""What the libraries raise about a folder that is no model."""

_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions", "seq_length")
"""What configurations call the longest sequence; some give -1 where there is none."""
MAX_CACHED_TEXTS = 20_000
"""Texts whose ids are kept."""
MAX_CACHED_TEXT_LENGTH = 4096
"""Characters of the longest of them."""
BUNDLED = Path(__file__).parents[1] / "bundled"
"""Folder of the model that ships with the package."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for use, and what the package knows about it."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    format: PromptFormat
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    """Strategy -> its recipe for this model; `strategy/kind` -> the one for tasks of that kind, where there is one."""
    supports_padding: bool = True
    """Whether padding beside what was read changes nothing; where it does, rows of one length alone go side by side."""
    _token_cache: dict[str, tuple[int, ...]] = field(default_factory=dict, compare=False, repr=False)

    def tokens(self, text: str) -> tuple[int, ...]:
        """The ids of a text. Those of short ones are kept: prompts share their demonstrations."""
        found = self._token_cache.get(text)
        if found is None:
            found = tuple(self.tokenizer.encode(text, add_special_tokens=False))
            if len(self._token_cache) >= MAX_CACHED_TEXTS:
                self._token_cache.clear()
            if len(text) <= MAX_CACHED_TEXT_LENGTH:
                self._token_cache[text] = found
        return found

    @property
    def context_length(self) -> int:
        """Longest sequence, in tokens, that the model was made for."""
        config = self.model.config.get_text_config()
        limits = (getattr(config, name, None) for name in _CONTEXT_NAMES)
        return next((int(n) for n in limits if n is not None and n >= 1), 1 << 20)


@contextmanager
def _quietly() -> Iterator[None]:
    """No bars and no warnings about retries inside; afterwards the host's settings hold again."""
    shown, hub_hidden = bars.is_progress_bar_enabled(), are_progress_bars_disabled()
    retries = logging.getLogger("huggingface_hub.utils._http")
    level = retries.level
    bars.disable_progress_bar()
    retries.setLevel(logging.ERROR)
    try:
        yield
    finally:
        retries.setLevel(level)
        if shown:
            bars.enable_progress_bar()  # the hub's too
        if hub_hidden:
            disable_progress_bars()


def choose_device(device: str | None = None) -> torch.device:
    """The device asked for, or the first CUDA card, or Apple's GPU, or the CPU. Raises `ModelError`."""
    if device is not None:
        try:
            chosen = torch.device(device)
            torch.empty(0, device=chosen)
        except (RuntimeError, AssertionError) as error:
            raise ModelError(f"device: cannot use {device!r} ({str(error).splitlines()[0]}); try 'cpu'") from None
        return chosen
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def choose_dtype(device: torch.device, dtype: str | None = None) -> torch.dtype:
    """The precision asked for, or bf16 where the hardware computes in it (CUDA, CPUs with AMX or AVX512-BF16), or
    fp32."""
    known = {"bf16": torch.bfloat16, "bfloat16": torch.bfloat16, "fp32": torch.float32, "float32": torch.float32}
    if dtype is not None:
        if dtype not in known:
            raise ModelError(f"dtype: expected one of {', '.join(known)}; received {dtype!r}")
        return known[dtype]
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    if device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()):
        return torch.bfloat16
    return torch.float32


def threads_in_use() -> int:
    """Threads that this process computes with on the CPU."""
    return torch.get_num_threads()


def use_threads(count: int) -> None:
    """Lets this process compute with so many threads on the CPU: each of several beside each other needs fewer."""
    torch.set_num_threads(count)


def load_model(
    source: str | os.PathLike[str] | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    prompt_format: str | None = None,
) -> LoadedModel:
    """Loads a model from a local folder or by its hub id; without `source`, the one that ships with the package.

    `prompt_format` is `chat`, `standard` or `compact`; by default what the model folder says, else `chat` where the
    tokenizer has a chat template, else `standard`. Raises `ModelError` with the reason and the remedy.
    """
    where = os.path.expanduser(source or BUNDLED)
    if _looks_like_a_path(str(source or BUNDLED)) and not os.path.isdir(where):
        raise _not_loaded(str(source), "there is no such folder")
    chosen = choose_device(device)
    precision = choose_dtype(chosen, dtype)
    try:
        with _quietly():
            config = transformers.AutoConfig.from_pretrained(where, trust_remote_code=False)
            tokenizer = transformers.AutoTokenizer.from_pretrained(where, trust_remote_code=False)
            model: PreTrainedModel
            model, loading = transformers.AutoModelForCausalLM.from_pretrained(
                where,
                config=config,
                dtype=precision,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except _UNLOADABLE as error:
        raise _not_loaded(where, (str(error).strip().splitlines() or [type(error).__name__])[0]) from error
    if missing := sorted(loading["missing_keys"]):
        raise ModelError(
            f"the weights of {where!r} lack {len(missing)} tensors, {missing[0]!r} among them, which would be random: "
            "the folder holds another kind of model, or not all of it"
        )
    if chosen.type == "cpu":
        lazy.attention.use_cpu_attention(model)
    settings = _settings(Path(where))
    recipes = {n: Recipe.from_settings(r) for n, r in settings.get("recipes", {}).items()}
    name = "bundled" if source is None else where
    return wrap_model(
        model.to(chosen).requires_grad_(False),
        tokenizer,
        name=name,
        prompt_format=prompt_format or settings.get("prompt_format"),
        recipes=recipes,
    )


def _looks_like_a_path(name: str) -> bool:
    """Whether a name is no hub id, which is `name` or `owner/name`."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name


def _not_loaded(where: str, reason: str) -> ModelError:
    expected = "expected a folder or hub id with config.json, a tokenizer and safetensors weights"
    return ModelError(f"cannot load a causal language model from {where!r}: {reason} ({expected})")


def check_no_adapters(model: nn.Module) -> None:
    """Raises `ModelError` for a model that carries adapters of the PEFT library.

    Active adapters change its answers without a trace in its weights, and their layers would be adapted as well.
    """
    layers = [n for n, m in model.named_modules() if isinstance(m, libraries.tuners_utils.BaseTunerLayer)]
    if not layers and not isinstance(model, libraries.peft.PeftModel):
        return
    where = f" in {len(layers)} layers, {layers[0]!r} among them" if layers else ""
    raise ModelError(
        f"{type(model).__name__} carries adapters of PEFT{where}: merge them into the weights with "
        "`model = peft_model.merge_and_unload()`, or give the base model without them (`peft_model.unload()`)"
    )


def wrap_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str = "",
    prompt_format: str | None = None,
    recipes: Mapping[str, Recipe] = MappingProxyType({}),
) -> LoadedModel:
    """Takes a model that is already in memory. Raises `ModelError` for an unknown prompt format, and for a model that
    cannot be used: one with adapters of PEFT in it, an encoder, one that sees the tokens to come, one whose cache
    cannot be cut back to what prompts share (a recurrent state). A few passes over a dozen tokens find that out.

    Without `prompt_format`, a chat template that hides or rewrites earlier turns gives way to `standard`, with a
    warning in the log.
    """
    check_no_adapters(model)
    pads = can_pad(model)
    wanted = prompt_format or ("chat" if getattr(tokenizer, "chat_template", None) else STANDARD_FORMAT.name)
    if wanted == "chat":
        chosen: PromptFormat = ChatFormat(_template(tokenizer))
        try:
            chosen.ends  # noqa: B018 - asks the template, which may refuse
        except ModelError as error:
            if prompt_format:
                raise
            logging.getLogger("autottt").warning("%s: %s; taken: standard", name or type(model).__name__, error)
            chosen = STANDARD_FORMAT
    elif wanted in PLAIN_FORMATS:
        chosen = PLAIN_FORMATS[wanted]
    else:
        raise ModelError(f"prompt_format: expected chat, {', '.join(PLAIN_FORMATS)}; received {wanted!r}")
    return LoadedModel(name or type(model).__name__, model, tokenizer, chosen, recipes, pads)


def _template(tokenizer: PreTrainedTokenizerBase) -> Any:
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            "prompt_format 'chat' needs a tokenizer with a chat template; this one has none: use 'standard'"
        )

    def render(messages: Any, generation: bool) -> str:
        try:
            # Templates without thoughts ignore the switch; an answer is to follow the prompt at once.
            return str(
                tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=generation, enable_thinking=False
                )
            )
        except TemplateError as error:
            raise ModelError(
                f"the tokenizer's chat template refuses these messages ({error}); use prompt_format='standard'"
            ) from None

    return render


def _settings(folder: Path) -> dict[str, Any]:
    """What a model folder says of itself to this package."""
    file = folder / "autottt.json"
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise ModelError(f"{file}: not JSON ({error})") from None
    if not isinstance(found, dict) or not isinstance(found.get("recipes", {}), dict):
        raise ModelError(f"{file}: expected an object, in which recipes is one too")
    return found
