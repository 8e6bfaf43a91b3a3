"""What is said about a run: artefacts of a failed test, the terminal's summary, junit properties. Knows no pytest."""
