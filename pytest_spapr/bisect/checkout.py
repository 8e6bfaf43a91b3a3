"""The user's repository, which is only read, and a working tree of our own that shares its objects.

``git bisect`` runs in ours: whatever becomes of it, and of who started it, the user's branch, files and bisections are as they were. It is
kept, so that the next bisection of the same repository compiles only what differs.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pytest_spapr.errors import ConfigError, SpaprError

#: In a hook of git's these name another repository than the directory that git is told.
_FOREIGN: Final = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_PREFIX")
_WORDS: Final = 2000


class GitFailed(SpaprError):
    """git did not do what it was told."""


def command(directory: Path, *words: str) -> list[str]:
    """Return the command that runs git in a directory, whatever the environment says of another."""
    return ["env", *(word for name in _FOREIGN for word in ("-u", name)), "git", "-C", str(directory), *words]


def git(directory: Path, *words: str) -> str:
    """Run git and return what it says, without the last newline. :raises GitFailed: in git's own words."""
    environment = {**os.environ, "LC_ALL": "C"}
    result = subprocess.run(command(directory, *words), env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise GitFailed(f"`git {' '.join(words)}` in {directory} failed: {(result.stderr or result.stdout).strip()[-_WORDS:]}")
    return result.stdout.rstrip("\n")


@dataclass(frozen=True, slots=True)
class Range:
    """Where to look: hashes of a commit that is good and a later one that is bad. :ivar dirty: what is changed and not committed."""

    good: str
    bad: str
    dirty: tuple[str, ...] = ()


class Repository:
    """The user's repository. :param directory: its working tree, or a directory in it.

    :raises ConfigError: it is in none.
    """

    def __init__(self, directory: Path, label: str) -> None:
        self.label = label
        if not directory.is_dir():
            raise ConfigError(f"{label}: there is no such directory. Give a working tree of git.")
        try:
            self.root = Path(git(directory, "rev-parse", "--show-toplevel"))
        except GitFailed as error:
            raise ConfigError(
                f"{label} is no working tree of git: clone the repository, and name the clone. ({error})"
            ) from error

    def range(self, good: str, bad: str) -> Range:
        """Return the two commits that these names mean.

        :raises ConfigError: one names no commit, or the good one does not come before the bad one.
        """
        first, last = self._commit("--good", good), self._commit("--bad", bad)
        if first == last:
            raise ConfigError(f"--good={good} and --bad={bad} are the same commit, {first[:12]}: there is nothing between them.")
        try:
            git(self.root, "merge-base", "--is-ancestor", first, last)
        except GitFailed as error:
            try:
                base = git(self.root, "merge-base", first, last)[:12]
            except GitFailed:
                base = "nothing"
            raise ConfigError(
                f"--good={good} ({first[:12]}) is no ancestor of --bad={bad} ({last[:12]}): they have {base} in common. Give a good "
                "commit that the bad one was made from; where they are the wrong way round, exchange them."
            ) from error
        changed = git(self.root, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all")
        return Range(first, last, tuple(line[3:] for line in changed.splitlines()))

    def subject(self, commit: str) -> str:
        """Return a commit in a line: the start of its hash and its title."""
        return git(self.root, "log", "-1", "--format=%h %s", commit)

    def described(self, commit: str) -> str:
        """Return a commit as ``git show`` tells it, and the names of the files that it changed."""
        return git(
            self.root, "show", "--no-color", "--stat", "--format=commit %H%nAuthor: %an <%ae>%nDate:   %ad%n%n    %s", commit
        )

    def between(self, which: Range) -> int:
        return int(git(self.root, "rev-list", "--count", which.bad, f"^{which.good}"))

    def _commit(self, option: str, name: str) -> str:
        try:
            return git(self.root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
        except GitFailed as error:
            shallow = git(self.root, "rev-parse", "--is-shallow-repository") == "true"
            hint = " It is a shallow clone: `git fetch --unshallow` gets the rest." if shallow else ""
            raise ConfigError(f"{option}={name}: {self.label} has no such commit.{hint}") from error


class Checkout:
    """Our working tree.

    :param root: a directory of our own, in which ``src`` is made. The caller sees to it that nobody else uses it.
    """

    def __init__(self, root: Path, repository: Repository) -> None:
        self.source = root / "src"
        self._repository = repository

    def prepare(self) -> None:
        """Make it, or bring back to order what a run that was killed has left. :raises GitFailed:"""
        meta = self.source / ".git"
        if not (meta / "HEAD").exists():
            kind = git(self._repository.root, "rev-parse", "--show-object-format")
            self.source.mkdir(exist_ok=True)
            git(self.source, "init", "--quiet", f"--object-format={kind}")
            # A user's hooks, and files of others' line endings, are not what is tested.
            for name, value in (("core.hooksPath", os.devnull), ("advice.detachedHead", "false"), ("gc.auto", "0")):
                git(self.source, "config", name, value)
        objects = self._theirs("objects")
        (meta / "objects/info/alternates").write_text(f"{objects}\n")
        (meta / "shallow").unlink(missing_ok=True)
        if (shallow := self._theirs("shallow")).exists():
            (meta / "shallow").write_bytes(shallow.read_bytes())
        self.reset()

    def checkout(self, commit: str) -> None:
        self.clean()
        git(self.source, "checkout", "--quiet", "--detach", commit)

    def start(self, which: Range) -> None:
        """Begin a bisection: git checks out the first commit to be told."""
        git(self.source, "bisect", "start", which.bad, which.good)

    def run_command(self, step: Sequence[str]) -> list[str]:
        """Return the command that has git go on to the end, with ``step`` to be run for each commit."""
        return command(self.source, "bisect", "run", *step)

    def suspects(self) -> list[str]:
        """Return what may be the first bad commit, by what git was told until now: the last of them is known to be bad."""
        goods = git(self.source, "for-each-ref", "--format=%(refname)", "refs/bisect/good-*").split()
        return git(self.source, "rev-list", "--reverse", "--topo-order", "refs/bisect/bad", "--not", *goods).split()

    def reset(self) -> None:
        """End a bisection, if there is one; a git that was killed in it leaves a lock."""
        (self.source / ".git/index.lock").unlink(missing_ok=True)
        self.clean()
        git(self.source, "bisect", "reset")

    def clean(self) -> None:
        """Take back what a build changed of the commit's own files; what it made stays for the next one."""
        try:
            git(self.source, "rev-parse", "--verify", "--quiet", "HEAD")
        except GitFailed:
            return  # nothing is checked out yet
        git(self.source, "reset", "--quiet", "--hard")

    def _theirs(self, name: str) -> Path:
        return self._repository.root / git(self._repository.root, "rev-parse", "--git-path", name)


def head(source: Path) -> str:
    """Return the hash of the commit that is checked out."""
    return git(source, "rev-parse", "HEAD")
