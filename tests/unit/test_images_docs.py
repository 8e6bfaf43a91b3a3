"""What docs/images.md says of an image's directory is what the package takes."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pytest_spapr.errors import ImageError
from pytest_spapr.images import keys, store

_DOCS = Path(__file__).parents[2] / "docs/images.md"
_CONTENT = {
    store.VMLINUX: b"kernel",
    store.INITRAMFS: b"initramfs",
    store.CLIENT_KEY: b"key",
    store.HOST_KEY: f"{keys.generate().host_public}\n".encode(),
}


@pytest.fixture
def manifest() -> dict[str, Any]:
    found = re.search(r"```json\n(.*?)```", _DOCS.read_text(), re.DOTALL)
    assert found is not None
    said: dict[str, Any] = json.loads(found[1])
    for name, facts in said["files"].items():
        facts["sha256"] = hashlib.sha256(_CONTENT[name]).hexdigest()
    return said


def _write(directory: Path, manifest: dict[str, Any]) -> None:
    for name, data in _CONTENT.items():
        (directory / name).write_bytes(data)
    (directory / store.MANIFEST).write_text(json.dumps(manifest))


def test_the_documented_manifest_is_an_image(tmp_path: Path, manifest: dict[str, Any]) -> None:
    _write(tmp_path, manifest)
    image = store.verify(tmp_path)
    assert (image.name, image.page_size, image.disk) == ("mine", 65536, None)


def test_nothing_that_it_names_may_be_missing(tmp_path: Path, manifest: dict[str, Any]) -> None:
    for key in manifest:
        _write(tmp_path, {name: value for name, value in manifest.items() if name != key})
        with pytest.raises(ImageError):
            store.open_image(tmp_path)


def test_each_file_that_it_lists_is_named() -> None:
    text = _DOCS.read_text()
    for name in (*store.FILES, store.DISK, store.MANIFEST):
        assert f"| `{name}` |" in text
