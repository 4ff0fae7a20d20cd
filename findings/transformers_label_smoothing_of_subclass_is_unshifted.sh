#!/usr/bin/env bash
# transformers 5.24.0, peft 0.21.2, accelerate 1.15.0, torch 2.13.0. With label_smoothing_factor the Trainer computes the loss itself, and shifts the labels
# by one only where the name of the model's class is in its own list. An own subclass of LlamaForCausalLM is not, nor is a model with prefix tuning (what
# the Trainer takes the name of there is its inner LlamaModel): the loss compares each position with its own input token, and training teaches to repeat it.
# Nothing is warned about, and the loss falls as usual. (LoRA is right: issue 27161.)
# Expected: the subclass learns the next token as its base class does, and a factor of nearly 0 changes no loss.
# Seen: next token right, own token repeated: LlamaForCausalLM 100% 0%, subclass 0% 100%; loss of prefix tuning without and with smoothing 4.17 4.63
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 peft==0.21.2 accelerate==1.15.0 numpy==2.4.6
cat > "$folder/check.py" <<'PYTHON'
import torch
from peft import PrefixTuningConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, logging

logging.set_verbosity_error()


class OwnLlama(LlamaForCausalLM):
    pass


config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
)
ids = torch.randperm(60, generator=torch.Generator().manual_seed(0)).reshape(4, 15)[:, :10] + 3
rows = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row.clone()} for row in ids]


def trainer(kind, smoothing, prefix=False):
    torch.manual_seed(0)
    model = kind(config)
    if prefix:
        model = get_peft_model(model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    arguments = TrainingArguments(
        "out", per_device_train_batch_size=4, max_steps=60, learning_rate=1e-2, label_smoothing_factor=smoothing,
        use_cpu=True, disable_tqdm=True, save_strategy="no", logging_strategy="no", report_to=[],
    )
    return Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)


def learned(kind):
    run = trainer(kind, 0.1)
    run.train()
    with torch.no_grad():
        best = run.model.eval()(input_ids=ids).logits.argmax(-1)
    return tuple(round(100 * float(right.float().mean())) for right in (best[:, :-1] == ids[:, 1:], best[:, :-1] == ids[:, :-1]))


plain, own = learned(LlamaForCausalLM), learned(OwnLlama)
losses = [trainer(LlamaForCausalLM, factor, True).evaluate()["eval_loss"] for factor in (0.0, 1e-6)]
print(
    f"next token right, own token repeated: LlamaForCausalLM {plain[0]}% {plain[1]}%, subclass {own[0]}% {own[1]}%; "
    f"loss of prefix tuning without and with smoothing {losses[0]:.2f} {losses[1]:.2f}"
)
good = plain[0] > 95 and plain[1] < 10 and own[0] < 10 and own[1] > 95 and abs(losses[0] - losses[1]) > 0.1
raise SystemExit(not good)
PYTHON
cd "$folder" && env OMP_NUM_THREADS=1 HF_HOME="$folder" TRANSFORMERS_VERBOSITY=error env/bin/python -W ignore check.py
