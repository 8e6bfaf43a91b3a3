"""Debian packages: found, verified and downloaded by apt itself, and unpacked as an ordinary user."""
