"""What was done to a machine, written as a program of its own that does it again: for a bug report."""
