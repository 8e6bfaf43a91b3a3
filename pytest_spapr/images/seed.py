"""A seed for cloud-init (its NoCloud source): a small ISO labelled ``cidata`` that lets root in with a key, and gives the guest its own.

It is made once for a cache. Nothing is installed by it: our guests have no network but the way to their ssh.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pytest_spapr.cache import Cache
from pytest_spapr.errors import ImageError
from pytest_spapr.images import keys
from pytest_spapr.images.login import Login, require_host_key

KIND: Final = "seeds"
LABEL: Final = "cidata"

_KEY: Final = "nocloud-1"
_ISO, _CLIENT_KEY, _HOST_KEY = "seed.iso", "client_key", "host_key.pub"
_META: Final = "instance-id: pytest-spapr\nlocal-hostname: pseries\n"
# cloud-init's cc_ssh gives the keys to root too, without the command that sends people away, where disable_root is false.
_USER: Final = """\
#cloud-config
disable_root: false
ssh_authorized_keys:
  - {client}
ssh_deletekeys: true
ssh_keys:
  ed25519_private: |
{private}
  ed25519_public: {host}
"""


@dataclass(frozen=True, slots=True)
class Seed:
    """A seed. :ivar iso: its file. :ivar login: whom it lets in. :ivar host_key: that the guest then has."""

    iso: Path
    login: Login
    host_key: str


def obtain(cache: Cache) -> Seed:
    """Return the cache's seed, made now if need be.

    :raises ImageError: what is there is damaged. :raises CacheError: it cannot be written.
    """
    entry = cache.entry(KIND, _KEY)
    with cache.lock(f"seed-{_KEY}"):
        if not entry.exists():
            fresh = keys.generate()
            with cache.publish(KIND, _KEY) as directory:
                (directory / _CLIENT_KEY).touch(mode=0o600)
                (directory / _CLIENT_KEY).write_bytes(fresh.client_private)
                (directory / _HOST_KEY).write_text(f"{fresh.host_public}\n")
                (directory / _ISO).touch(mode=0o600)
                (directory / _ISO).write_bytes(iso(user_data(fresh)))
    try:
        host_key = (entry / _HOST_KEY).read_text()
    except OSError as error:
        raise ImageError(f"the seed {entry} is damaged: {error.strerror}. Remove it.") from error
    return Seed(entry / _ISO, Login(key=entry / _CLIENT_KEY), require_host_key(host_key, str(entry / _HOST_KEY)))


def user_data(fresh: keys.Keys) -> str:
    """Return what cloud-init is to do."""
    private = "\n".join(f"    {line}" for line in fresh.host_openssh.decode().splitlines())
    return _USER.format(client=fresh.client_public, private=private, host=fresh.host_public)


def iso(user: str) -> bytes:
    """Return the image: ISO 9660 with the names that cloud-init looks for, as both Rock Ridge and Joliet have them."""
    # Imported here: few runs make one.
    import pycdlib

    image = pycdlib.PyCdlib()
    image.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=LABEL)
    for name, text in (("meta-data", _META), ("user-data", user)):
        data = text.encode()
        short = name.upper().replace("-", "_")
        image.add_fp(io.BytesIO(data), len(data), f"/{short}.;1", rr_name=name, joliet_path=f"/{name}")
    out = io.BytesIO()
    image.write_fp(out)
    image.close()
    return out.getvalue()
