"""Fixtures of the suite."""

from __future__ import annotations

import pytest

from pytest_spapr import Kind

from .kinds import KINDS


@pytest.fixture(params=KINDS, ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each kind of device in turn."""
    kind: Kind = request.param
    return kind
