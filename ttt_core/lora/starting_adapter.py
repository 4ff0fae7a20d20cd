"""The card of a starting adapter: for which base it was trained, on which families, and how it did on others.

It lies beside the weights in the adapter's PEFT folder, which PEFT reads without it. Knows nothing about training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..file_writing import write_whole

CARD = "autottt_adapter.json"
CARD_VERSION = 1


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """Writes the card of an adapter's folder, whole or not at all."""
    write_whole(folder / CARD, json.dumps({"version": CARD_VERSION, **card}, indent=1) + "\n")


def read_card(folder: Path) -> dict[str, Any]:
    """The card in a folder; empty without one, as in folders that other programs wrote. Raises `ModelError` for one
    that cannot be read."""
    file = folder / CARD
    if not file.is_file():
        return {}
    try:
        card = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file}: cannot be read ({error}); `autottt prepare` writes it again") from None
    if not isinstance(card, dict) or card.get("version") != CARD_VERSION:
        raise ModelError(f"{file}: expected version {CARD_VERSION} of the format; `autottt prepare` writes it again")
    return card


def refuse_other_base(folder: Path, base_hash: str) -> None:
    """Raises `ModelError` where the card of an adapter names another base model."""
    trained_for = read_card(folder).get("base_hash", base_hash)
    if trained_for != base_hash:
        raise ModelError(
            f"{folder}: this starting adapter was trained for another model, {trained_for}; this model is "
            f"{base_hash}: train one for it with `autottt prepare`"
        )
