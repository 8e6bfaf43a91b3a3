"""A typical device of each kind, and the silence that is typical for it: the battery's."""

from pytest_spapr.battery.provoke import KINDS, SILENCE, plug, silenced

__all__ = ["KINDS", "SILENCE", "plug", "silenced"]
