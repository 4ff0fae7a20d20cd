"""What answers depend on, except for tasks and seeds: the model, the policy, and versions of packages."""

from __future__ import annotations

import json
import platform
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

from ..policies.exploration import ExploringPolicy, without_exploration
from ..policies.policy import Policy, card_digest
from ..strategies.base import recipe_digest_for
from ..strategies.registry import strategies
from ..ttt_core.learner import Learner
from ..ttt_core.tasks.kinds import KINDS
from .budget import Budget

PACKAGES = ("autottt", "torch", "transformers", "peft", "scikit-learn", "langgraph", "numpy", "skops")
"""Packages whose versions an answer may depend on."""
_THRESHOLDS = ("cost_weight", "skip_probe_threshold", "probe_margin", "keep_threshold", "risk")
"""Settings of a policy's card by which it decides."""


@cache
def _installed() -> tuple[tuple[str, str], ...]:
    return tuple((name, version(name)) for name in PACKAGES)


def package_versions() -> dict[str, str]:
    """The installed versions of `PACKAGES`."""
    return dict(_installed())


_digests: dict[int, tuple[weakref.ref[Policy], str]] = {}
"""By the id of a policy: a reference to it, and the digest of its card."""


def policy_digest(policy: Policy) -> str:
    """Digest of the card of the policy that decides where nothing is explored. That of a learned policy takes
    milliseconds, so it is cached by the object."""
    policy = without_exploration(policy)
    known = _digests.get(id(policy))
    if known is not None and known[0]() is policy:
        return known[1]
    digest = card_digest(policy.card())
    with suppress(TypeError):  # an object without weak references
        _digests[id(policy)] = weakref.ref(policy), digest
    for dead in [key for key, (policy_of, _) in list(_digests.items()) if policy_of() is None]:
        _digests.pop(dead, None)
    return digest


def outcome_settings(learner: Learner, policy: Policy, budget: Budget) -> dict[str, str]:
    """What an outcome depends on besides the task, the strategy and the seed, as texts. Runs whose settings differ must
    not share a file."""
    return {
        "model": learner.base_hash, "policy": f"{policy.name} ({card_digest(policy.card())[:12]})",
        "budget": str(budget),
        "dtype": learner.guarded.precision, "prompt_format": learner.loaded.prompt_format,
        "starting_adapter": learner.adapters.starting_digest or "none", "recipes": _recipes_digest(learner),
    }  # fmt: skip


def _recipes_digest(learner: Learner) -> str:
    """Digest of the recipes by which the registered strategies train on tasks of each kind."""
    digests = {
        f"{name}/{kind}": recipe_digest_for(strategy, learner.loaded.recipes, kind)
        for name, strategy in strategies().items()
        for kind in KINDS
    }
    return card_digest({place: digest for place, digest in digests.items() if digest})[:12]


def different_settings(begun: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The settings that differ, with both values; empty where all that both name are equal. What only one of them names
    is not compared: files of earlier versions name fewer."""
    return "; ".join(
        f"{name}: {json.dumps(begun[name])} before, {json.dumps(value)} now"
        for name, value in now.items()
        if begun.get(name, value) != value
    )


@dataclass(frozen=True)
class RunFacts:
    """What the answers of a run depend on, except for tasks and seeds."""

    model: Mapping[str, str]
    """Name, content hash, device, precision and prompt format, and the starting adapter where there is one."""
    policy: Mapping[str, Any]
    """Name, version of the bundle's format (None without a bundle), digest of the policy's card, the thresholds that
    the card has, the strategy of a policy that always chooses the same, and, where there is one, the share that is
    explored and the shadow policy."""
    versions: Mapping[str, str]
    """Of Python and of the packages."""

    @classmethod
    def of(cls, learner: Learner, policy: Policy) -> RunFacts:
        """The facts of a learner and a policy."""
        card, served = policy.card(), policy.served if isinstance(policy, ExploringPolicy) else {}
        return cls(
            model={
                "name": str(learner.loaded.name), "hash": learner.base_hash, "device": str(learner.loaded.model.device),
                "dtype": learner.guarded.precision, "prompt_format": learner.loaded.prompt_format,
                **({"starting_adapter": learner.adapters.starting_digest} if learner.adapters.starting_digest else {}),
            },
            policy={
                "name": policy.name, "version": card.get("format_version"),
                "digest": policy_digest(policy),
                "thresholds": {name: card[name] for name in _THRESHOLDS if name in card},
                "strategy": None if served.get("explore") else card.get("strategy"),
                **({"served": served} if served else {}),
            },
            versions={"python": platform.python_version(), **package_versions()},
        )  # fmt: skip
