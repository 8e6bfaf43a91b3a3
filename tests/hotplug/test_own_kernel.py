"""A kernel of the user's own in the guest image."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_spapr import BootFailed, GuestImage, LaunchMachine
from pytest_spapr.cache import Cache
from pytest_spapr.images.build import with_kernel


def test_a_kernel_without_its_modules_is_named_as_the_reason(
    launch_machine: LaunchMachine, guest_image: GuestImage, tmp_path: Path
) -> None:
    """Debian's kernel needs its modules for the disk or the network: the message says what is missing."""
    bare = with_kernel(guest_image, guest_image.kernel, None, Cache(tmp_path))
    missing = "disk /dev/sda" if guest_image.disk else "network interface"
    with pytest.raises(BootFailed, match=f"its init says 'failed: no {missing}"):
        launch_machine(image=bare)
