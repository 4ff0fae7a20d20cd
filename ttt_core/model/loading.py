"""Loads a causal language model and its tokenizer, and chooses device, precision and prompt format for them.

Knows nothing about tasks. Weights are read from safetensors only, and no code from a model folder is ever run.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars
from torch import nn
from transformers.utils import logging as bars

from .. import lazy as libraries
from ..errors import ModelError, first_line
from ..recipes import Recipe, recipes_for_model
from ..tasks.kinds import shortened
from ..tasks.prompts import COMPACT_FORMAT, PLAIN_FORMATS, STANDARD_FORMAT, ChatFormat, PromptFormat
from ..tasks.task import Task
from . import lazy
from .bounded_cache import ENTRY_BYTES, BoundedCache
from .catalogue import nearest_name, resolve
from .chat_prompts import proven_format, turn_end_ids
from .gguf_files import GgufFile, converted_folder
from .probe import can_pad

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions", "seq_length")
"""What configurations call the longest sequence; some give -1 where there is none."""
TOKEN_CACHE_BYTES = 1 << 23
"""Largest size of the cache of token ids."""
MAX_CACHED_TEXT_LENGTH = 4096
"""Characters of the longest text whose ids are cached."""
_SEPARATOR = "\x01"
"""A character that forms a token with no other."""
AUTO = "auto"
"""Setting of the prompt format with which the format is chosen for each task (see `engine.format_choice`)."""
BUNDLED = Path(__file__).parents[1] / "bundled"
"""Folder of the model that ships with the package."""


def _entry_bytes(text: str, ids: array[int]) -> int:
    """Bytes of a text, its token ids, and their entry in the cache."""
    return sys.getsizeof(text) + sys.getsizeof(ids) + ENTRY_BYTES


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for use, and what the package knows about it."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    format: PromptFormat
    """The default prompt format, for tasks for which none was chosen."""
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    """Strategy -> its recipe for this model; `strategy/kind` -> the one for tasks of that kind, where there is one."""
    supports_padding: bool = True
    """Whether padding leaves outputs unchanged; where it does not, only rows of one length share a batch."""
    format_reason: str = ""
    """Why the format of the tokenizer's chat template is not among the formats; empty where it is, or where the caller
    chose the format."""
    turn_end_ids: frozenset[int] = frozenset()
    """Special tokens that end an answer in the chat template."""
    formats: Mapping[str, PromptFormat] = field(default_factory=dict)
    """Name -> the prompt formats to choose from for each task; empty where the caller chose the format."""
    _token_cache: BoundedCache[str, array[int]] = field(
        default_factory=lambda: BoundedCache(TOKEN_CACHE_BYTES, _entry_bytes), compare=False, repr=False
    )

    def format_of(self, task: Task) -> PromptFormat:
        """The prompt format of a task."""
        return self.formats.get(task.prompt_format, self.format)

    @property
    def prompt_format(self) -> str:
        """Name of the prompt format; `auto` where it is chosen for each task."""
        return AUTO if len(self.formats) > 1 else self.format.name

    def tokens(self, text: str) -> tuple[int, ...]:
        """The ids of a text. Those of short ones are cached: prompts share their demonstrations."""
        cached = self._token_cache.get(text)
        if cached is not None:
            return tuple(cached)
        ids = tuple(self.tokenizer.encode(text, add_special_tokens=False))
        if len(text) <= MAX_CACHED_TEXT_LENGTH:
            self._token_cache.put(text, array("i", ids))
        return ids

    def continuing_tokens(self, text: str) -> tuple[int, ...]:
        """The ids of a text that continues another one: without the space that tokenizers such as Llama 2's put before
        every text."""
        if not self._spaces_texts:
            return self.tokens(text)
        before, both = self.tokens(_SEPARATOR), self.tokens(_SEPARATOR + text)
        return both[len(before) :] if both[: len(before)] == before else self.tokens(text)

    @cached_property
    def _spaces_texts(self) -> bool:
        """Whether the tokenizer puts a space before every text."""
        before, both = self.tokens(_SEPARATOR), self.tokens(_SEPARATOR + "a")
        return both[: len(before)] == before and both[len(before) :] != self.tokens("a")

    @cached_property
    def parameter_count(self) -> int:
        """Number of weights of the model."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens that the model computes logits for."""
        return int(self.model.config.get_text_config().vocab_size)

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
    """The requested device, or the first CUDA card, or Apple's GPU, or the CPU. Raises `ModelError`."""
    if device is not None:
        try:
            chosen = torch.device(device)
            torch.empty(0, device=chosen)
        except (RuntimeError, AssertionError, TypeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(f"device: cannot use {shortened(device)} ({reason}); try 'cpu'") from None
        return chosen
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def choose_dtype(device: torch.device, dtype: str | None = None) -> torch.dtype:
    """The requested precision, or bf16 where the hardware computes in it (CUDA, CPUs with AMX or AVX512-BF16), or
    fp32."""
    dtypes = {"bf16": torch.bfloat16, "bfloat16": torch.bfloat16, "fp32": torch.float32, "float32": torch.float32}
    if dtype is not None:
        if not isinstance(dtype, str) or dtype not in dtypes:
            raise ModelError(f"dtype: expected one of {', '.join(dtypes)}; received {shortened(dtype)}")
        return dtypes[dtype]
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    if device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()):
        return torch.bfloat16
    return torch.float32


def threads_in_use() -> int:
    """Threads that this process computes with on the CPU."""
    return torch.get_num_threads()


def use_threads(count: int) -> None:
    """Sets the number of CPU threads of this process. Processes that run at the same time need fewer each."""
    torch.set_num_threads(count)


def load_model(
    source: str | os.PathLike[str] | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    prompt_format: str | None = None,
) -> LoadedModel:
    """Loads a model from a local folder, a GGUF file, by its name in the catalogue or its hub id; without `source`, the
    one that ships with the package. A GGUF file is converted once (see `gguf_files`). A local path of the same name
    precedes a name of the catalogue.

    `prompt_format` is `chat`, `standard`, `compact` or `auto`; by default what the model folder says, else `auto`: the
    format is chosen for each task, by what the model predicts best. Raises `ModelError` with the reason and the remedy.
    """
    where = os.path.expanduser(source or BUNDLED)
    if not os.path.exists(where) and (file := resolve(where)) is not None:
        return replace(load_model(file, device=device, dtype=dtype, prompt_format=prompt_format), name=where)
    if (gguf := GgufFile.of(Path(where))) is not None:
        with _quietly():
            converted = os.fspath(converted_folder(gguf))
        return _load_folder(converted, str(gguf.path), device, dtype, prompt_format)
    if _looks_like_a_path(str(source or BUNDLED)) and not os.path.isdir(where):
        raise _not_loaded(str(source), "there is no such folder")
    return _load_folder(where, "bundled" if source is None else where, device, dtype, prompt_format)


def _load_folder(
    where: str, name: str, device: str | None, dtype: str | None, prompt_format: str | None
) -> LoadedModel:
    """The model of a folder or hub id, under a name for people."""
    chosen = choose_device(device)
    precision = choose_dtype(chosen, dtype)
    model, tokenizer = _read_folder(where, precision)
    if chosen.type == "cpu":
        lazy.attention.use_cpu_attention(model)
    settings = _settings(Path(where))
    recipes = {n: Recipe.from_settings(r) for n, r in settings.get("recipes", {}).items()}
    return wrap_model(
        model.to(chosen).requires_grad_(False),
        tokenizer,
        name=name,
        prompt_format=prompt_format or settings.get("prompt_format"),
        recipes=recipes,
    )


def _read_folder(where: str, precision: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, on the CPU, and the tokenizer of a folder or hub id. Raises `ModelError`."""
    try:
        with _quietly(), torch.inference_mode(False):  # nothing can be trained on weights made in that mode
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
    except Exception as error:
        raise _not_loaded(where, first_line(error)) from error
    if missing := sorted(loading["missing_keys"]):
        raise ModelError(
            f"the weights of {where!r} lack {len(missing)} tensors, {missing[0]!r} among them, which would be random: "
            "the folder holds another kind of model, or not all of it"
        )
    return model, tokenizer


def _looks_like_a_path(name: str) -> bool:
    """Whether a name is no hub id, which is `name` or `owner/name`."""
    return name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1 or "\\" in name


def _not_loaded(where: str, reason: str) -> ModelError:
    expected = "expected a folder or hub id with config.json, a tokenizer and safetensors weights"
    return ModelError(f"cannot load a causal language model from {where!r}: {reason} ({expected}{nearest_name(where)})")


def check_no_adapters(model: nn.Module) -> None:
    """Raises `ModelError` for a model that carries adapters of the PEFT library.

    Active adapters change its answers without a trace in its weights, and their layers would be adapted as well.
    PEFT is not imported for this: a program that has not imported it has no such model.
    """
    if "peft" not in sys.modules:
        return
    tuned = [n for n, m in model.named_modules() if isinstance(m, libraries.tuners_utils.BaseTunerLayer)]
    # Other parts of PEFT: a learned prompt, or an adaption prompt, whose base model was given.
    layers = tuned or [n for n, m in model.named_modules() if n and type(m).__module__.startswith("peft.")]
    if not layers and not isinstance(model, libraries.peft.PeftModel):
        return
    where = f" in {len(layers)} layers, {layers[0]!r} among them" if layers else ""
    remedy = "load the base model again, without them"
    if tuned:
        remedy = (
            "merge them into the weights with `model = peft_model.merge_and_unload()`, or give the base model without "
            "them (`peft_model.unload()`)"
        )
    elif isinstance(model, libraries.peft.PeftModel):
        remedy = "give the base model without them (`peft_model.get_base_model()`)"
    raise ModelError(f"{type(model).__name__} carries adapters of PEFT{where}: {remedy}")


def wrap_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str = "",
    prompt_format: str | None = None,
    recipes: Mapping[str, Recipe] = MappingProxyType({}),
) -> LoadedModel:
    """Prepares a model that is in memory. Raises `ModelError` for an unknown prompt format, and for a model that
    cannot be used: one with adapters of PEFT in it, an encoder, one that attends to future tokens, one whose cache
    cannot be cropped to what prompts share (a recurrent state). A few passes over a dozen tokens find that out.

    Strategies that `recipes` does not name have the recipe for the model's size, if there is one.

    Without `prompt_format`, or with `auto`, the format is chosen for each task (see `engine.format_choice`). The chat
    template of the tokenizer is among the formats if the ids of its prompts are proven to be those of
    `apply_chat_template`; else one warning is logged, and the reason is in `format_reason`.
    """
    _check_types(model, tokenizer)
    check_no_adapters(model)
    _check_tensors(model)
    try:
        supports_padding = can_pad(model)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{name or type(model).__name__} cannot read a dozen tokens ({first_line(error)})") from error
    _check_tokenizer(model, tokenizer)
    formats, reason = _formats(model, tokenizer, name or type(model).__name__, prompt_format)
    ends = [turn_end_ids(chat, tokenizer) for chat in formats if isinstance(chat, ChatFormat)]
    parameters = sum(p.numel() for p in model.parameters())
    every_recipe = {**recipes_for_model(parameters, getattr(model.config, "model_type", "")), **recipes}
    return LoadedModel(
        name or type(model).__name__, model, tokenizer, formats[0], every_recipe, supports_padding, reason,
        frozenset().union(*ends), {f.name: f for f in formats} if len(formats) > 1 else {},
    )  # fmt: skip


def _check_tensors(model: nn.Module) -> None:
    """Raises `ModelError` for weights that were made in inference mode: no gradient passes them, and no version counts
    what is written to them."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise ModelError(
                f"{type(model).__name__}: the tensor {name!r} has no values (it is on the meta device, or offloaded by "
                "accelerate with a device_map): load the whole model on one device"
            )
        if tensor.is_inference():
            raise ModelError(
                f"{type(model).__name__}: the tensor {name!r} was made inside torch.inference_mode(), so nothing "
                "can be trained on it: load the model outside that mode, or give copy.deepcopy(model) made outside it"
            )


def _check_types(model: object, tokenizer: object) -> None:
    """Raises `ModelError` for what is no model or no tokenizer of transformers."""
    if not isinstance(model, nn.Module):
        raise ModelError(f"model: expected a causal language model of transformers; received {shortened(model)}")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise ModelError(f"model: received a {type(model).__name__}: give the model in it, `model.module`")
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise ModelError(
            "model: received a compiled model, which may pass adapters by: give the model before `torch.compile` "
            "(`model._orig_mod`), and do not call `model.compile()` on it"
        )
    if not hasattr(model, "config"):
        raise ModelError(
            f"model: expected a causal language model of transformers; received a {type(model).__name__}, which has no "
            "`config`"
        )
    if not isinstance(tokenizer, transformers.PreTrainedTokenizerBase):
        raise ModelError(
            "tokenizer: expected the model's tokenizer, such as AutoTokenizer.from_pretrained gives; "
            f"received {shortened(tokenizer)}"
        )


def _check_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises `ModelError` for a tokenizer that cannot encode a text, for settings of the end of a sequence that are no
    ids, and for an id far beyond all others: writing such a vocabulary, as for its digest, takes minutes."""
    vocabulary = tokenizer.get_vocab()
    largest, known = max(vocabulary.values(), default=-1), model.get_input_embeddings().num_embeddings
    if largest >= known + len(vocabulary):
        raise ModelError(
            f"the tokenizer has the id {largest}, beyond {len(vocabulary)} tokens and {known} embeddings of the model: "
            "its vocabulary is damaged, or the tokenizer is of another model"
        )
    try:
        tokenizer.decode(tokenizer.encode("a 1\n", add_special_tokens=False))
        end_of_sequence_ids(model, tokenizer)
    except Exception as error:
        raise ModelError(f"the tokenizer, or the model's eos_token_id, is invalid ({first_line(error)})") from error


def end_of_sequence_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that end a sequence by the settings of the tokenizer and the model."""
    ids = [tokenizer.eos_token_id]
    for config in (model.generation_config, model.config):
        setting = getattr(config, "eos_token_id", None)
        ids += setting if isinstance(setting, list) else [setting]
    return frozenset(int(i) for i in ids if i is not None)


def _formats(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, prompt_format: str | None
) -> tuple[list[PromptFormat], str]:
    """The prompt formats to choose from, the default first, and the reason where the chat template is not among them.
    Raises `ModelError`."""
    automatic = prompt_format in (None, AUTO)
    if isinstance(prompt_format, str) and prompt_format in PLAIN_FORMATS:
        return [PLAIN_FORMATS[prompt_format]], ""
    if not automatic and prompt_format != "chat":
        expected = ", ".join([AUTO, "chat", *PLAIN_FORMATS])
        raise ModelError(f"prompt_format: expected one of {expected}; received {shortened(prompt_format)}")
    if automatic and not getattr(tokenizer, "chat_template", None):
        return [STANDARD_FORMAT, COMPACT_FORMAT], ""
    try:
        chat = proven_format(tokenizer, end_of_sequence_ids(model, tokenizer))
        if automatic and any(end.isspace() for end in chat.ends):
            raise ModelError(
                "the tokenizer's chat template ends answers with white space only, which an answer over several lines "
                "contains; use prompt_format='standard'"
            )
    except ModelError as error:
        if not automatic:
            raise
        reason = str(error).removesuffix("; use prompt_format='standard'")
        logging.getLogger("autottt").warning("%s: %s; prompts are in plain text", name, reason)
        return [STANDARD_FORMAT, COMPACT_FORMAT], reason
    return [chat, STANDARD_FORMAT, COMPACT_FORMAT] if automatic else [chat], ""


def _settings(folder: Path) -> dict[str, Any]:
    """What a model folder says of itself to this package."""
    file = folder / "autottt.json"
    if not file.is_file():
        return {}
    try:
        settings = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file}: not JSON ({error})") from None
    if not isinstance(settings, dict) or not isinstance(settings.get("recipes", {}), dict):
        raise ModelError(f"{file}: expected an object, in which recipes is one too")
    return settings
