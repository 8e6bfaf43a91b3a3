"""What a QEMU build is and can do: asked of the binary once, and remembered by its hash."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pytest_spapr.errors import BuildError
from pytest_spapr.qemu import behaviour, capabilities
from pytest_spapr.qemu.bound import CANNOT_EXECUTE, bound
from pytest_spapr.qemu.passthrough import DRIVER
from pytest_spapr.qemu.process import exit_in_words

_TARGET: Final = "ppc64"
_SECONDS: Final = 60.0
# Raise it when the probe learns to ask for more.
_FORMAT: Final = 7
# A command, with a word of ours behind a colon where one command is asked twice, and its arguments.
_KVM: Final = "query-kvm"
_MODERN_MONITOR: Final = "monitor-qmp"
_Questions = dict[str, dict[str, Any]]
_QUESTIONS: Final[_Questions] = {
    "query-version": {},
    "query-target": {},
    "query-machines": {},
    _KVM: {},
    "query-qmp-schema": {},
    "query-command-line-options": {},
    "qom-list-types": {"implements": "device", "abstract": False},
    "qom-list-types:monitor": {"implements": _MODERN_MONITOR},
    "qom-list-properties:file": {"typename": "memory-backend-file"},
}
_PROPERTIES: Final = "qom-list-properties"
_BEHAVIOUR: Final = "behaviour"
_EXPECTED: Final = "Give the path of a qemu-system-ppc64 binary."


@dataclass(frozen=True, kw_only=True)
class QemuBuild:
    """One ``qemu-system-ppc64`` with its firmware.

    :ivar name: what the user called it. :ivar command: how to run it: the binary, or a loader and the binary.
    :ivar env: additions to the environment. :ivar version: e.g. ``(7, 2, 22)``. :ivar package: the distributor's words, or None.
    :ivar machines: machine types and their aliases. :ivar accelerators: those that work here, as QEMU says.
    :ivar features: QMP commands and events by name, ``-sandbox``, ``x-vof``, ``monitor-qmp``
        and ``memory-backend-file.rom`` where there are such, and what it does
        on hot-unplug (``behaviour.BEHAVIOURS``).
    :ivar devices: device models. :ivar sha256: of the binary.
    :ivar unprobed: why what it does on hot-unplug was taken from its version; None if it was observed.
    :ivar kvm_properties: of a machine that KVM is to run here, which it does not run without them; see ``capabilities``.
    """

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    binary: Path
    version: tuple[int, int, int]
    package: str | None
    machines: frozenset[str]
    accelerators: frozenset[str]
    features: frozenset[str]
    devices: frozenset[str]
    sha256: str
    unprobed: str | None = None
    kvm_properties: tuple[str, ...] = ()

    @property
    def version_text(self) -> str:
        """The version for people, e.g. ``QEMU 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)``."""
        number = ".".join(map(str, self.version))
        return f"QEMU {number} ({self.package})" if self.package else f"QEMU {number}"


def probe(command: Sequence[str], env: Mapping[str, str], binary: Path, cache: Path | None, name: str) -> QemuBuild:
    """Return what a build can do. Runs it for about 0.6 s, and not at all when its hash is in the cache.

    A build with KVM compiled in is asked each time whether that works, and with which machines: it depends on the host's processor,
    modules and permissions too.

    :param command: how to run it, without arguments of ours. :param env: additions to the environment.
    :param binary: the file whose hash names the answers. :param cache: a directory for answers, or None.
    :raises BuildError: it is missing, not executable, no QEMU, for another target, without pseries machines, or crashes.
    """
    digest = _sha256(binary)
    key = hashlib.sha256(json.dumps([_FORMAT, digest, *command, sorted(env.items())]).encode()).hexdigest()
    stored = cache / f"{key}.json" if cache is not None else None
    answers = _load(stored)
    if answers is None:
        answers = _ask(command, env, binary, _QUESTIONS)
        machine = _default_machine(answers, binary)
        answers |= _ask(command, env, binary, {_PROPERTIES: {"typename": f"{machine}-machine"}})
        _store(stored, answers)
    elif answers[_KVM]["present"]:
        answers |= _ask(command, env, binary, {_KVM: {}})
    unprobed = None
    if _BEHAVIOUR not in answers:
        try:
            modern = bool(answers["qom-list-types:monitor"])
            passthrough = any(entry["name"] == DRIVER for entry in answers["qom-list-types"])
            found = behaviour.observe(command, env, modern_monitor=modern, passthrough=passthrough)
            answers[_BEHAVIOUR] = sorted(found)
            _store(stored, answers)
        except behaviour.NotProbed as error:
            # Not stored: the next run tries again.
            unprobed = str(error)
    build = _build(answers, name=name, command=tuple(command), env=dict(env), binary=binary, sha256=digest)
    does = frozenset(answers[_BEHAVIOUR]) if unprobed is None else behaviour.by_version(build.version)
    properties = capabilities.lacking(command, env) if "kvm" in build.accelerators else ()
    return replace(build, features=build.features | does, unprobed=unprobed, kvm_properties=properties)


def _sha256(binary: Path) -> str:
    """Return the hash of a file that can be executed. :raises BuildError: there is none such."""
    try:
        with binary.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise BuildError(f"{binary}: there is no such file. {_EXPECTED}") from error
    except IsADirectoryError as error:
        raise BuildError(f"{binary} is a directory, not a file. {_EXPECTED}") from error
    except OSError as error:
        raise BuildError(f"{binary} cannot be read: {error.strerror}. {_EXPECTED}") from error
    if not os.access(binary, os.X_OK):
        raise BuildError(f"{binary} is not executable: `chmod +x` it, or look at the file system's mount options. {_EXPECTED}")
    return digest


def _ask(command: Sequence[str], env: Mapping[str, str], binary: Path, questions: _Questions) -> dict[str, Any]:
    """Put all questions to a machine of no type and return the answers by question.

    :raises BuildError: it does not answer all of them.
    """
    arguments = ["-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", "-S", "-qmp", "stdio"]
    # Trying KVM first is the only way to hear from QEMU whether it works here: query-kvm speaks of the accelerator that runs.
    arguments += ["-accel", "kvm", "-accel", "tcg"]
    commands: list[dict[str, Any]] = [{"execute": "qmp_capabilities"}]
    commands += [{"execute": name.partition(":")[0], "arguments": asked, "id": name} for name, asked in questions.items()]
    lines = "".join(json.dumps(line) + "\n" for line in commands)
    status, stdout, stderr = _run([*command, *arguments], env, binary, lines, commands[-1]["id"])
    answers: dict[str, Any] = {}
    for line in stdout.splitlines():
        with suppress(ValueError):
            message = json.loads(line)
            if isinstance(message, dict) and message.get("id") in tuple(questions) and "return" in message:
                answers[message["id"]] = message["return"]
    if len(answers) < len(questions):
        words = " | ".join((stderr or stdout).strip().splitlines()[-3:]) or "nothing"
        what = "is a QEMU that failed" if answers or '"QMP"' in stdout or status < 0 else "is not a QEMU"
        raise BuildError(f"{binary} {what}: asked for its QMP it {exit_in_words(status)} and said: {words}. {_EXPECTED}")
    return answers


def _run(command: Sequence[str], env: Mapping[str, str], binary: Path, lines: str, last: str) -> tuple[int, str, str]:
    """Run a command, with all that it starts, for a limited time, and return its exit status and what it wrote."""
    with tempfile.TemporaryFile("w+", errors="replace") as stderr:
        try:
            popen = subprocess.Popen(
                bound([*command]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                errors="replace",
                env={**os.environ, **env},
                start_new_session=True,
            )
        except OSError as error:
            raise BuildError(f"{binary} cannot be executed: {error.strerror}. {_EXPECTED}") from error
        overdue = threading.Event()

        def give_up() -> None:
            overdue.set()
            os.killpg(popen.pid, signal.SIGKILL)

        guard = threading.Timer(_SECONDS, give_up)
        with popen:
            try:
                guard.start()
                stdout = _converse(popen, lines, last)
            finally:
                guard.cancel()
                # Also at Ctrl-C, and also what a shell script around QEMU started: that would hold the pipes open.
                if popen.poll() is None:
                    os.killpg(popen.pid, signal.SIGKILL)
        if overdue.is_set():
            raise BuildError(f"{binary} did not answer QMP within {_SECONDS:g} s and was killed. {_EXPECTED}")
        stderr.seek(0)
        words = stderr.read()
        if popen.returncode == CANNOT_EXECUTE and words.startswith("cannot execute"):
            raise BuildError(f"{binary} cannot be executed: {words.strip().rpartition(': ')[2]}. {_EXPECTED}")
        return popen.returncode, stdout, words


def _converse(popen: subprocess.Popen[str], lines: str, last: str) -> str:
    """Send the lines, and ``quit`` when the one with the id ``last`` was answered; return all that was said.

    Not before: a QEMU that quits throws away what it has not written by then, and the schema alone has 200 KB.
    """
    assert popen.stdin is not None
    assert popen.stdout is not None
    said = []
    # The pipe takes as much at once.
    with suppress(BrokenPipeError):
        os.write(popen.stdin.fileno(), lines.encode())
    for line in popen.stdout:
        said.append(line)
        if f'"id": "{last}"' in line and not popen.stdin.closed:
            with suppress(BrokenPipeError):
                os.write(popen.stdin.fileno(), b'{"execute": "quit"}\n')
            popen.stdin.close()
    popen.wait()
    return "".join(said)


def _default_machine(answers: Mapping[str, Any], binary: Path) -> str:
    """Return the machine type behind the alias ``pseries``.

    :raises BuildError: the build is for another target or has none.
    """
    target = answers["query-target"]["arch"]
    if target != _TARGET:
        raise BuildError(f"{binary} is a QEMU for {target}, expected one for {_TARGET}. {_EXPECTED}")
    for machine in answers["query-machines"]:
        if machine.get("alias") == "pseries":
            return str(machine["name"])
    known = ", ".join(sorted(machine["name"] for machine in answers["query-machines"]))
    raise BuildError(f"{binary} has no pseries machine, only {known}. Build it with CONFIG_PSERIES=y.")


def _build(
    answers: Mapping[str, Any], *, name: str, command: tuple[str, ...], env: Mapping[str, str], binary: Path, sha256: str
) -> QemuBuild:
    version = answers["query-version"]
    numbers = version["qemu"]
    machines = {word for machine in answers["query-machines"] for word in (machine["name"], machine.get("alias")) if word}
    features = {entry["name"] for entry in answers["query-qmp-schema"] if entry["meta-type"] in ("command", "event")}
    features |= {f"-{option['option']}" for option in answers["query-command-line-options"]}
    features |= {prop["name"] for prop in answers[_PROPERTIES] if prop["name"] == "x-vof"}
    features |= {entry["name"] for entry in answers["qom-list-types:monitor"]}
    features |= {f"memory-backend-file.{prop['name']}" for prop in answers["qom-list-properties:file"] if prop["name"] == "rom"}
    kvm = answers[_KVM]
    return QemuBuild(
        name=name,
        command=command,
        env=env,
        binary=binary,
        version=(numbers["major"], numbers["minor"], numbers["micro"]),
        package=version["package"].strip() or None,
        machines=frozenset(machines),
        accelerators=frozenset({"tcg", "kvm"} if kvm["present"] and kvm["enabled"] else {"tcg"}),
        features=frozenset(features),
        devices=frozenset(entry["name"] for entry in answers["qom-list-types"]),
        sha256=sha256,
    )


def _load(stored: Path | None) -> dict[str, Any] | None:
    """Return the answers of an earlier probe, or None; a damaged file is none."""
    if stored is None:
        return None
    try:
        seal, _, text = stored.read_text(encoding="utf-8").partition("\n")
    except (OSError, ValueError):
        return None
    answers: dict[str, Any] | None = json.loads(text) if seal == _seal(text) else None
    return answers


def _store(stored: Path | None, answers: Mapping[str, Any]) -> None:
    """Remember the answers; a cache that cannot be written costs the next run its 0.2 s and nothing else."""
    if stored is None:
        return
    text = json.dumps(answers)
    part = stored.with_suffix(f".{os.getpid()}")
    with suppress(OSError):
        # The cache is private: images in it hold keys.
        stored.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        stored.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            part.write_text(f"{_seal(text)}\n{text}", encoding="utf-8")
            part.replace(stored)
        finally:
            part.unlink(missing_ok=True)


def _seal(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
