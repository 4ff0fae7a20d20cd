"""What an adapter of a run is, in words: its rank, modules, size, digest, and where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SOURCES = {
    "trained": "{They} {were} trained in this run and did not come from the cache",
    "cached": "{They} came from the cache: an earlier run with the same demonstrations trained {them}",
    "prefetched": "{They} {were} trained ahead of the attempt, and {are} charged here",
}
_IN_BATCH = {
    "cached": (
        "{They} {were} trained while this run waited{batch}, and {are} charged to another task with the same "
        "demonstrations"
    ),
    "prefetched": "{They} {were} trained while this run waited{batch}, and {are} charged here",
}
_ONE = {"They": "It", "were": "was", "them": "it", "are": "is"}
_SEVERAL = {word: word for word in _ONE}


def adapter_sentence(facts: Mapping[str, Any], training: Mapping[str, Any] | None = None) -> str:
    """What the span of an adapter says of it; empty where training ended before that was known. `training` is what the
    run recorded of its training in a batch (`Trace.batch_training`), if there was one."""
    modules: Mapping[str, int] = facts.get("modules") or {}
    if not modules or "rank" not in facts:
        return ""
    several = facts.get("folds", 1) > 1
    kinds = ", ".join(dict.fromkeys(name.rsplit(".", 1)[-1] for name in modules))
    what = (
        f"{facts['folds']} LoRA adapters (one for each fold of the demonstrations)" if several else "One LoRA adapter"
    )
    text = (
        f"{what} of rank {facts['rank']} (alpha {_number(facts.get('alpha'))}) on {sum(modules.values())} modules of "
        f"{len(modules)} kinds: {kinds}"
    )
    if share := facts.get("weight_share"):
        text += f". These modules hold {share:.1%} of the model's weights, which stay frozen"
    if size := facts.get("bytes"):
        text += f". {'Together they have' if several else 'The adapter has'} {size:,} bytes"
    if digest := facts.get("hash"):
        text += f" and the digest {digest}"
    source = _source(str(facts.get("source")), training or {}).format(**(_SEVERAL if several else _ONE))
    return f"{text}. {source}." if source else f"{text}."


def _source(source: str, training: Mapping[str, Any]) -> str:
    """The sentence on where adapters came from, in which the words for one or several are missing."""
    if not training or source not in _IN_BATCH:
        return _SOURCES.get(source, "")
    tasks = training.get("shared_by", 1)
    return _IN_BATCH[source].replace("{batch}", f", in a batch of {tasks} tasks" if tasks > 1 else "")


def recipe_sentence(recipe: Mapping[str, Any]) -> str:
    """How an adapter was trained; empty where its recipe is not known."""
    if not recipe:
        return ""
    limit = recipe["early_stop_loss"]
    early = (
        f"training stops early once two steps in a row have a loss below {limit:g}" if limit else "no limit of the loss"
    )
    regularization = f"dropout {recipe['dropout']:g}, weight decay {recipe['weight_decay']:g}"
    return (
        f"Recipe: AdamW with learning rate {recipe['learning_rate']:g}, which rises over the first "
        f"{recipe['warmup_ratio']:.0%} of the steps and then falls by a cosine to 0; at most {recipe['max_steps']} "
        f"steps of {recipe['batch_size']} prompts; {regularization}; {early}."
    )


def _number(value: Any) -> str:
    return "not recorded" if value is None else f"{value:g}"
