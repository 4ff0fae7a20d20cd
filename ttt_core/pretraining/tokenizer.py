"""Builds the bundled model's tokenizer: bytes, and one token for each number 0-99 that follows a space.

Knows nothing about the model. ` 7`, ` 42` and ` /` are single tokens; every other character is encoded as its bytes.
"""

from __future__ import annotations

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<bos>", "<eos>")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, with 360 tokens. It is defined by this code; nothing is trained."""
    space = "Ġ"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    digits = [str(d) for d in range(10)]
    merges = [(space, d) for d in digits] + [(space, "/")]
    merges += [(space + a, b) for a in digits[1:] for b in digits]
    tokens = [*SPECIAL, *alphabet, *(a + b for a, b in merges)]
    core = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" (?:0|[1-9]\d?)(?!\d)| /|(?m:.)"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    core.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
