"""Pre-trains the bundled model from random weights on generated few-shot tasks, and exports it in Hugging Face format.

Knows nothing about tasks: `data` makes the batches (as many input-output pairs of a task as fit in a row, with the
loss on every answer after the first). Needs torch, transformers, tokenizers and safetensors (--meta also peft). The
command that started a run also resumes it, with the same result as an uninterrupted run:

    python -m autottt.ttt_core.pretraining.pretrain --run runs/model --steps 20000
    python -m autottt.ttt_core.pretraining.pretrain --run runs/model --export DIR --decay 1500

With the weights of an exported model and a new optimizer; on other batches, from the checkpoint of another run; with
twice the tokens per step, in two processes:

    python -m autottt.ttt_core.pretraining.pretrain --run runs/next --init DIR --steps 4000
    python -m autottt.ttt_core.pretraining.pretrain --run runs/twin --branch runs/model --seed 7 --steps 30000
    torchrun --nproc-per-node 2 -m autottt.ttt_core.pretraining.pretrain --run runs/wide --steps 20000
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ..lora.tensor_files import save_tensors
from ..standard_json import dumps
from .data import (
    IGNORED,
    INNER,
    STAGES,
    Batch,
    MetaTask,
    PretrainConfig,
    Stream,
    config_from_json,
    packed_mask,
    pad_rows,
)
from .recipes import BUNDLED_RECIPES
from .tokenizer import build_tokenizer

SETTINGS = ("hidden", "layers", "heads", "kv_heads", "intermediate", "tokens", "seed", "lr")
"""Settings that the command line can change. A resumed run must have the same."""
SHAPE = ("hidden", "layers", "heads", "kv_heads", "intermediate", "context")
"""The settings that decide the model's architecture."""
LOG_EVERY, EVALUATE_EVERY = 50, 500
"""Steps between rows of the log, and between rows with an accuracy; the second is a multiple of the first."""
SAVE_SECONDS = 120
"""Between checkpoints."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def build_model(config: PretrainConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The model with random weights (fp32)."""
    torch.manual_seed(config.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden,
            intermediate_size=config.intermediate,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            max_position_embeddings=config.context,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors shards of a model's folder, in order of their names."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"no *.safetensors in {folder}: give the folder of a model that --export has written")
    return files


def weights_digest(folder: Path) -> str:
    """SHA-256 of the weights in a folder, as `PretrainConfig.init` records it."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in weight_files(folder))).hexdigest()


class Trainer:
    """fp32 master weights, trained by Muon (matrices) and AdamW (the rest); gradients come from a copy in `dtype`."""

    def __init__(self, config: PretrainConfig, run: Path, device: str, dtype: torch.dtype, compiled: bool) -> None:
        self.config = config
        self.run = run
        self.device = device
        self.tokenizer = build_tokenizer()
        self.model = build_model(config, self.tokenizer).to(device)
        self.masters = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self.model.to(dtype)
        hidden = [p for n, p in self.masters.items() if p.dim() > 1 and "embed" not in n]
        rest = [p for n, p in self.masters.items() if p.dim() < 2 or "embed" in n]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                hidden, lr=config.lr, weight_decay=config.weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(rest, lr=config.lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
        ]
        if device == "cpu":
            self.model.set_attn_implementation("eager")  # the backward pass of SDPA is slow there
        self.step_model = torch.compile(self.model, dynamic=False) if compiled else self.model
        self.step = 0
        self.tokens = 0
        self.losses: list[float] = []
        """Losses of the steps since the last row of the log, in nats."""
        self.decay: list[int] | None = None
        """First and last step of the learning rate's decay; None before it has begun."""
        self.consistent = True
        """Whether weights, optimizers and counts belong to the same step, so that a checkpoint can be resumed."""
        self._previous_seconds, self._started = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before an interruption included."""
        return self._previous_seconds + time.monotonic() - self._started

    def rate(self, step: int, decay_from: int | None, end: int) -> float:
        """Learning rate: linear warm-up, then constant, then from `decay_from` a linear decay to 2% at `end`."""
        scale = min(1.0, (step + 1) / self.config.warmup)
        if decay_from is not None and step >= decay_from:
            scale *= max(0.02, (end - step) / max(1, end - decay_from))
        return self.config.lr * scale

    def train_step(self, batch: Batch, rate: float) -> float:
        """One step; returns the mean loss over the labelled tokens, in nats."""
        ids, labels, positions = (t.to(self.device, non_blocking=True) for t in batch)
        mask = packed_mask(positions, self.model.dtype)
        logits = self.step_model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED
        )
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer_step(rate)
        return self._count_step(float(loss.detach()), ids.numel())

    def meta_step(self, tasks: list[MetaTask], rate: float) -> float:
        """A step of first-order MAML (see `meta`); returns the mean loss on new queries after adaptation, in nats."""
        from .meta import backward_after_adaptation

        loss, _ = backward_after_adaptation(self.model, tasks, INNER, self.tokenizer.pad_token_id, self.step)
        self._optimizer_step(rate)
        return self._count_step(loss, sum(len(ids) for task in tasks for ids, _ in task.inner + task.outer))

    def _count_step(self, loss: float, tokens: int) -> float:
        """Counts a step: its loss in nats, which is returned, and the tokens of one process."""
        self.step += 1
        self.tokens += tokens * self.config.shards
        self.losses.append(loss)
        self.consistent = True
        return loss

    def _optimizer_step(self, rate: float) -> None:
        """Moves the gradients to the master weights and steps the optimizers; `_count_step` has to follow."""
        for name, parameter in self.model.named_parameters():
            assert parameter.grad is not None
            self.masters[name].grad = parameter.grad.float()
            parameter.grad = None
        if self.config.shards > 1:
            gradients = [p.grad for p in self.masters.values() if p.grad is not None]
            flat = torch.cat([g.flatten() for g in gradients])
            torch.distributed.all_reduce(flat)
            flat /= self.config.shards
            for gradient, mean in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
                gradient.copy_(mean.view_as(gradient))
        torch.nn.utils.clip_grad_norm_(list(self.masters.values()), 1.0)
        self.consistent = False
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        self._copy_masters()

    def _state_of(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """The optimizer's state of one parameter, to read or to fill."""
        owner = (
            self.optimizers[0]
            if any(parameter is p for g in self.optimizers[0].param_groups for p in g["params"])
            else self.optimizers[1]
        )
        state: dict[str, torch.Tensor] = owner.state[parameter]
        return state

    def _copy_masters(self) -> None:
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(self.masters[name])

    def save(self) -> None:
        """Writes a checkpoint atomically."""
        state = {f"param.{n}": p for n, p in self.masters.items()}
        for name, parameter in self.masters.items():
            for key, value in self._state_of(parameter).items():
                state[f"{key}.{name}"] = value.clone()
        facts = {
            "step": str(self.step),
            "tokens": str(self.tokens),
            "seconds": str(self.seconds),
            "losses": json.dumps(self.losses),
            "decay": json.dumps(self.decay),
            "config": json.dumps(asdict(self.config)),
        }
        tensors = {k: v.cpu().contiguous() for k, v in state.items()}
        save_tensors(tensors, self.run / "checkpoint.safetensors", facts)

    def load(self, run: Path | None = None) -> None:
        """Restores the state from the run's checkpoint, or from the checkpoint of another run."""
        run = run or self.run
        facts = checkpoint_metadata(run)
        state = load_file(run / "checkpoint.safetensors", device=self.device)
        for name, parameter in self.masters.items():
            parameter.copy_(state[f"param.{name}"])
            keys = [k for k in ("step", "exp_avg", "exp_avg_sq", "momentum_buffer") if f"{k}.{name}" in state]
            self._state_of(parameter).update({k: state[f"{k}.{name}"].clone() for k in keys})
        self._copy_masters()
        self.step, self.tokens = int(facts["step"]), int(facts["tokens"])
        self.losses, self.decay = json.loads(facts.get("losses", "[]")), json.loads(facts.get("decay", "null"))
        self._previous_seconds, self._started = float(facts.get("seconds", "0")), time.monotonic()

    def load_weights(self, folder: Path) -> None:
        """Takes the weights of an exported model; the optimizers keep their initial state.

        Raises `ValueError` if the model has another shape.
        """
        weights = {name: value for file in weight_files(folder) for name, value in load_file(file).items()}
        if set(weights) != set(self.masters):
            raise ValueError(
                f"{folder} is not a model of this shape: it has {len(weights)} tensors, {len(self.masters)} are "
                f"needed; they differ in {sorted(set(weights) ^ set(self.masters))[:4]}"
            )
        self.model.load_state_dict(weights, strict=False)
        for name, parameter in self.model.named_parameters():
            self.masters[name].copy_(parameter.detach().float())

    @torch.no_grad()
    def evaluate(self, rows: int = 64) -> dict[str, float]:
        """Accuracy of greedy decoding on the last answer of a row, per domain, on families of the split `test`."""
        stream = Stream(self.config, self.tokenizer, "test")
        accuracies = {}
        for domain, length in (("lists", 192), ("rows", 320), ("grids", 640), ("strings", 192)):
            rng = random.Random(f"evaluate-{domain}")
            encoded = [stream.row(rng, length, {domain: 1.0}) for _ in range(rows)]
            ids, labels = (t.to(self.device) for t in pad_rows(encoded, self.tokenizer.pad_token_id))
            batches = zip(torch.split(ids, 16), torch.split(labels, 16), strict=True)
            hits = torch.cat([(self.model(i).logits[:, :-1].argmax(-1) == y[:, 1:]) for i, y in batches])
            accuracies[domain] = _last_answer_accuracy(hits, labels[:, 1:])
        return accuracies


def _last_answer_accuracy(hits: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of rows with all tokens of the last answer (the last run of labels) predicted; `hits` is [B, T]."""
    total = 0
    for row_hits, row_labels in zip(hits.tolist(), labels.tolist(), strict=True):
        position = max(i for i, label in enumerate(row_labels) if label != IGNORED)
        all_right = True
        while position >= 0 and row_labels[position] != IGNORED:
            all_right &= row_hits[position]
            position -= 1
        total += all_right
    return total / len(hits)


def checkpoint_metadata(run: Path) -> dict[str, str]:
    """The metadata of a run's checkpoint: step, tokens, seconds, config, losses since the last log row, and decay."""
    from safetensors import safe_open

    with safe_open(run / "checkpoint.safetensors", "pt") as file:
        return dict(file.metadata())


def has_checkpoint(run: Path) -> bool:
    """Whether a run can be resumed."""
    return (run / "checkpoint.safetensors").exists()


def _batches(draw: Callable[[int], Any], start: int, workers: int) -> Iterator[Any]:
    """`draw(start)`, `draw(start + 1)` and so on, computed ahead by `workers` processes."""
    if workers == 0:
        while True:
            yield draw(start)
            start += 1
    from torch.utils.data import DataLoader, Dataset

    class Batches(Dataset[Any]):
        def __len__(self) -> int:
            return 1 << 40

        def __getitem__(self, index: int) -> Any:
            return draw(start + index)

    order = iter(range(1 << 40))
    yield from DataLoader(
        Batches(),
        sampler=order,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=8,
        worker_init_fn=_ignore_stop_signals,
    )


def _ignore_stop_signals(worker: int) -> None:
    """For worker processes: on a signal to the process group, only the main process stops, and ends its workers."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """The list of stop signals received so far. Within the context they do not end the process."""
    received: list[int] = []
    before = {number: signal.signal(number, lambda n, _: received.append(n)) for number in STOP_SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def export(runs: Sequence[Path], target: Path) -> None:
    """Writes the weights of a run in Hugging Face format (bf16, shards under 15 MB) with the tokenizer.

    Several runs are averaged (Wortsman et al. 2022, "Model soups"). Raises `ValueError` unless they have the same shape
    and the same initial weights.
    """
    facts = [checkpoint_metadata(run) for run in runs]
    configs = [config_from_json(json.loads(fact["config"])) for fact in facts]
    config = configs[0]
    origins = {(c.init or initial_seed(c), *(getattr(c, f) for f in SHAPE)) for c in configs}
    if len(origins) > 1:
        raise ValueError(f"only runs of one shape with the same initial weights can be averaged; received {origins}")
    tokenizer = build_tokenizer()
    model = build_model(config, tokenizer)
    states = [load_file(run / "checkpoint.safetensors") for run in runs]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.stack([state[f"param.{name}"] for state in states]).mean(0))
    model.to(torch.bfloat16).save_pretrained(target, max_shard_size="15MB")
    tokenizer.save_pretrained(target)
    pretraining = []
    for run_config, fact in zip(configs, facts, strict=True):
        settings = asdict(run_config)
        settings["batch_tokens"] = settings.pop("tokens")
        pretraining.append({**settings, "steps": int(fact["step"]), "tokens": int(fact["tokens"])})
    model_settings = {
        "prompt_format": "compact",
        "recipes": {name: asdict(recipe) for name, recipe in BUNDLED_RECIPES.items()},
        "pretraining": pretraining,
    }
    (target / "autottt.json").write_text(json.dumps(model_settings, indent=1) + "\n")
    for file in target.iterdir():
        file.chmod(0o644)


def plot_log(run: Path, file: Path) -> None:
    """Plots the loss and the accuracy in a run's log against tokens (PNG, SVG or PDF, by the suffix of `file`).

    Needs matplotlib, which `pip install autottt[plots]` installs.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit("--picture needs matplotlib: pip install 'autottt[plots]'") from None
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    if not rows:
        raise SystemExit(f"{run / 'log.jsonl'} is empty: the first row is written at step {LOG_EVERY}")
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([r["tokens"] / 1e6 for r in rows], [r["loss"] for r in rows])
    left.set(xlabel="tokens (millions)", ylabel="training loss (nats)", yscale="log")
    evaluated = [r for r in rows if "accuracy" in r]
    for domain in evaluated[0]["accuracy"] if evaluated else ():
        right.plot(
            [r["tokens"] / 1e6 for r in evaluated], [r["accuracy"][domain] for r in evaluated], "o-", label=domain
        )
    right.set(xlabel="tokens (millions)", ylabel="accuracy on the last answer, split `test`", ylim=(0, 1))
    if evaluated:
        right.legend()
    figure.savefig(file)


def argument_parser() -> argparse.ArgumentParser:
    """The options of the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of the checkpoint and the log")
    parser.add_argument("--steps", type=int, default=0, help="train until this step")
    parser.add_argument("--decay", type=int, default=0, help="decay the learning rate over the last DECAY steps")
    initial = parser.add_mutually_exclusive_group()
    initial.add_argument("--init", type=Path, help="initial weights: the folder of an exported model; default: random")
    initial.add_argument(
        "--branch",
        type=Path,
        help="start from the checkpoint of this run; settings that are not given stay as they are",
    )
    parser.add_argument(
        "--stage", choices=STAGES, help="row lengths and domains (see data.py); default: first, or with --init further"
    )
    parser.add_argument(
        "--minutes", type=float, default=1e9, help="stop after this many minutes; the run can be resumed"
    )
    parser.add_argument("--export", type=Path, help="write the model to this folder, in Hugging Face format")
    parser.add_argument("--average", type=Path, nargs="*", default=[], help="export the mean of --run and these runs")
    parser.add_argument("--picture", type=Path, help="plot the log into this file (needs matplotlib)")
    parser.add_argument("--workers", type=int, default=1, help="processes that make batches")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model (not with --meta)")
    parser.add_argument("--meta", action="store_true", help="first-order MAML: train through a short inner adaptation")
    parser.add_argument("--strict", action="store_true", help="reject ambiguous tasks and chains that are too long")
    parser.add_argument("--fp32", action="store_true", help="compute gradients in float32, not in bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for field in SETTINGS:
        default = getattr(PretrainConfig, field)
        parser.add_argument(f"--{field.replace('_', '-')}", type=type(default), help=f"default: {default}")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    args = argument_parser().parse_args(argv)
    args.run.mkdir(parents=True, exist_ok=True)
    shards, shard = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if shards > 1:
        if args.device == "cuda":
            args.device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
            torch.cuda.set_device(args.device)
        torch.distributed.init_process_group()
    if args.steps:
        train(args, shards, shard)
    if shards > 1:
        torch.distributed.destroy_process_group()
    if shard:
        return
    if args.picture:
        plot_log(args.run, args.picture)
    if args.export:
        export([args.run, *args.average], args.export)


def config_of(args: argparse.Namespace, shards: int) -> PretrainConfig:
    """The settings of the run. Raises `SystemExit` if a run that exists has other settings than the requested ones."""
    requested: dict[str, Any] = {f: v for f in SETTINGS if (v := getattr(args, f)) is not None}
    requested |= {"meta": True} if args.meta else {}
    requested |= {"strict": True} if args.strict else {}
    requested |= {"dtype": "float32"} if args.fp32 else {}
    requested |= {"init": weights_digest(args.init)} if args.init else {}
    if args.stage or args.init:
        phases = STAGES[args.stage or "further"]
        longest = max(length for phase in phases for length, _ in phase.rows)
        requested |= {"phases": phases, "context": max(PretrainConfig.context, longest)}
    requested["shards"] = shards
    if not has_checkpoint(args.run):
        return branch_config(args.branch, requested) if args.branch else PretrainConfig(**requested)
    config = config_from_json(json.loads(checkpoint_metadata(args.run)["config"]))
    stages = {phases: name for name, phases in STAGES.items()}
    pairs = [(f, v, getattr(config, f)) for f, v in requested.items()]
    pairs += [("branch_point", "a branch", "none")] if args.branch and not config.branch_point else []
    if different := [f"{f} is {stages.get(has, has)}, not {stages.get(v, v)}" for f, v, has in pairs if has != v]:
        raise SystemExit(f"{args.run} is a run with other settings: {'; '.join(different)}; use another folder")
    return config


def initial_seed(config: PretrainConfig) -> int:
    """The seed of the random initial weights: for a branch, that of the run it branched from."""
    return config.branch_point[1] if config.branch_point else config.seed


def branch_config(run: Path, requested: Mapping[str, Any]) -> PretrainConfig:
    """The settings of a branch of `run`: those of the run, with the requested ones changed.

    Raises `SystemExit` if the run has no checkpoint, or the requested model another shape.
    """
    if not has_checkpoint(run):
        raise SystemExit(f"--branch {run}: there is no checkpoint in this folder")
    facts = checkpoint_metadata(run)
    config = config_from_json(json.loads(facts["config"]))
    if different := [f for f in SHAPE if f in requested and requested[f] != getattr(config, f)]:
        raise SystemExit(f"--branch {run}: a branch cannot change the shape of the model: {', '.join(different)}")
    return replace(config, **requested, branch_point=(int(facts["step"]), initial_seed(config)))


def check_decay(current: list[int] | None, requested: list[int] | None, step: int) -> None:
    """Raises `SystemExit` if resuming at `step` would change a decay that has begun, or begin one in the past.

    A decay is its first and last step; `current` is that of the run so far.
    """
    due = requested if requested and step > requested[0] else None
    if current == due:
        return
    if current:
        remedy = f"resume with --steps {current[1]} --decay {current[1] - current[0]}"
        state = f"has decayed the learning rate since step {current[0]}, until step {current[1]}"
    else:
        state, remedy = "has had a constant learning rate", f"request a --decay that begins at step {step} or later"
    wanted = f"a decay from step {requested[0]} to {requested[1]}" if requested else "no decay"
    raise SystemExit(f"the run is at step {step} and {state}; {wanted} was requested: {remedy}, or use another folder")


def truncate_log(file: Path, step: int) -> None:
    """Removes the rows of a log after `step`, which will be written again, and an incomplete last row."""
    if file.exists():
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join([x for x in lines if x.endswith("\n") and json.loads(x)["step"] <= step]))


def train(args: argparse.Namespace, shards: int = 1, shard: int = 0) -> None:
    """Trains to `args.steps`, from the run's checkpoint if it has one; of `shards` processes, only process 0 writes.

    A checkpoint is saved at the end, also after an error, unless that struck in the middle of an optimizer step.
    """
    config = config_of(args, shards)
    trainer = Trainer(config, args.run, args.device, getattr(torch, config.dtype), args.compile)
    decay = [args.steps - args.decay, args.steps] if args.decay else None
    _restore(trainer, args, decay)
    started = saved = time.monotonic()
    stream = Stream(config, trainer.tokenizer)
    draw = partial(stream.meta_tasks if config.meta else stream.batch, shard=shard)
    take_step: Callable[[Any, float], float] = trainer.meta_step if config.meta else trainer.train_step
    log_file = args.run / "log.jsonl"
    if not shard:
        truncate_log(log_file, trainer.step)
    with _stop_signals() as signals, log_file.open("a") if not shard else nullcontext() as log:
        try:
            for batch in _batches(draw, trainer.step, args.workers):
                stopping = bool(signals) or time.monotonic() - started > 60 * args.minutes
                if trainer.step >= args.steps or _any_process(stopping, shards, args.device):
                    break
                if decay and trainer.step >= decay[0]:
                    trainer.decay = decay
                take_step(batch, trainer.rate(trainer.step, decay[0] if decay else None, args.steps))
                if trainer.step % LOG_EVERY == 0:
                    _write_log_row(trainer, log)
                if log and time.monotonic() - saved > SAVE_SECONDS:
                    trainer.save()
                    saved = time.monotonic()
        finally:
            if trainer.consistent and not shard:
                trainer.save()


def _restore(trainer: Trainer, args: argparse.Namespace, decay: list[int] | None) -> None:
    """Loads what the run starts from: its own checkpoint, that of the run it branches from, or initial weights."""
    if has_checkpoint(args.run):
        trainer.load()
        if "decay" in checkpoint_metadata(args.run):  # older checkpoints have no entry
            check_decay(trainer.decay, decay, trainer.step)
    elif args.branch:
        trainer.load(args.branch)
        check_decay(trainer.decay, decay, trainer.step)
    elif args.init:
        trainer.load_weights(args.init)


def _write_log_row(trainer: Trainer, log: TextIO | None) -> None:
    """Logs the steps since the last row, with the accuracy every `EVALUATE_EVERY` steps; clears the losses."""
    if log:
        row: dict[str, object] = {"step": trainer.step, "tokens": trainer.tokens}
        row |= {"loss": sum(trainer.losses) / len(trainer.losses), "seconds": round(trainer.seconds, 3)}
        if trainer.step % EVALUATE_EVERY == 0:
            row["accuracy"] = trainer.evaluate()
        print(dumps(row), file=log, flush=True)
        print(row, flush=True)
    trainer.losses.clear()


def _any_process(flag: bool, shards: int, device: str) -> bool:
    """Whether the flag is set in any process."""
    if shards == 1:
        return flag
    flags = torch.tensor(float(flag), device=device)
    torch.distributed.all_reduce(flags)
    return bool(flags)


if __name__ == "__main__":
    main()
