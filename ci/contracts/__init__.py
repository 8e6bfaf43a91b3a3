"""Breaks each fact of the contracts, to see that a test fails."""
