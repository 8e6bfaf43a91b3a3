"""Maintainers' proof that every fault of a passed-through device makes a difference that some test notices."""
