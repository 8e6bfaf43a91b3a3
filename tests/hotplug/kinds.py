"""A typical device of each kind, and the silence that is typical for it: the battery's."""

import pytest

from pytest_spapr import Kind
from pytest_spapr.battery.provoke import KINDS, SILENCE, plug, silenced

__all__ = ["KINDS", "PHB_SLOWLY", "SILENCE", "plug", "silenced"]

# For what is shown of a PHB elsewhere, too: its removal costs 9 s under TCG, in which drmgr looks through all slots of the guest for
# each of the PHB's 256.
PHB_SLOWLY = pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.spapr_slow) if kind is Kind.PHB else kind for kind in KINDS],
    indirect=True,
    ids=str,
)
