"""Disks of guest images, made in a guest: file systems and maintainer scripts want root, and the scripts another processor."""
