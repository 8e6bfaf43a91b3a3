"""A typical device of each kind, and the silence that is typical for it: the battery's."""

import pytest

from pytest_spapr import Kind
from pytest_spapr.battery.provoke import KINDS, SILENCE, plug, silenced

__all__ = ["KINDS", "PHB_SLOWLY", "SILENCE", "plug", "silenced", "slowly"]


def slowly(*slow: Kind) -> pytest.MarkDecorator:
    """Return the parametrization by all kinds, of which these are for ``-m spapr_slow``."""
    kinds = [pytest.param(kind, marks=pytest.mark.spapr_slow) if kind in slow else kind for kind in KINDS]
    return pytest.mark.parametrize("kind", kinds, indirect=True, ids=str)


# For what is shown of a PHB elsewhere, too: its removal costs 9 s under TCG, in which drmgr looks through all slots of the guest for
# each of the PHB's 256.
PHB_SLOWLY = slowly(Kind.PHB)
