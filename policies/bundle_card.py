"""The folder of a policy bundle and the version of its card, checked without importing what loads the policy."""

from __future__ import annotations

import difflib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from platformdirs import user_data_path

from ..ttt_core.errors import PolicyError, shortened
from ..ttt_core.tasks.fields import MAX_SEED, is_utf8
from .versions import BUNDLE_VERSION

CARD = "card.json"
MAX_CARD_BYTES = 16 << 20
"""Largest card that is read; that of 600 families has 64 KiB."""
MAX_DEPTH = 16
"""Levels of lists and objects in a card at most; those that training writes have 6."""
ANY_MODEL = "any_model"
"""In place of a model's hash, and as the name of its folder: the policy for models without one of their own."""
BUNDLES = Path(__file__).parent / "bundles"
"""The shipped bundles, each in a folder of its name."""


def policies_folder() -> Path:
    """Where the policies of this user are."""
    return user_data_path("autottt") / "policies"


def bundle_folder(source: str | os.PathLike[str], bundles: Path = BUNDLES) -> Path:
    """The folder of a bundle: a path, the name of one of the user's policies, or that of a shipped one (`bundled`,
    `public`)."""
    path = Path(source)
    if len(path.parts) != 1 or path.exists():
        return path
    return next((folder / path for folder in (policies_folder(), bundles) if (folder / path).is_dir()), path)


def bundles(shipped: Path = BUNDLES) -> Iterator[tuple[str, Path]]:
    """Name and folder of each policy that can be named: the user's, then the shipped ones."""
    for folder in (policies_folder(), shipped):
        for card in sorted(folder.glob(f"*/{CARD}")):
            if not card.parent.name.startswith("."):
                yield card.parent.name, card.parent


def read_card(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The card of a bundle. Raises `PolicyError` if there is none, or if it is in another version of the format."""
    path = Path(folder)
    try:
        data = _read_bytes(path / CARD)
        card = json.loads(data)
        _check_values(card)
    except OSError as error:
        problem = f"{CARD} cannot be read ({error.strerror or error})"
        raise unusable_bundle(path, problem + ("" if path.exists() else _names_near(path.name))) from None
    except (ValueError, RecursionError) as error:
        raise unusable_bundle(path, f"{CARD} is not JSON that a policy has ({error})") from None
    version = card.get("format_version", card.get("format")) if isinstance(card, dict) else None
    if not isinstance(card, dict) or isinstance(version, bool) or version != BUNDLE_VERSION:
        received = f"version {shortened(version)}" if isinstance(card, dict) else f"a {type(card).__name__}"
        raise unusable_bundle(path, f"{CARD} is not in version {BUNDLE_VERSION} of the format, but {received}")
    return card


def _names_near(name: str) -> str:
    """The names of policies, and the one that is spelled like a name that none has."""
    names = sorted({known for known, _ in bundles()})
    near = difflib.get_close_matches(name, names, 1)
    return f"; policies with a name: {', '.join(names)}" + (f"; did you mean {near[0]!r}?" if near else "")


def _read_bytes(file: Path) -> bytes:
    """The content of a file of limited size. Raises `OSError`."""
    if not stat.S_ISREG(file.stat().st_mode):  # opening a named pipe would wait for a writer
        raise OSError("it is not a file")
    with file.open("rb") as opened:
        data = opened.read(MAX_CARD_BYTES + 1)
    if len(data) > MAX_CARD_BYTES:
        raise OSError(f"it has more than {MAX_CARD_BYTES >> 20} MiB")
    return data


def _check_values(card: object) -> None:
    """Raises `ValueError` for values that are nested too deeply, integers of more than 64 bits, and texts that are not
    UTF-8."""
    level = [("", card)]
    for _ in range(MAX_DEPTH):
        inner: list[tuple[str, object]] = []
        for name, value in level:
            texts = [value] if isinstance(value, str) else list(value) if isinstance(value, dict) else []
            if not all(map(is_utf8, texts)):
                raise ValueError(f"{name or 'a key'}: expected texts that can be written as UTF-8")
            if isinstance(value, int) and abs(value) > MAX_SEED:
                raise ValueError(f"{name}: expected integers of at most 64 bits; received {shortened(value)}")
            if isinstance(value, dict):
                inner += [(name or key, item) for key, item in value.items()]
            elif isinstance(value, list):
                inner += [(name, item) for item in value]
        level = inner
    if level:
        raise ValueError(f"{level[0][0]}: expected at most {MAX_DEPTH} levels of lists and objects")


def unusable_bundle(path: Path, reason: str) -> PolicyError:
    """The error for a bundle that cannot be loaded, with the remedy."""
    return PolicyError(
        f"{path}: not a usable policy: {reason}; train one with `autottt train-policy STORE --out {path}`"
    )
