"""Debian packages through apt itself, with a private state: no root, nothing of the host's package state read or changed.

Signatures and hashes are apt's business. What this module adds: the host's proxy and certificate settings go on working while its
sources, pins, hooks and sandbox user do not apply; any architecture and suite; a mirror in mid-update is tried again, visibly;
and a package that waits in the cache is checked against its signed hash each time it is used.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import tenacity

from pytest_spapr.cache import Cache, cache_errors, full_disk, megabytes
from pytest_spapr.debian.mirror import require_tools
from pytest_spapr.errors import CacheError, MirrorError, SpaprError, VerificationError
from pytest_spapr.progress import Progress

_KEYRINGS = tuple(Path("/usr/share/keyrings") / f"debian-archive-keyring.{suffix}" for suffix in ("gpg", "pgp"))
#: In place of an architecture: packages' sources.
SOURCE = "source"
_ATTEMPTS = 3
_URI_LINE = re.compile(r"'(?P<uri>[^']+)' (?P<file>\S+) (?P<size>\d+) SHA256:(?P<sha256>[0-9a-f]{64})$")

# Read after the host's own apt.conf (apt.conf(5), option -c), so that this wins and what it does not name stays the host's.
_CONFIG = """\
#clear APT::Architectures;
#clear APT::Update;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Invoke;
#clear DPkg::Pre-Install-Pkgs;
#clear APT::Default-Release;
APT {{
  Architecture "{architecture}";
  Architectures {{ "{architecture}"; }};
  // Root's apt would change to a user that cannot write into a private directory; for others this does nothing.
  Sandbox::User "root";
  Install-Recommends "false";
  Install-Suggests "false";
  Get::AllowUnauthenticated "false";
  Update::Error-Mode "any";
}};
Dir {{
  State "{state}";
  State::lists "{state}/lists";
  State::status "{state}/status";
  State::extended_states "{state}/extended_states";
  Cache "{state}";
  Cache::archives "{state}/archives";
  Cache::pkgcache "";
  Cache::srcpkgcache "";
  Etc::sourcelist "{state}/sources.list";
  Etc::sourceparts "/dev/null";
  Etc::preferences "/dev/null";
  Etc::preferencesparts "/dev/null";
  Log "{state}";
}};
Acquire {{
  AllowInsecureRepositories "false";
  AllowWeakRepositories "false";
  AllowDowngradeToInsecureRepositories "false";
  Languages "none";
  PDiffs "false";
  ForceHash "SHA256";
}};
"""


@dataclass(frozen=True, slots=True)
class Package:
    """One package as the mirror's signed index describes it. :ivar size: bytes of the .deb. :ivar file: its name."""

    name: str
    version: str
    uri: str
    file: str
    size: int
    sha256: str


class _Transient(Exception):
    """A failure that a mirror in mid-update also shows: worth another try. Carries what to raise when none helps."""

    def __init__(self, error: SpaprError) -> None:
        self.error = error
        super().__init__(str(error))


class AptState:
    """apt's private state for one mirror, one set of suites and one architecture.

    The caller holds the cache's lock ``name`` while it uses this.

    :param suites: suite names; ``target`` is the one that wins where several have a package (backports need that).
    :param architecture: dpkg's name, native or foreign; ``source`` for source packages (:meth:`fetch_source`).
    :param keyring: the archive's keys; by default those that the host's debian-archive-keyring package brings.
    :param sleep: waits between attempts; tests pass their own.
    :raises MirrorError: when the host has no apt.
    :raises VerificationError: when it has no archive keys.
    """

    def __init__(
        self,
        cache: Cache,
        mirror: str,
        suites: Sequence[str],
        architecture: str,
        progress: Progress,
        *,
        target: str | None = None,
        keyring: Path | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        require_tools()
        self.mirror = mirror
        self.suites = tuple(suites)
        self.architecture = architecture
        self._cache = cache
        self._progress = progress
        self._target = target
        self._sleep = sleep
        keyring = keyring or host_keyring()
        # The mirror is part of the key: lists of one mirror say nothing about another's files.
        digest = hashlib.sha256(f"{mirror} {keyring}".encode()).hexdigest()[:8]
        self.name = f"apt-{'+'.join(suites)}-{architecture}-{digest}"
        self._state = cache.directory("apt", self.name)
        self._packages = cache.directory("packages", architecture)
        self._write_state(keyring)

    def _write_state(self, keyring: Path) -> None:
        if any(character in str(self._state) for character in '"\n\\'):
            raise CacheError(f"apt cannot work in {self._state}: its name has a quote or a newline. Set SPAPR_CACHE_DIR.")
        # target=: apt would also fetch whatever indexes the host's tools ask for (translations, contents, DEP-11).
        native = "amd64" if self.architecture == SOURCE else self.architecture
        line = "deb-src [target=Sources" if self.architecture == SOURCE else f"deb [arch={native} target=Packages"
        with cache_errors(self._state):
            for directory in ("lists/partial", "archives/partial"):
                (self._state / directory).mkdir(parents=True, exist_ok=True)
            (self._state / "status").write_text("")
            (self._state / "sources.list").write_text(
                "".join(f"{line} signed-by={keyring}] {self.mirror} {suite} main\n" for suite in self.suites)
            )
            (self._state / "apt.conf").write_text(_CONFIG.format(architecture=native, state=self._state))

    @property
    def has_lists(self) -> bool:
        """Whether :meth:`update` has succeeded before: without network, what is known stays usable."""
        return (self._state / "updated").exists()

    def update(self) -> None:
        """Fetch the suites' signed package lists: about 9 MB each, a few seconds.

        :raises VerificationError: wrong or missing signature, or a list whose hash is not the signed one.
        :raises MirrorError: the mirror does not answer or lacks a suite.
        :raises CacheError: the disk is full.
        """
        (self._state / "updated").unlink(missing_ok=True)
        self._retried(f"package lists of {', '.join(self.suites)} ({self.architecture})", lambda: self._apt("update"))
        (self._state / "updated").touch()

    def resolve(self, names: Iterable[str]) -> list[Package]:
        """Return these packages and all that they depend on, for an empty system; about a second.

        :raises MirrorError: when the suites have no such package, or its dependencies cannot be met.
        """
        release = ["-t", self._target] if self._target else []
        output = self._apt(*release, "--print-uris", "-y", "install", *names)
        return [_package(match) for line in output.splitlines() if (match := _URI_LINE.match(line))]

    def fetch(
        self, names: Sequence[str], wanted: Callable[[Package], bool] = lambda _package: True, *, newest: bool = False
    ) -> dict[Package, Path]:
        """Return the .debs of these packages and of what they depend on, as far as ``wanted``; all steps below in one.

        Without ``newest`` the lists that are there are used, and the network only for what is not in the cache.

        :raises SpaprError: see :meth:`update`, :meth:`resolve` and :meth:`download`.
        """

        def attempt(attempts: int) -> dict[Package, Path]:
            packages = [package for package in self.resolve(names) if wanted(package)]
            return dict(zip(packages, self.download(packages, attempts), strict=True))

        return self._with_lists(attempt, newest=newest)

    def _with_lists(self, attempt: Callable[[int], dict[Package, Path]], *, newest: bool) -> dict[Package, Path]:
        if not newest and self.has_lists:
            try:
                return attempt(1)
            except MirrorError:
                # The lists may be older than the mirror's last update, which replaces files.
                self._progress.phase("bringing the package lists up to date")
        self.update()
        return attempt(_ATTEMPTS)

    def fetch_source(self, name: str) -> dict[Package, Path]:
        """Return the files of a source package, the .dsc among them; each has the hash that the signed index gives. Not unpacked.

        :raises SpaprError: as :meth:`fetch`.
        """

        def attempt(attempts: int) -> dict[Package, Path]:
            # Elsewhere: apt does not name the files that are in its working directory already.
            output = self._apt(*self._source_command(name), "--print-uris", cwd=self._state)
            found = [match for line in output.splitlines() if (match := _URI_LINE.match(line))]
            version = next(
                match["file"].removesuffix(".dsc").partition("_")[2] for match in found if match["file"].endswith(".dsc")
            )
            files = [Package(name, version, match["uri"], match["file"], int(match["size"]), match["sha256"]) for match in found]
            return dict(zip(files, self.download(files, attempts), strict=True))

        return self._with_lists(attempt, newest=False)

    def download(self, packages: Sequence[Package], attempts: int = _ATTEMPTS) -> list[Path]:
        """Return the file of each package, from the cache or else from the mirror; each has its signed hash.

        :raises VerificationError: what the mirror sends is not what its signed index says.
        :raises MirrorError: the mirror does not have it, e.g. because the lists are older than its last update.
        :raises CacheError: the disk is full.
        """
        # The directory is that of all suites of the architecture: another run may be in the midst of writing the same file.
        with self._cache.lock(f"packages-{self.architecture}", self._progress):
            self._download([package for package in packages if not self._is_whole(package)], attempts)
        return [self._packages / package.file for package in packages]

    def _download(self, missing: Sequence[Package], attempts: int) -> None:
        if missing:
            size = sum(package.size for package in missing)
            self._cache.require_space(size + size // 10, f"downloading {len(missing)} packages")
            wanted = [f"{package.name}={package.version}" for package in missing]
            command = self._source_command(missing[0].name) if self.architecture == SOURCE else ["download", *wanted]
            self._retried(f"{len(missing)} packages, {megabytes(size)}", lambda: self._apt(*command), attempts)
        for package in missing:
            path = self._packages / package.file
            if path.is_symlink():
                # Of a file: mirror apt only links sources. A copy, before its hash is checked, is the cache's own.
                data = path.read_bytes()
                path.unlink()
                path.write_bytes(data)
            if not self._is_whole(package):
                raise VerificationError(
                    f"{package.file} from {self.mirror} does not have the size and SHA256 that the signed index gives "
                    f"({package.size} bytes, {package.sha256}). Nothing of it was used."
                )

    def _source_command(self, name: str) -> list[str]:
        return [*(["-t", self._target] if self._target else []), "--download-only", "source", name]

    def _is_whole(self, package: Package) -> bool:
        path = self._packages / package.file
        if not path.exists():
            return False
        if path.stat().st_size == package.size and file_sha256(path) == package.sha256:
            return True
        path.unlink()
        return False

    def _retried(self, what: str, action: Callable[[], object], attempts: int = _ATTEMPTS) -> None:
        """Try again what a mirror in mid-update can cause, and say so."""

        def say(state: tenacity.RetryCallState) -> None:
            again = f" (attempt {state.attempt_number} of {attempts})" if state.attempt_number > 1 else ""
            self._progress.phase(f"fetching {what}{again}")

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Transient),
            stop=tenacity.stop_after_attempt(attempts),
            wait=tenacity.wait_exponential(multiplier=2),
            before=say,
            sleep=self._sleep,
            reraise=True,
        )
        try:
            retrying(action)
        except _Transient as transient:
            raise transient.error from None

    def _apt(self, *arguments: str, cwd: Path | None = None) -> str:
        """Run apt-get and return its output, or raise what its failure means."""
        command = ["apt-get", "-c", str(self._state / "apt.conf"), *arguments]
        reader, writer = os.pipe()
        with os.fdopen(reader) as status, tempfile.TemporaryFile() as output:
            command[1:1] = ["-o", f"APT::Status-Fd={writer}"]
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=cwd or self._packages,
                    pass_fds=(writer,),
                    # apt's messages are matched below: in C they are the same on every machine.
                    env={**os.environ, "LC_ALL": "C"},
                )
            finally:
                os.close(writer)
            with process:
                for line in status:
                    self._report(line)
            output.seek(0)
            text = output.read().decode(errors="replace")
        # Old apts end update with 0 although an index is missing.
        if process.returncode != 0 or re.search(r"^W: (Failed to fetch|GPG error|Some index files)", text, re.MULTILINE):
            raise self._failure(arguments, text)
        return text

    def _report(self, line: str) -> None:
        # dlstatus:<number>:<percent>:Retrieving file <n> of <m> (...)
        if match := re.match(r"dlstatus:\d+:([\d.]+):.*?(\d+) of (\d+)", line):
            self._progress.update(int(match[2]), int(match[3]), f"({float(match[1]):.0f} %)")

    def _failure(self, arguments: Sequence[str], text: str) -> SpaprError | _Transient:
        said = [line for line in text.splitlines() if line.startswith(("E:", "W:", "Err:", "  "))]
        detail = "\n".join(f"  {line.strip()}" for line in dict.fromkeys(said)) or f"  {text.strip()[-500:]}"
        where = f"the mirror {self.mirror} ({', '.join(self.suites)}, {self.architecture})"

        def has(*needles: str) -> bool:
            return any(needle in text for needle in needles)

        if has("No space left on device", "enough free space"):
            return CacheError(full_disk(self._state))
        if has("Could not get lock"):
            # Its own lock, not the host's: an apt whose pytest was killed goes on for some seconds.
            return _Transient(
                CacheError(f"another apt-get still works in {self._state}: wait for it, or end it. apt said:\n{detail}")
            )
        if has("NO_PUBKEY"):
            return VerificationError(
                f"this machine's debian-archive-keyring does not have the key that {where} is signed with: bring the package up "
                f"to date, or give another mirror or suite. apt said:\n{detail}"
            )
        if has("Hash Sum mismatch", "File has unexpected size", "Mirror sync in progress"):
            return _Transient(
                VerificationError(
                    f"{where} sent data that does not match its signed hash, also when tried again. Either it is in the middle of an "
                    f"update (try again later, or another mirror) or the data was tampered with. None of it was used. apt said:\n"
                    f"{detail}"
                )
            )
        if has(
            "GPG error",
            "is not signed",
            "no longer signed",
            "invalid signature",
            "BADSIG",
            "unauthenticated",
            "Splitting up",
            "Clearsigned file",
        ):
            return VerificationError(f"{where} is not signed as it must be. None of its data was used. apt said:\n{detail}")
        if has("Unable to locate package", "has no installation candidate", "unmet dependencies", "was not found"):
            return MirrorError(f"{where} does not have what is asked for: {' '.join(arguments)}. apt said:\n{detail}")
        error = MirrorError(
            f"{where} does not serve what is needed. Check the network and the proxy settings, or give another mirror with "
            f"--spapr-debian-mirror=URL or SPAPR_DEBIAN_MIRROR. apt said:\n{detail}"
        )
        return _Transient(error) if has("404  Not Found", "Failed to fetch") else error


def _package(match: re.Match[str]) -> Package:
    name, version, _architecture = match["file"].removesuffix(".deb").split("_")
    return Package(name, unquote(version), match["uri"], match["file"], int(match["size"]), match["sha256"])


def host_keyring() -> Path:
    """Return the archive's keys that this machine has. :raises VerificationError: it has none."""
    for keyring in _KEYRINGS:
        if keyring.exists():
            return keyring
    raise VerificationError(
        f"this machine has no keys to check Debian packages with ({_KEYRINGS[0]} is missing): install debian-archive-keyring."
    )


def file_sha256(path: Path) -> str:
    """Return the file's SHA256 in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
