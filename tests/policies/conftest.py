"""Fixtures of the policy tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from autottt.policies import classifiers
from autottt.policies.policy import LearnedPolicy
from tests.policies.synthetic import trained


@pytest.fixture(scope="session", autouse=True)
def small_forests() -> Iterator[None]:
    """Forests of few trees: what the tests state holds for any number, and training takes a fifth of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifiers, "TREES", 12)
        yield


@pytest.fixture(scope="session")
def learned() -> LearnedPolicy:
    """A policy trained on synthetic outcomes with informative features."""
    return LearnedPolicy(trained())
