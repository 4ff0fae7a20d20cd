#!/usr/bin/env bash
# trl 1.16.0, transformers 5.24.0, datasets 5.2.0, torch 2.13.0. SFTTrainer puts the end token behind the completion of a data set with the columns prompt and
# completion, but where a row has a column "text" too, as sources and rendered examples are often called, it goes behind that text, which is then not used:
# the model is trained on prompt and completion without an end.
# Expected: columns that are not used make no difference, as with a column of any other name.
# Seen: trained on: two columns '4</s>', with "note" '4</s>', with "text" '4'
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check trl==1.16.0 torch==2.13.0 transformers==5.24.0 datasets==5.2.0 accelerate==1.15.0 numpy==2.4.6
cat > "$folder/check.py" <<'PYTHON'
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

tokens = sorted(pre_tokenizers.ByteLevel.alphabet()) + ["</s>"]
inner = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, []))
inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="</s>")
sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
model = LlamaForCausalLM(LlamaConfig(vocab_size=257, eos_token_id=256, pad_token_id=256, **sizes))


def trained_on(**more):
    rows = Dataset.from_list([{"prompt": "2+2=", "completion": "4", **more}])
    options = SFTConfig(output_dir="out", use_cpu=True, bf16=False, report_to=[], disable_tqdm=True)
    trainer = SFTTrainer(model=model, args=options, train_dataset=rows, processing_class=tokenizer)
    (batch,) = trainer.get_train_dataloader()
    return tokenizer.decode([label for label in batch["labels"][0].tolist() if label != -100])


seen = trained_on(), trained_on(note="from a quiz"), trained_on(text="from a quiz")
print("trained on: two columns {!r}, with \"note\" {!r}, with \"text\" {!r}".format(*seen))
raise SystemExit(seen != ("4</s>", "4</s>", "4"))
PYTHON
cd "$folder" && env OMP_NUM_THREADS=1 TRANSFORMERS_VERBOSITY=error HF_HOME="$folder" env/bin/python -W ignore check.py 2> "$folder/log" || { tail -5 "$folder/log"; exit 1; }
