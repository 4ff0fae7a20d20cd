"""The folder of a policy bundle and the version of its card, checked without importing what loads the policy."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..ttt_core.errors import PolicyError
from .versions import BUNDLE_VERSION

CARD = "card.json"
BUNDLES = Path(__file__).parent / "bundles"
"""The shipped bundles, each in a folder of its name."""


def bundle_folder(source: str | os.PathLike[str], bundles: Path = BUNDLES) -> Path:
    """The folder of a bundle: a path, or the name of a shipped bundle (`bundled`, `public`)."""
    path = Path(source)
    shipped = bundles / path
    return shipped if len(path.parts) == 1 and not path.exists() and shipped.is_dir() else path


def read_card(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The card of a bundle. Raises `PolicyError` if there is none, or if it is in another version of the format."""
    path = Path(folder)
    try:
        card = json.loads((path / CARD).read_text("utf-8"))
    except OSError as error:
        raise unusable_bundle(path, f"{CARD} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise unusable_bundle(path, f"{CARD} is not JSON ({error})") from None
    version = card.get("format_version", card.get("format")) if isinstance(card, dict) else None
    if not isinstance(card, dict) or version != BUNDLE_VERSION:
        received = f"version {version}" if isinstance(card, dict) else f"a {type(card).__name__}, not an object"
        raise unusable_bundle(path, f"{CARD} is not in version {BUNDLE_VERSION} of the format, but {received}")
    return card


def unusable_bundle(path: Path, reason: str) -> PolicyError:
    """The error for a bundle that cannot be loaded, with the remedy."""
    return PolicyError(
        f"{path}: not a usable policy: {reason}. Train one with `autottt train-policy STORE --out {path}`"
    )
