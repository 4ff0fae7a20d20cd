"""Fixtures of the policy tests."""

from __future__ import annotations

import pytest

from autottt.policies.policy import LearnedPolicy
from tests.policies.synthetic import trained


@pytest.fixture(scope="session")
def learned() -> LearnedPolicy:
    """A policy trained on synthetic outcomes with informative features."""
    return LearnedPolicy(trained())
