"""QEMU builds: made or fetched, and kept in the cache."""
