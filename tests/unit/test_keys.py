from __future__ import annotations

import base64
import struct

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

from pytest_spapr.images import keys


def strings(data: bytes) -> list[bytes]:
    found = []
    while data:
        (size,) = struct.unpack(">I", data[:4])
        found.append(data[4 : 4 + size])
        data = data[4 + size :]
    return found


def test_the_host_key_is_in_dropbears_format_and_is_the_one_that_is_pinned() -> None:
    fresh = keys.generate()
    kind, private = strings(fresh.host_private)
    assert (kind, len(private)) == (b"ssh-ed25519", 64)
    public = Ed25519PrivateKey.from_private_bytes(private[:32]).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    assert private[32:] == public
    name, blob = fresh.host_public.split()
    assert (name, strings(base64.b64decode(blob))) == ("ssh-ed25519", [b"ssh-ed25519", public])


def test_the_client_key_is_one_that_openssh_reads() -> None:
    fresh = keys.generate()
    key = load_ssh_private_key(fresh.client_private, None)
    assert key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() == fresh.client_public


def test_keys_are_never_the_same_twice() -> None:
    one, two = keys.generate(), keys.generate()
    assert len({one.host_private, two.host_private, one.client_private, two.client_private}) == 4
