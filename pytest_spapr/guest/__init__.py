"""The guest operating system, seen from the host."""
