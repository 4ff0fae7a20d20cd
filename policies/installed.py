"""The policies of the user, in the user's data folder: one for each model, prompt format and starting adapter.

`autottt policy fit` writes them, and a model gets its own without being told. Knows nothing about how they are trained.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from platformdirs import user_data_path

from .bundle_card import CARD, policies_folder

OUTCOMES = "outcomes"
"""The folder beside the policies with the outcomes that they were trained on, a store for each name."""


def policy_name(base_hash: str, prompt_format: str, starting_adapter: str = "") -> str:
    """The name of the policy for a model, by the content hash of its base, its prompt format, and the adapter that
    training starts from (`AdapterProvider.starting_digest`)."""
    return "-".join(part for part in (base_hash[:16], prompt_format, starting_adapter) if part)


def installed_folder(base_hash: str, prompt_format: str, starting_adapter: str = "") -> Path:
    """The folder of the user's policy for a model; it need not exist."""
    return policies_folder() / policy_name(base_hash, prompt_format, starting_adapter)


def outcomes_folder(base_hash: str, prompt_format: str, starting_adapter: str = "") -> Path:
    """The store of the outcomes that the user's policy for a model is trained on; it need not exist."""
    return user_data_path("autottt") / OUTCOMES / policy_name(base_hash, prompt_format, starting_adapter)


def remove_policy(name: str) -> bool:
    """Deletes the user's policy of a name; false if there is none. The outcomes stay."""
    folder = policies_folder() / name
    if Path(name).name != name or not (folder / CARD).is_file():
        return False
    shutil.rmtree(folder)
    return True
