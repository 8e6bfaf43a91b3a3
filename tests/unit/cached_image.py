"""An image in a cache, as the recipe debian-12 would give it, of which nothing could boot."""

from __future__ import annotations

from pytest_spapr.cache import Cache
from pytest_spapr.images import build, keys, store
from pytest_spapr.images import recipe as recipes


def publish_image(cache: Cache) -> str:
    """Put it there, and return its key."""
    recipe = recipes.load("debian-12")
    facts = {
        "name": recipe.name,
        "recipe": recipe.digest,
        "kernel_release": "6.1-test",
        "page_size": 65536,
        "packages": {"busybox": "1"},
        "modules": ["virtio"],
        "wanted_modules": ["virtio"],
        "console_shell": True,
    }
    files = {store.VMLINUX: b"elf", store.CLIENT_KEY: b"key", store.HOST_KEY: f"{keys.generate().host_public}\n".encode()}
    build._publish(cache, recipe.key, facts, {"userland": b"u", "modules": b"m", "keys": b"k"}, files)
    return recipe.key
