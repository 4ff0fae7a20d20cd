"""Fixtures of the policy tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from autottt.policies import classifiers, scorecard
from autottt.policies.policy import LearnedPolicy
from tests.policies.synthetic import trained


@pytest.fixture(scope="session", autouse=True)
def quick_training() -> Iterator[None]:
    """Few trees and few bootstrap resamples: what the tests state holds for any number, and training takes a fifth of
    the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifiers, "TREES", 12)
        patch.setattr(scorecard, "INTERVAL_RESAMPLES", 40)
        yield


@pytest.fixture(scope="session")
def learned() -> LearnedPolicy:
    """A policy trained on synthetic outcomes with informative features."""
    return LearnedPolicy(trained())
