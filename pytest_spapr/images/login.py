"""Who logs in to a guest, and with what; and what an ssh host key looks like."""

from __future__ import annotations

import base64
import binascii
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_spapr.errors import ConfigError

if TYPE_CHECKING:
    from pytest_spapr.config import Setting, Settings

ROOT: Final = "root"
#: The only type of host key that the plugin takes: others cost a guest under TCG seconds.
KEY_TYPE: Final = "ssh-ed25519"

# Of useradd, without the dollar sign: what could be taken for an option of ssh, or for a word of a shell, is no name.
_USER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
_KEY_BYTES: Final = 32
_FOREIGN: Final = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True)
class Login:
    """What a guest's ssh server is shown. :ivar key: a private key's file; None for a password. :ivar password: never shown."""

    user: str = ROOT
    key: Path | None = None
    password: str | None = field(default=None, repr=False)


def given_login(settings: Settings) -> Login | None:
    """Return the credentials that the user gave for a disk of his own, None where none were given.

    :raises ConfigError: they do not go together, or a file of them cannot be used.
    """
    user, key, password = settings.ssh_user, settings.ssh_key, settings.ssh_password_file
    if key.value is not None and password.value is not None:
        raise ConfigError(f"{key.label} and {password.label}: give one of them, a key or a password.")
    if user.value is not None and _USER.fullmatch(user.value) is None:
        raise ConfigError(f"{user.label}: this is no name of a user.")
    name = user.value or ROOT
    if key.value is not None:
        return Login(name, _private(key, key.value))
    if password.value is not None:
        return Login(name, password=_password(password, password.value))
    if user.named:
        raise ConfigError(
            f"{user.label} names a user but not how to log in: give --spapr-ssh-key or --spapr-ssh-password-file too."
        )
    return None


def require_host_key(key: str, where: str) -> str:
    """Return an ssh host key as it is compared: its type and the key, without a comment.

    :param where: it comes from, for the error. :raises ConfigError: it is none.
    """
    words = key.split()
    if not words:
        raise ConfigError(f"{where}: the ssh host key is empty; a line `{KEY_TYPE} AAAA...` is expected.")
    try:
        data = base64.b64decode(words[1], validate=True) if words[0] == KEY_TYPE and len(words) > 1 else b""
    except binascii.Error:
        data = b""
    head = len(KEY_TYPE).to_bytes(4) + KEY_TYPE.encode() + _KEY_BYTES.to_bytes(4)
    if not data.startswith(head) or len(data) != len(head) + _KEY_BYTES:
        raise ConfigError(f"{where}: {key[:80]!r} is no ssh host key; a line `{KEY_TYPE} AAAA...` is expected.")
    return " ".join(words[:2])


def _private(setting: Setting[Path | None], path: Path) -> Path:
    """Return the path of a file that is there and is its owner's alone."""
    try:
        found = path.stat()
    except OSError as error:
        raise ConfigError(f"{setting.label}: {error.strerror}.") from error
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{setting.label}: this is no file.")
    if found.st_mode & _FOREIGN:
        raise ConfigError(
            f"{setting.label}: others than its owner may read or write it (mode {stat.S_IMODE(found.st_mode):o}): chmod 600 it."
        )
    return path


def _password(setting: Setting[Path | None], path: Path) -> str:
    try:
        lines = _private(setting, path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{setting.label}: it cannot be read as text.") from error
    if len(lines) != 1 or not lines[0]:
        raise ConfigError(f"{setting.label}: one line is expected, the password; it has {len(lines)}.")
    return lines[0]
