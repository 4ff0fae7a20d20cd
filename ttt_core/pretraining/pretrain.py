"""Pre-trains the bundled model from scratch on random few-shot programs, and saves it in Hugging Face format.

Needs torch, transformers, tokenizers and safetensors alone (and peft for --meta). What it reads is in `stream`: as many
worked examples of a task as fit, with the loss on every answer after the first. An interrupted run goes on exactly:

    python -m autottt.ttt_core.pretraining.pretrain --run runs/model --steps 20000          # again to resume
    python -m autottt.ttt_core.pretraining.pretrain --run runs/model --export DIR --decay 1500
    python -m autottt.ttt_core.pretraining.pretrain --run runs/next --init DIR --steps 4000 # further, with a fresh optimizer
    python -m autottt.ttt_core.pretraining.pretrain --run runs/twin --branch runs/model --seed 7 --steps 30000  # on other tasks
    torchrun --nproc-per-node 2 -m autottt.ttt_core.pretraining.pretrain --run runs/wide --steps 20000   # twice the tokens a step
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
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ..recipes import BUNDLED
from .data import IGNORED, INNER, STAGES, Batch, MetaTask, PretrainConfig, Stream, config_from, packed_mask, padded
from .tokenizer import build_tokenizer

SETTINGS = ("hidden", "layers", "heads", "kv_heads", "intermediate", "tokens", "seed", "lr")
"""What the command line can set; a resumed run keeps its own."""
SHAPE = ("hidden", "layers", "heads", "kv_heads", "intermediate", "context")
"""The settings that decide the model's architecture."""
LOG_EVERY, JUDGE_EVERY = 50, 500
"""Steps between rows of the log, and between rows with an accuracy; the second is a multiple of the first."""


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
    """What `PretrainConfig.init` says of the weights in a folder."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in weight_files(folder))).hexdigest()


class Trainer:
    """fp32 weights with Muon (matrices) and AdamW (the rest), and a working copy of the model in a faster precision."""

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
        """Of the steps since the log's last row, in nats."""
        self.decay: list[int] | None = None
        """Step at which the rate began to fall, and the step of its end; None before."""
        self.whole = True
        """Whether weights, optimizers and counts are of the same step."""
        self._earlier, self._began = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of training behind the state, those before an interruption included."""
        return self._earlier + time.monotonic() - self._began

    def rate(self, step: int, decay_from: int | None, end: int) -> float:
        """Learning rate: linear warm-up, constant, and from `decay_from` linear to 2% at `end`."""
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
        self._apply(rate)
        return self._counted(float(loss.detach()), ids.numel())

    def meta_step(self, tasks: list[MetaTask], rate: float) -> float:
        """A step for trainability (see `meta`); returns the mean loss on new queries after adaptation, in nats."""
        from .meta import adapted_backward

        loss, _ = adapted_backward(self.model, tasks, INNER, self.tokenizer.pad_token_id, self.step)
        self._apply(rate)
        return self._counted(loss, sum(len(ids) for task in tasks for ids, _ in task.inner + task.outer))

    def _counted(self, loss: float, tokens: int) -> float:
        """Counts a step that has been taken: its loss in nats, and the tokens of one process."""
        self.step += 1
        self.tokens += tokens * self.config.shards
        self.losses.append(loss)
        self.whole = True
        return loss

    def _apply(self, rate: float) -> None:
        """Moves the gradients to the master weights and takes the optimizers' step, which `_counted` is to count."""
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
        self.whole = False
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
        """Writes a checkpoint: whole, or not at all."""
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
        target = self.run / "checkpoint.safetensors"
        partial = target.with_suffix(".partial")
        save_file({k: v.cpu().contiguous() for k, v in state.items()}, partial, metadata=facts)
        partial.replace(target)

    def load(self, run: Path | None = None) -> None:
        """Continues from the run's checkpoint, or from another run's."""
        run = run or self.run
        facts = checkpoint_facts(run)
        state = load_file(run / "checkpoint.safetensors", device=self.device)
        for name, parameter in self.masters.items():
            parameter.copy_(state[f"param.{name}"])
            keys = [k for k in ("step", "exp_avg", "exp_avg_sq", "momentum_buffer") if f"{k}.{name}" in state]
            self._state_of(parameter).update({k: state[f"{k}.{name}"].clone() for k in keys})
        self._copy_masters()
        self.step, self.tokens = int(facts["step"]), int(facts["tokens"])
        self.losses, self.decay = json.loads(facts.get("losses", "[]")), json.loads(facts.get("decay", "null"))
        self._earlier, self._began = float(facts.get("seconds", "0")), time.monotonic()

    def begin_with(self, folder: Path) -> None:
        """Takes the weights of an exported model of the same shape; the optimizer starts afresh."""
        given = {name: value for file in weight_files(folder) for name, value in load_file(file).items()}
        if set(given) != set(self.masters):
            raise ValueError(
                f"{folder} is not a model of this shape: it has {len(given)} tensors, {len(self.masters)} are needed; "
                f"they differ in {sorted(set(given) ^ set(self.masters))[:4]}"
            )
        self.model.load_state_dict(given, strict=False)
        for name, parameter in self.model.named_parameters():
            self.masters[name].copy_(parameter.detach().float())

    @torch.no_grad()
    def evaluate(self, rows: int = 64) -> dict[str, float]:
        """Share of last answers that greedy decoding would get right, per domain, on held-out compositions."""
        stream = Stream(self.config, self.tokenizer, "test")
        found = {}
        for domain, length in (("lists", 192), ("rows", 320), ("grids", 640), ("strings", 192)):
            rng = random.Random(f"evaluate-{domain}")
            picked = [stream.row(rng, length, {domain: 1.0}) for _ in range(rows)]
            ids, labels = (t.to(self.device) for t in padded(picked, self.tokenizer.pad_token_id))
            parts = zip(torch.split(ids, 16), torch.split(labels, 16), strict=True)
            right = torch.cat([(self.model(i).logits[:, :-1].argmax(-1) == y[:, 1:]) for i, y in parts])
            found[domain] = _last_answers_right(right, labels[:, 1:])
        return found


def _last_answers_right(right: torch.Tensor, labels: torch.Tensor) -> float:
    """Of rows of per-token hits [B, T], the share whose last whole run of labelled tokens is all hits."""
    total = 0
    for hits, label in zip(right.tolist(), labels.tolist(), strict=True):
        position = max(i for i, y in enumerate(label) if y != IGNORED)
        good = True
        while position >= 0 and label[position] != IGNORED:
            good &= hits[position]
            position -= 1
        total += good
    return total / len(right)


def checkpoint_facts(run: Path) -> dict[str, str]:
    """The metadata of a run's checkpoint: step, tokens, seconds, config, and what its log and its decay go on from."""
    from safetensors import safe_open

    with safe_open(run / "checkpoint.safetensors", "pt") as file:
        return dict(file.metadata())


def _batches(draw: Callable[[int], Any], start: int, workers: int) -> Iterator[Any]:
    """What `draw` gives for number `start` and on, in order, made ahead by other processes."""
    if workers == 0:
        while True:
            yield draw(start)
            start += 1
    from torch.utils.data import DataLoader, Dataset

    class Numbered(Dataset[Any]):
        def __len__(self) -> int:
            return 1 << 40

        def __getitem__(self, index: int) -> Any:
            return draw(start + index)

    order = iter(range(1 << 40))
    yield from DataLoader(
        Numbered(),
        sampler=order,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=8,
        worker_init_fn=_ignore_stop_signals,
    )


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _ignore_stop_signals(worker: int) -> None:
    """In a process that makes batches: a signal to the whole group is for the main process, which ends the others."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """The stop signals received so far, which do not end the process meanwhile."""
    received: list[int] = []
    before = {number: signal.signal(number, lambda n, _: received.append(n)) for number in STOP_SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def export(runs: Sequence[Path], target: Path) -> None:
    """Writes the weights of a run in Hugging Face format (bf16, shards under 15 MB) with the tokenizer.

    Of several runs that began with the same weights, their mean: Wortsman et al. 2022, "Model soups".
    """
    facts = [checkpoint_facts(run) for run in runs]
    configs = [config_from(json.loads(fact["config"])) for fact in facts]
    config = configs[0]
    begun = {(c.init or first_seed(c), *(getattr(c, f) for f in SHAPE)) for c in configs}
    if len(begun) > 1:
        raise ValueError(f"only runs of one shape that began with the same weights have a mean; received {begun}")
    tokenizer = build_tokenizer()
    model = build_model(config, tokenizer)
    states = [load_file(run / "checkpoint.safetensors") for run in runs]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.stack([state[f"param.{name}"] for state in states]).mean(0))
    model.to(torch.bfloat16).save_pretrained(target, max_shard_size="15MB")
    tokenizer.save_pretrained(target)
    pretraining = []
    for one, fact in zip(configs, facts, strict=True):
        settings = asdict(one)
        settings["batch_tokens"] = settings.pop("tokens")
        pretraining.append({**settings, "steps": int(fact["step"]), "tokens": int(fact["tokens"])})
    written = {
        "prompt_format": "compact",
        "recipes": {name: asdict(recipe) for name, recipe in BUNDLED.items()},
        "pretraining": pretraining,
    }
    (target / "autottt.json").write_text(json.dumps(written, indent=1) + "\n")
    for file in target.iterdir():
        file.chmod(0o644)


def plot_log(run: Path, file: Path) -> None:
    """Draws a run's log, loss and accuracy against tokens, as a picture (PNG, SVG or PDF by the file's name).

    Needs matplotlib, which `pip install autottt[plots]` brings.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit("--picture needs matplotlib: pip install 'autottt[plots]'") from None
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    if not rows:
        raise SystemExit(f"{run / 'log.jsonl'} is empty: the first row comes after 50 steps")
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([r["tokens"] / 1e6 for r in rows], [r["loss"] for r in rows])
    left.set(xlabel="tokens (millions)", ylabel="loss on the stream (nats)", yscale="log")
    judged = [r for r in rows if "accuracy" in r]
    for domain in judged[0]["accuracy"] if judged else ():
        right.plot([r["tokens"] / 1e6 for r in judged], [r["accuracy"][domain] for r in judged], "o-", label=domain)
    right.set(xlabel="tokens (millions)", ylabel="last answers right, split `test`", ylim=(0, 1))
    if judged:
        right.legend()
    figure.savefig(file)


def main(argv: list[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoint and log")
    parser.add_argument("--steps", type=int, default=0, help="train until this step")
    parser.add_argument("--decay", type=int, default=0, help="let the rate fall over the last this many steps")
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument("--init", type=Path, help="begin with the weights of this exported model, not at random")
    begin.add_argument(
        "--branch", type=Path, help="begin where this run stands, optimizer and all; settings not named are its own"
    )
    parser.add_argument(
        "--stage",
        choices=STAGES,
        help="what the stream is made of (see stream.py); default: first, or with --init further",
    )
    parser.add_argument("--minutes", type=float, default=1e9, help="stop (resumably) after this long")
    parser.add_argument("--export", type=Path, help="then write the model here, in Hugging Face format")
    parser.add_argument("--average", type=Path, nargs="*", default=[], help="export the mean of --run and these runs")
    parser.add_argument("--picture", type=Path, help="then draw the log here (needs matplotlib)")
    parser.add_argument("--workers", type=int, default=1, help="processes that make batches")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model (not with --meta)")
    parser.add_argument("--meta", action="store_true", help="train for trainability: through a short inner adaptation")
    parser.add_argument("--strict", action="store_true", help="leave out ambiguous tasks and needlessly long chains")
    parser.add_argument("--fp32", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for field in SETTINGS:
        kind = type(getattr(PretrainConfig, field))
        parser.add_argument(
            f"--{field.replace('_', '-')}", type=kind, help=f"default: {getattr(PretrainConfig, field)}"
        )
    given = parser.parse_args(argv)
    given.run.mkdir(parents=True, exist_ok=True)
    shards, shard = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if shards > 1:
        if given.device == "cuda":
            given.device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
            torch.cuda.set_device(given.device)
        torch.distributed.init_process_group()
    if given.steps:
        train(given, shards, shard)
    if shards > 1:
        torch.distributed.destroy_process_group()
    if shard:
        return
    if given.picture:
        plot_log(given.run, given.picture)
    if given.export:
        export([given.run, *given.average], given.export)


def settings_of(given: argparse.Namespace, shards: int) -> PretrainConfig:
    """The settings asked for; a resumed run keeps its own, and `SystemExit` says where others were asked for."""
    asked: dict[str, Any] = {f: v for f in SETTINGS if (v := getattr(given, f)) is not None}
    asked |= {"meta": True} if given.meta else {}
    asked |= {"strict": True} if given.strict else {}
    asked |= {"dtype": "float32"} if given.fp32 else {}
    asked |= {"init": weights_digest(given.init)} if given.init else {}
    if given.stage or given.init:
        phases = STAGES[given.stage or "further"]
        longest = max(length for phase in phases for length, _ in phase.rows)
        asked |= {"phases": phases, "context": max(PretrainConfig.context, longest)}
    asked["shards"] = shards
    if not (given.run / "checkpoint.safetensors").exists():
        return branched(given.branch, asked) if given.branch else PretrainConfig(**asked)
    config = config_from(json.loads(checkpoint_facts(given.run)["config"]))
    stages = {phases: name for name, phases in STAGES.items()}
    pairs = [(f, v, getattr(config, f)) for f, v in asked.items()]
    pairs += [("parted", "a branch", "a run of its own")] if given.branch and not config.parted else []
    if other := [f"{f} is {stages.get(has, has)}, not {stages.get(v, v)}" for f, v, has in pairs if has != v]:
        raise SystemExit(f"{given.run} is a run with other settings: {'; '.join(other)}; take another folder")
    return config


def first_seed(config: PretrainConfig) -> int:
    """The seed of the run's random weights, which may be those of a run that it left."""
    return config.parted[1] if config.parted else config.seed


def branched(run: Path, asked: Mapping[str, Any]) -> PretrainConfig:
    """The settings of a run that parts from another where that one stands, with those that are asked for changed."""
    if not (run / "checkpoint.safetensors").exists():
        raise SystemExit(f"--branch {run}: there is no checkpoint in this folder")
    facts = checkpoint_facts(run)
    config = config_from(json.loads(facts["config"]))
    if other := [f for f in SHAPE if f in asked and asked[f] != getattr(config, f)]:
        raise SystemExit(f"--branch {run}: the model keeps its shape, but {', '.join(other)} was asked for")
    return replace(config, **asked, parted=(int(facts["step"]), first_seed(config)))


def check_decay(begun: list[int] | None, asked: list[int] | None, step: int) -> None:
    """Raises `SystemExit` where a run at a step would go on with another decay of the rate than it has had.

    A decay is the step at which the rate begins to fall, and the step of its end; `begun` is the run's own.
    """
    due = asked if asked and step > asked[0] else None
    if begun == due:
        return
    if begun:
        remedy = f"go on with --steps {begun[1]} --decay {begun[1] - begun[0]}"
        had = f"has let the rate fall from step {begun[0]}, to end at {begun[1]}"
    else:
        had, remedy = "has kept the rate constant", f"take a --decay that begins at step {step} or later"
    wanted = f"a decay from step {asked[0]} to {asked[1]}" if asked else "no decay"
    raise SystemExit(
        f"the run stands at step {step} and {had}; {wanted} was asked for: {remedy}, or take another folder"
    )


def cut_log(file: Path, step: int) -> None:
    """Leaves out the rows of a log beyond a step, which are about to be written again, and one that was cut short."""
    if file.exists():
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join([x for x in lines if x.endswith("\n") and json.loads(x)["step"] <= step]))


def train(given: argparse.Namespace, shards: int = 1, shard: int = 0) -> None:
    """Trains to `given.steps`, resuming where the run stands; of `shards` processes, only the first (0) writes.

    However it ends, what has been learned is saved, unless an error struck in the middle of an optimizer's step.
    """
    config = settings_of(given, shards)
    trainer = Trainer(config, given.run, given.device, getattr(torch, config.dtype), given.compile)
    decay = [given.steps - given.decay, given.steps] if given.decay else None
    if (given.run / "checkpoint.safetensors").exists():
        trainer.load()
        if "decay" in checkpoint_facts(given.run):  # older checkpoints do not say
            check_decay(trainer.decay, decay, trainer.step)
    elif given.branch:
        trainer.load(given.branch)
        check_decay(trainer.decay, decay, trainer.step)
    elif given.init:
        trainer.begin_with(given.init)
    began = saved = time.monotonic()
    stream = Stream(config, trainer.tokenizer)
    draw = partial(stream.meta_tasks if config.meta else stream.batch, shard=shard)
    if not shard:
        cut_log(given.run / "log.jsonl", trainer.step)
    with _stop_signals() as stop, (given.run / "log.jsonl").open("a") if not shard else nullcontext() as log:
        try:
            for batch in _batches(draw, trainer.step, given.workers):
                ending = bool(stop) or time.monotonic() - began > 60 * given.minutes
                if trainer.step >= given.steps or _any_of(ending, shards, given.device):
                    break
                if decay and trainer.step >= decay[0]:
                    trainer.decay = decay
                take = trainer.meta_step if config.meta else trainer.train_step
                take(batch, trainer.rate(trainer.step, decay[0] if decay else None, given.steps))
                if trainer.step % LOG_EVERY == 0:
                    if log:
                        row = log_row(trainer)
                        print(json.dumps(row), file=log, flush=True)
                        print(row, flush=True)
                    trainer.losses.clear()
                if log and time.monotonic() - saved > 120:
                    trainer.save()
                    saved = time.monotonic()
        finally:
            if trainer.whole and not shard:
                trainer.save()


def log_row(trainer: Trainer) -> dict[str, object]:
    """What the log says of the steps since its last row, and now and then the accuracy."""
    mean = sum(trainer.losses) / len(trainer.losses)
    row: dict[str, object] = {"step": trainer.step, "tokens": trainer.tokens, "loss": mean}
    row["seconds"] = round(trainer.seconds, 3)
    return row | {"accuracy": trainer.evaluate()} if trainer.step % JUDGE_EVERY == 0 else row


def _any_of(flag: bool, shards: int, device: str) -> bool:
    """Whether the flag is set in any process."""
    if shards == 1:
        return flag
    flags = torch.tensor(float(flag), device=device)
    torch.distributed.all_reduce(flags)
    return bool(flags)


if __name__ == "__main__":
    main()
