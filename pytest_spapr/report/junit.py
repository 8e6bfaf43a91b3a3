"""Properties of a test for junit files."""

from __future__ import annotations

from pytest_spapr.report.summary import Facts


def properties(facts: Facts) -> list[tuple[str, str]]:
    """Return the ``spapr_*`` properties of one test; those that have no value are left out."""
    outcomes = " ".join(f"{name}={count}" for name, count in sorted(facts["outcomes"].items()))
    pairs = [
        ("spapr_cell", facts["cell"]),
        ("spapr_qemu", facts["qemu"]),
        ("spapr_kernel", facts["kernel"]),
        ("spapr_accel", facts["accel"]),
        ("spapr_outcomes", outcomes),
        ("spapr_defects", " ".join(facts["defects"])),
        ("spapr_artefacts", facts["artefacts"] or ""),
    ]
    return [(name, value) for name, value in pairs if value]
