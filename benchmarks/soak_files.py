"""Writes one small valid file for every reader of the package. Knows nothing about damage.

python benchmarks/soak_files.py FOLDER
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from soak_models import QUICK, smallest_model, write_model
from tokenizers import pre_tokenizers

from autottt.controller.cli.main import main as autottt_main
from autottt.policies.bundle import save_bundle
from autottt.policies.classifiers import BinaryTarget, CalibratedClassifier, fit_classifiers, fit_cost_regressor
from autottt.policies.features import NAMES
from autottt.policies.outcome_files import journal_line
from autottt.policies.outcomes import OutcomeStore
from autottt.policies.trained_policy import Change, TrainedPolicy
from autottt.ttt_core.learner import Learner
from autottt.ttt_core.recipes import Recipe
from autottt.ttt_core.tasks.kinds import make_task
from autottt.ttt_core.testing import CHAT_TEMPLATE, tiny_tokenizer

PAIR = {"input": [1, 2], "output": [2, 1]}
GRID = {"input": [[0, 1], [2, 3]], "output": [[1, 0], [3, 2]]}
CHAT = [{"role": "system", "content": "Reverse."}, {"role": "user", "content": "ab"},
        {"role": "assistant", "content": "ba"}, {"role": "user", "content": [{"type": "text", "text": "cd"}]}]  # fmt: skip  # noqa: E501
TASKS: dict[str, list[Any]] = {
    "jsonl": [
        {"id": "a", "kind": "list", "demonstrations": [PAIR, PAIR], "query": [3, 4], "answer": [4, 3]},
        {"demonstrations": [{"input": "ab", "output": "ba"}], "queries": [{"input": "xy", "output": "yx"}]},
        {"id": "g", "family": "f", "demonstrations": [{"input": "a b", "output": "(A)"}], "query": "c", "answer": "B"},
        {"id": "r", "kind": "grid1d", "demonstrations": [{"input": [[1, 2]], "output": [[2, 1]]}], "query": [[3, 4]]},
        {"queries": [{"input": "x", "output": "y"}], "demonstrations": [], "answer": "y", "instruction": "Reverse."},
    ],
    "messages": [
        {"messages": CHAT, "answer": "dc"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": None},
                      {"role": "user", "content": "c", "function_call": ""}]},
        {"id": "m", "messages": [{"role": "system", "name": "example_user", "content": "a"},
                                 {"role": "system", "name": "example_assistant", "content": "b"},
                                 {"role": "user", "content": "c"}]},
    ],
    "arc": [{"train": [GRID, GRID], "test": [GRID]}, {"t1": {"train": [GRID], "test": [GRID]}},
            {"train": [GRID], "test": [GRID], "answer": GRID["output"], "id": "x"}],
    "bbh": [{"canary": "none", "examples": [{"input": f"q{n}", "target": "yes"} for n in range(4)]}],
}  # fmt: skip
RECIPE = {"rank": 4, "alpha": 4.0, "dropout": 0.1, "target_modules": ["all-linear"], "learning_rate": 0.001,
          "max_steps": 3, "batch_size": 2, "warmup_ratio": 0.1, "loss": "all", "views": 2}  # fmt: skip
CSV = (
    "task,seed,strategy,accuracy,cost\na,0,in_context,0.5,1.0\na,0,ttt_direct,1.0,20\nb,1,in_context,0,2\n",
    "task,seed,strategy,accuracy_percent,train_seconds,decode_seconds\na,0,icl,50,,1.0\na,0,ttt,100,20,1\n",
)
TOML = (
    'model = "gpt2"\ndtype = "fp32"\nbudget = "20x"\nseed = 3\n',
    'adapters = "~/a"\npolicy = "bundled"\nmemory = 1.5\nplugins = ["a", "b"]\ncost_weight = 0.002\n',
)
TEMPLATES = (
    CHAT_TEMPLATE,
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] | trim + ' [/INST]' }}{% else %}{{ ' ' + m['content'] | trim + eos_token }}"
    "{% endif %}{% endfor %}",
    "{%- set ns = namespace(last=0) -%}{%- for m in messages -%}{%- if m.role == 'system' and loop.first -%}"
    "{%- set ns.last = loop.index -%}{%- endif -%}{{- '<|start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|end|>\\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|start|>assistant\\n' -}}"
    "{%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\\n\\n</think>\\n\\n' -}}"
    "{%- endif -%}{%- endif -%}",
    "Today is {{ strftime_now('%d %b %Y') }}.\n{% for m in messages %}{{ m.role.upper() }}: {{ m.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}",
)


def write_files(folder: Path) -> None:
    """Writes all files; `complete` is the last."""
    folder.mkdir(parents=True, exist_ok=True)
    write_model("gpt2", folder / "model")
    (folder / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in TASKS["jsonl"][:1]))
    common = [str(folder / "tasks.jsonl"), "--model", str(folder / "model")]
    _command("collect", *common, "--store", str(folder / "store"), "--strategies", "in_context,ttt_direct")
    _command("solve", *common, "--out", str(folder / "answers.jsonl"), "--strategy", "ttt_direct")
    unreadable = folder / "unreadable.jsonl"  # a line that is refused
    unreadable.write_text(
        (folder / "tasks.jsonl").read_text() + json.dumps({"id": "b", "demonstrations": 1, "query": 2})
    )
    _command("solve", str(unreadable), *common[1:], "--out", str(folder / "refused.jsonl"), "--trace", status=1)
    _command("solve", *common, "--out", str(folder / "log.jsonl"), "--trace", "--strategy", "ttt_in_context")
    outcomes = OutcomeStore(folder / "store").read()
    (folder / "journal.jsonl").write_bytes(b"".join(journal_line(asdict(outcome)) for outcome in outcomes))
    next(iter((folder / "store").glob("*.parquet"))).rename(folder / "shard.parquet")
    _write_adapters(folder)
    save_bundle(_policy(), folder / "bundle")
    _write_gguf(folder / "tiny.gguf")
    (folder / "complete").touch()


def _command(*arguments: str, status: int = 0) -> None:
    sys.argv = ["autottt", *arguments]
    try:
        autottt_main()
    except SystemExit as end:
        if end.code not in (None, status):
            raise RuntimeError(f"autottt {' '.join(arguments)} ended with {end.code}") from None


def _write_adapters(folder: Path) -> None:
    learner = Learner.wrap(smallest_model("gpt2"), tiny_tokenizer(), prompt_format="compact")
    pairs: list[tuple[object, object]] = [("ab", "b"), ("cd", "d"), ("xy", "y")]
    adapter = learner.adapt([make_task(pairs, "pq", answer="q")], Recipe(**QUICK))
    adapter.save(folder / "adapter.safetensors", "name")
    adapter.to_peft(folder / "peft")


def _policy() -> TrainedPolicy:
    """A policy of small estimators of the kinds that training fits."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(90, len(NAMES[1])))
    right = (rows[:, 0] + 0.3 * rng.normal(size=90) > 0).astype(float)
    families = [f"f{n % 9}" for n in range(90)]

    def classifier(name: str, stage: int) -> CalibratedClassifier:
        target = BinaryTarget(rows[:, : len(NAMES[stage])], right, np.array(families))
        return fit_classifiers([target], 3, 0, (name,))[0][0]

    free = len(NAMES[0])
    cost = fit_cost_regressor(rows[:, :free], 50 + rows[:, 1], families, 3, 0)[0]
    return TrainedPolicy(
        "base", ("in_context", "ttt_in_context"), {stage: classifier("logistic", stage) for stage in NAMES},
        {stage: (Change(classifier("boosting", stage), classifier("logistic", stage)),) for stage in NAMES},
        {"": (1.0, 50.0), "list": (1.0, 40.0)}, 0.002, 0.8, ("ttt_in_context", "in_context"), (-3.0,) * free,
        (3.0,) * free, (tuple(range(9)),) * len(NAMES[1]), ((0.5,) * 9,) * len(NAMES[1]), ("a", "b"), ("made",), 7,
        cost_models=(cost,), scorecard={"families": 2},
    )  # fmt: skip


def _write_gguf(file: Path) -> None:
    """A llama of one layer without its weights' values, which are zeros."""
    config: Any = smallest_model("llama").config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "12", "<a>", "<b>", "<c>", "<d>", "<e>", "<bos>", "<eos>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(["1 2"])
    writer.add_eos_token_id(len(tokens) - 1)
    wide, high = config.hidden_size, config.intermediate_size
    key = wide * config.num_key_value_heads // config.num_attention_heads
    shapes = {
        "token_embd": (len(tokens), wide), "output": (len(tokens), wide), "output_norm": (wide,),
        "blk.0.attn_q": (wide, wide), "blk.0.attn_k": (key, wide), "blk.0.attn_v": (key, wide),
        "blk.0.attn_output": (wide, wide), "blk.0.attn_norm": (wide,), "blk.0.ffn_norm": (wide,),
        "blk.0.ffn_gate": (high, wide), "blk.0.ffn_up": (high, wide), "blk.0.ffn_down": (wide, high),
    }  # fmt: skip
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    write_files(Path(sys.argv[1]))
