"""Loading: what device, precision and prompt format are chosen, and what is refused with one clear sentence."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars
from transformers.utils import logging as bars

from autottt.strategies.base import recipe_for
from autottt.strategies.registry import get_strategy
from autottt.ttt_core.errors import ModelError
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.model import loading as module
from autottt.ttt_core.model.loading import LoadedModel, choose_device, choose_dtype, load_model, wrap_model
from autottt.ttt_core.pretraining.recipes import BUNDLED_RECIPES
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.kinds import make_task
from autottt.ttt_core.tasks.prompts import STANDARD_FORMAT
from autottt.ttt_core.testing import CONTEXT, tiny_model, tiny_tokenizer

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MakeFolder = Callable[..., Path]


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """A model folder with a tiny Llama; keywords go to its tokenizer."""

    def make(**tokenizer: bool) -> Path:
        tiny_model("llama").save_pretrained(str(tmp_path))
        tiny_tokenizer(**tokenizer).save_pretrained(str(tmp_path))
        return tmp_path

    return make


# --- device and precision -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_the_first_device_there_is_is_chosen(
    cuda: bool, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device().type == expected
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize("device", ["cuda:99", "no-such-device"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(ModelError, match=rf"device: cannot use '{device}' \(.+\); try 'cpu'"):
        choose_device(device)


@pytest.mark.parametrize("able", ["_is_amx_tile_supported", "_is_avx512_bf16_supported", ""])
def test_bf16_is_chosen_where_the_hardware_computes_in_it(able: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bool(able))
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name == able)
    for device in (CPU, CUDA):
        assert choose_dtype(device) == (torch.bfloat16 if able else torch.float32)
        assert choose_dtype(device, "fp32") == choose_dtype(device, "float32") == torch.float32
        assert choose_dtype(device, "bf16") == choose_dtype(device, "bfloat16") == torch.bfloat16


def test_an_unknown_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^dtype: expected one of bf16, .*fp32.*; received 'int4'$"):
        load_model(tmp_path, dtype="int4")


# --- folders --------------------------------------------------------------------------------------------------------


def test_a_folder_is_loaded_with_the_given_settings(make_folder: MakeFolder) -> None:
    folder = make_folder()
    loaded = load_model(folder, device="cpu", dtype="bf16")
    assert (loaded.name, loaded.format.name, loaded.context_length) == (str(folder), "standard", CONTEXT)
    assert loaded.model.dtype == torch.bfloat16
    assert not loaded.model.training
    assert loaded.recipes == {}
    original = tiny_model("llama", dtype=torch.bfloat16)
    assert all(map(torch.equal, loaded.model.parameters(), original.parameters()))
    assert loaded.tokenizer("a").input_ids == tiny_tokenizer()("a").input_ids


@pytest.mark.parametrize(
    ("chat", "asked", "expected"),
    [(True, None, "chat"), (False, None, "standard"), (True, "standard", "standard"), (False, "compact", "compact")],
)
def test_the_format_is_chat_where_there_is_a_template(
    chat: bool, asked: str | None, expected: str, make_folder: MakeFolder
) -> None:
    assert load_model(make_folder(chat=chat), device="cpu", prompt_format=asked).format.name == expected


def test_a_chat_model_is_shown_turns_and_answers_in_them(make_folder: MakeFolder) -> None:
    learner = Learner.load(make_folder(chat=True), device="cpu", dtype="fp32")
    task = make_task([("a", "b")], "c", instruction="Next letter.")
    text = learner.loaded.tokenizer.decode(list(learner.window.encode(task).ids))
    turns = [("system", "Next letter."), ("user", "a"), ("assistant", "b"), ("user", "c")]
    assert text == "".join(f"<|start|>{who}\n{what}<|end|>\n" for who, what in turns) + "<|start|>assistant\n"
    assert len(learner.answer([task])[0].scores.hits) <= learner.window.max_new_tokens(task)


def test_chat_without_a_template_is_refused() -> None:
    with pytest.raises(ModelError, match=r"needs a tokenizer with a chat template.*use 'standard'"):
        wrap_model(tiny_model("llama"), tiny_tokenizer(), prompt_format="chat")


def test_a_template_without_system_turns_has_the_instruction_in_the_first_turn() -> None:
    tokenizer = tiny_tokenizer(chat=True)
    refused = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    tokenizer.chat_template = refused + tokenizer.chat_template
    learner = Learner.wrap(tiny_model("llama"), tokenizer)
    text = tokenizer.decode(list(learner.window.encode(make_task([("a", "b")], "c", instruction="Next letter.")).ids))
    assert text.startswith("<|start|>user\nNext letter.\n\na<|end|>")


def test_a_template_that_cannot_show_examples_is_replaced_by_plain_text_or_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokenizer = tiny_tokenizer(chat=True)
    tokenizer.chat_template = "{{ raise_exception('One turn, please') }}"
    assert wrap_model(tiny_model("llama"), tokenizer).format.name == "standard"
    assert "One turn, please" in caplog.text
    with pytest.raises(ModelError, match=r"One turn, please.*use prompt_format='standard'"):
        wrap_model(tiny_model("llama"), tokenizer, prompt_format="chat")


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ModelError, match=r"expected one of auto, chat, compact, standard; received 'xml'"):
        wrap_model(tiny_model("llama"), tiny_tokenizer(), prompt_format="xml")


def test_the_context_is_found_under_any_of_its_names_and_otherwise_unbounded() -> None:
    for config, expected in (
        (SimpleNamespace(max_position_embeddings=7), 7),
        (SimpleNamespace(n_positions=8), 8),
        (SimpleNamespace(max_seq_len=9), 9),
        (SimpleNamespace(max_target_positions=10), 10),
        (SimpleNamespace(max_position_embeddings=-1, seq_length=11), 11),
        (SimpleNamespace(max_position_embeddings=None, n_positions=0), 1 << 20),
    ):
        model: Any = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda config=config: config))
        assert LoadedModel("fake", model, tiny_tokenizer(), STANDARD_FORMAT).context_length == expected


# --- refusals -------------------------------------------------------------------------------------------------------


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(tiny_model("llama").state_dict(), folder / "pytorch_model.bin")


def own_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "evil", "auto_map": code}))
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(folder)!r}, 'it_ran').touch()\n")


@pytest.mark.parametrize(
    "spoil",
    [
        pickled,
        own_code,
        lambda f: (f / "config.json").unlink(),
        lambda f: (f / "config.json").write_text("{"),
        lambda f: (f / "config.json").write_text('{"model_type": "no_such"}'),
        lambda f: (f / "config.json").write_text('{"model_type": "llama", "hidden_size": "wide"}'),
        lambda f: (f / "config.json").write_text(
            json.dumps({**json.loads((f / "config.json").read_text()), "num_attention_heads": 0})
        ),
        lambda f: (f / "config.json").write_text("[" * 100_000),
        lambda f: (f / "config.json").write_text("null"),
        lambda f: (f / "config.json").write_text('{"model_type": "llama", "hidden_size": ' + "9" * 400 + "}"),
        lambda f: (f / "tokenizer.json").write_text("null"),
        lambda f: (f / "tokenizer.json").write_text('{"model": null}'),
        lambda f: (f / "tokenizer_config.json").write_text("null"),
        lambda f: (f / "tokenizer_config.json").write_text('{"tokenizer_class": 3}'),
        lambda f: (f / "model.safetensors").write_bytes(b"not weights"),
        lambda f: (f / "model.safetensors").unlink(),
    ],
    ids=[
        "pickled",
        "own code",
        "no config",
        "broken config",
        "unknown type",
        "wrong type",
        "no heads",
        "deep config",
        "null config",
        "huge number",
        "null tokenizer",
        "tokenizer without a model",
        "null tokenizer settings",
        "tokenizer class that is a number",
        "broken weights",
        "no weights",
    ],
)
def test_a_folder_that_cannot_be_loaded_is_refused_in_one_line(
    spoil: Callable[[Path], Any], make_folder: MakeFolder
) -> None:
    folder = make_folder()
    spoil(folder)
    expected = rf"cannot load a causal language model from {re.escape(repr(str(folder)))}: .+ \(expected a folder"
    with pytest.raises(ModelError, match=expected) as caught:
        load_model(folder, device="cpu")
    assert "\n" not in str(caught.value)
    assert not (folder / "it_ran").exists()


@pytest.mark.parametrize(
    ("model", "tokenizer", "message"),
    [
        (tiny_model("llama"), None, "tokenizer: expected the model's tokenizer, .*; received None"),
        (tiny_model("llama"), "llama", "tokenizer: expected the model's tokenizer, .*; received 'llama'"),
        (None, tiny_tokenizer(), "model: expected a causal language model of transformers; received None"),
        ("llama", tiny_tokenizer(), "model: expected a causal language model of transformers; received 'llama'"),
    ],
)
def test_other_objects_than_a_model_and_a_tokenizer_are_refused(model: Any, tokenizer: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Learner.wrap(model, tokenizer)


@pytest.mark.parametrize(
    ("file", "setting", "value", "message"),
    [
        ("tokenizer_config.json", "model_max_length", [[]], "the tokenizer, or the model's eos_token_id, is invalid"),
        ("generation_config.json", "eos_token_id", math.nan, "the tokenizer, or the model's eos_token_id, is invalid"),
        ("generation_config.json", "eos_token_id", [[]], "the tokenizer, or the model's eos_token_id, is invalid"),
        ("tokenizer.json", "model", 4_000_000_000, "the tokenizer has the id 4000000000, beyond"),
    ],
)
def test_a_tokenizer_that_fails_in_use_is_refused_at_load(
    file: str, setting: str, value: Any, message: str, make_folder: MakeFolder
) -> None:
    """Else tasks raise what the library raises; a vocabulary with a gap of ids takes minutes to be written."""
    folder = make_folder()
    settings = json.loads((folder / file).read_text())
    if setting == "model":
        settings["model"]["vocab"]["!"] = value
    else:
        settings[setting] = value
    (folder / file).write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=message):
        load_model(folder, device="cpu")


def test_a_long_error_of_a_library_is_shortened(make_folder: MakeFolder) -> None:
    folder = make_folder()
    (folder / "config.json").write_text(json.dumps({"model_type": "a" * 100_000}))
    with pytest.raises(ModelError) as caught:
        load_model(folder, device="cpu")
    assert len(str(caught.value)) < 2_000


def test_a_model_that_cannot_compute_is_refused_with_its_error() -> None:
    model = tiny_model("llama")
    del model.model.layers[0].mlp
    with pytest.raises(ModelError, match=r"cannot process a dozen tokens.*AttributeError: .*mlp"):
        Learner.wrap(model, tiny_tokenizer())


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot load a causal language model from '.+nowhere'"):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["./nowhere", "../nowhere", "~/nowhere", "/no/where", "no/such/folder", "no\\where"])
def test_a_name_that_looks_like_a_path_is_not_requested_from_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.transformers.AutoConfig, "from_pretrained", lambda *a, **k: pytest.fail("it was"))
    with pytest.raises(ModelError, match=re.escape(f"{name!r}: there is no such folder")):
        load_model(name)


def test_a_folder_may_be_named_from_the_home_folder(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder()
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load_model(f"~/{folder.name}", device="cpu").name == str(folder)


# --- what loading writes --------------------------------------------------------------------------------------------


@pytest.fixture
def retries() -> Any:
    """What the hub's client says of its retries."""
    seen: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("huggingface_hub.utils._http")
    logger.addHandler(handler)
    yield seen
    logger.removeHandler(handler)


@pytest.mark.parametrize("hub_shows", [True, False])
@pytest.mark.parametrize("host_shows", [True, False])
def test_loading_is_quiet_and_leaves_the_hosts_settings(
    host_shows: bool, hub_shows: bool, retries: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bars, "_tqdm_active", host_shows)
    (bars.enable_progress_bar if host_shows else bars.disable_progress_bar)()
    if not hub_shows:
        disable_progress_bars()
    before = bars.is_progress_bar_enabled(), are_progress_bars_disabled()
    logger = logging.getLogger("huggingface_hub.utils._http")
    inside: list[bool] = []

    def offline(*_: Any, **__: Any) -> None:
        inside.append(bars.is_progress_bar_enabled())
        logger.warning("Retrying in 1s [Retry 1/5].")
        raise OSError("no connection")

    monkeypatch.setattr(module.transformers.AutoConfig, "from_pretrained", offline)
    try:
        with pytest.raises(ModelError, match="no connection"):
            load_model("nobody/nothing")
        assert inside == [False]
        assert retries == []
        assert (bars.is_progress_bar_enabled(), are_progress_bars_disabled()) == before
        logger.warning("the host's")
        assert retries == ["the host's"]
    finally:
        bars.enable_progress_bar()


# --- what a folder says of itself -----------------------------------------------------------------------------------


def test_the_shipped_model_brings_the_recipes_that_are_documented_for_it() -> None:
    recipes = load_model(device="cpu").recipes
    assert {name: recipes[name] for name in BUNDLED_RECIPES} == BUNDLED_RECIPES


def test_a_folder_names_its_format_and_its_recipes(make_folder: MakeFolder) -> None:
    folder = make_folder(chat=True)
    recipes = {
        "ttt_in_context": {"rank": 16, "max_steps": 24, "target_modules": ["q_proj"]},
        "mine": {"views": 3},
        "mine/list": {"views": 5},
    }
    (folder / "autottt.json").write_text(json.dumps({"prompt_format": "compact", "recipes": recipes}))
    learner = Learner.load(folder, device="cpu")
    assert learner.loaded.format.name == "compact"

    def recipe(name: str, kind: str = "") -> Recipe:
        return recipe_for(replace(get_strategy("ttt_augmented"), name=name), learner.loaded.recipes, kind)  # type: ignore[type-var]

    assert recipe("ttt_in_context") == Recipe(rank=16, max_steps=24, target_modules=("q_proj",))
    assert recipe("mine") == recipe("mine", "grid") == Recipe(views=3)
    assert recipe("mine", "list") == Recipe(views=5)
    published = get_strategy("ttt_augmented").default_recipe
    assert published is not None
    assert recipe("ttt_augmented") == recipe("no_such") == published
    assert (published.rank, published.max_steps, published.batch_size, published.views) == (128, 250, 2, 10)
    assert recipe_for(get_strategy("in_context"), learner.loaded.recipes, "") == Recipe()
    assert load_model(folder, device="cpu", prompt_format="chat").format.name == "chat"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ('{"recipes": {"x": {"rnak": 4}}}', r"unknown recipe settings \['rnak'\]; known are .*'rank'"),
        ('{"recipes": {"x": {"rank": "four"}}}', r"rank: expected an integer of at least 1; received 'four'"),
        ('{"recipes": {"x": {"loss": "lsat"}}}', r"loss: expected one of all, last, inputs; received 'lsat'"),
        ('{"recipes": {"x": 3}}', r"a recipe is an object of settings; received 3"),
        ('{"recipes": 3}', r"autottt.json: expected an object"),
        ("[]", r"autottt.json: expected an object"),
        ("{", r"autottt.json: not JSON"),
        ('{"prompt_format": "xml"}', r"prompt_format: expected one of auto, chat"),
        (
            '{"prompt_format": ["chat"]}',
            r"prompt_format: expected one of auto, chat, compact, standard; received \['chat'\]",
        ),
        ("[" * 100_000, r"autottt.json: not JSON"),
    ],
)
def test_invalid_settings_of_a_folder_are_refused(settings: str, message: str, make_folder: MakeFolder) -> None:
    folder = make_folder()
    (folder / "autottt.json").write_text(settings)
    with pytest.raises(ModelError, match=message):
        load_model(folder, device="cpu")


def test_weights_that_lack_tensors_are_refused_not_filled_at_random(make_folder: MakeFolder) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_folder()
    weights = load_file(folder / "model.safetensors")
    name = next(n for n in weights if "mlp" in n)
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=re.escape(name)):
        load_model(folder, device="cpu")
