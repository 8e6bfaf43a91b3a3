"""The keys of one image: the guest's ssh host key and the client key that it lets in. Made anew for each image that is built."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

_TYPE = b"ssh-ed25519"


@dataclass(frozen=True, slots=True)
class Keys:
    """A fresh set of keys.

    :ivar host_private: in dropbear's own format. :ivar host_openssh: the same key in OpenSSH's. :ivar client_private: in OpenSSH's.
    :ivar host_public: :ivar client_public: one line, ``ssh-ed25519 AAAA...``.
    """

    host_private: bytes
    host_openssh: bytes
    host_public: str
    client_private: bytes
    client_public: str


def generate() -> Keys:
    """Return new random keys."""
    host, client = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    return Keys(
        host_private=_dropbear(host),
        host_openssh=_openssh(host),
        host_public=_public(host),
        client_private=_openssh(client),
        client_public=_public(client),
    )


def _openssh(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def _public(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def _dropbear(key: Ed25519PrivateKey) -> bytes:
    """Return the key as dropbear stores it: two strings of RFC 4251, the type, and seed and public key together."""
    seed = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return _string(_TYPE) + _string(seed + public)


def _string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data
