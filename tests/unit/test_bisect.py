"""The first bad commit of a small history that the tests make themselves. A build is a copy, and the test reads what it made.

A build changes a file of the commit, too, as some do: git must check out the next commit all the same.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from pytest_spapr import cli
from pytest_spapr.avocado.verdict import Tally
from pytest_spapr.bisect.asking import Answer, Said, State, read_answer, rule, runs_to_trust
from pytest_spapr.bisect.checkout import git
from pytest_spapr.bisect.making import Making
from pytest_spapr.builds.recipe import for_tree
from pytest_spapr.errors import BuildError, ConfigError

_SECONDS = 60.0
_BUILD = "grep -q broken answer && { echo 'answer.c:1: error'; exit 1; }; mkdir -p build; cp answer build/qemu-system-ppc64; echo >> answer"
_TEST = """
import os, pathlib, pytest

def test_the_answer(pytestconfig):
    binary = pytestconfig.getoption("spapr_kernel") or pytestconfig.getoption("spapr_qemu")[0]
    said = pathlib.Path(binary).read_text().strip()
    if said == "hangs" and os.path.exists({told!r}):
        with open({told!r}, "w") as told:
            told.write(str(os.getpid()))
        os.read(os.pipe()[0], 1)
    if said == "hangs":
        said = "good"
    if said == "skipped":
        pytest.skip("not with this one")
    if said == "flaky":
        count = pathlib.Path({count!r})
        count.write_text(count.read_text() + "x" if count.exists() else "x")
        said = "good" if len(count.read_text()) % 2 else "bad"
    assert said == "good"

@pytest.fixture
def machine_like(pytestconfig):
    raise RuntimeError("no machine")

def test_with_a_fixture_that_fails(machine_like):
    pass
"""
# As of the kernel: says with what it was called, and leaves what was asked for last.
_MAKE = """#!/bin/sh
echo "$@" >> {said}
for word in "$@"; do case $word in O=*) objects=${{word#O=}} ;; vmlinux) cp {tree}/answer $objects/vmlinux ;; esac; done
"""
PASSED, FAILED, UNKNOWN = Said(Answer.PASSED), Said(Answer.FAILED, "test_x"), Said(Answer.UNKNOWN, "1 skipped")


class History:
    """A repository with a commit for each answer. :ivar commits: their hashes. :ivar told: a pipe that a hanging test tells its pid."""

    def __init__(self, place: Path, answers: Sequence[str]) -> None:
        self.tree = place / "tree"
        self.tree.mkdir()
        self.told = place / "told"
        self.test = place / "test_answer.py"
        self.test.write_text(_TEST.format(told=str(self.told), count=str(place / "count")))
        self._git("init", "--quiet", "--initial-branch=main")
        self.commits = []
        for number, answer in enumerate(answers):
            (self.tree / "answer").write_text(f"{answer}\n")
            self._git("add", "answer")
            self._git("commit", "--quiet", "--allow-empty", "-m", f"commit {number}: {answer}")
            self.commits.append(self._git("rev-parse", "HEAD"))

    def command(self, *more: str, good: int | str = 0, bad: int | str = -1, test: str = "") -> list[str]:
        ends = [one if isinstance(one, str) else self.commits[one] for one in (good, bad)]
        words = ["bisect", f"--good={ends[0]}", f"--bad={ends[1]}", f"--qemu-tree={self.tree}", f"--build={_BUILD}", *more]
        return [*words, f"--output={self.tree.parent / 'output'}", "--", test or f"{self.test}::test_the_answer", "-q"]

    def state(self) -> tuple[str, ...]:
        """All that a bisection might leave in a tree: branch, files, references, and git's notes."""
        files = sorted(str(path.relative_to(self.tree)) for path in self.tree.rglob("*") if path.name != "index")
        asked = (("symbolic-ref", "HEAD"), ("for-each-ref",), ("status", "--porcelain"))
        return (*files, *(self._git(*words) for words in asked))

    def _git(self, *words: str) -> str:
        return git(self.tree, "-c", "user.name=Somebody", "-c", "user.email=somebody@example.org", *words)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("SPAPR_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SPAPR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_planted_commit_is_found_and_the_tree_is_left_as_it_was(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in a hook of git's.
    monkeypatch.setenv("GIT_DIR", str(place / "another/.git"))
    history = History(place, ["good", "good", "broken", "good", "good", "bad", "skipped", "bad", "bad"])
    (history.tree / "answer").write_text("not committed\n")
    before = history.state()
    assert cli.main(history.command()) == 0
    out, err = capsys.readouterr()
    assert "the first bad commit" in out
    assert f"commit {history.commits[5]}" in out
    assert "commit 5: bad" in out
    assert "commit 8: bad: bad: failed, 2 of 2 runs: test_answer::test_the_answer" in out
    assert "commit 0: good: good: passed, 2 of 2 runs" in out
    assert "answer is not committed" in err
    assert history.state() == before


def test_what_cannot_be_told_leaves_several_suspects(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history = History(place, ["good", "broken", "skipped", "bad"])
    assert cli.main(history.command("--runs=1")) == 1
    out = capsys.readouterr().out
    assert "the first bad commit is one of these 3" in out
    assert "commit 1: broken: cannot tell: it cannot be built: `" in out
    assert "answer.c:1: error" in out
    assert "commit 2: skipped: cannot tell: 1 skipped" in out


def test_a_flaky_commit_is_asked_again_and_called_so(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history = History(place, ["good", "flaky", "bad"])
    assert cli.main(history.command()) == 1
    out = capsys.readouterr().out
    assert "flaky: failed, 2 of 5 runs" in out
    assert "commit 1: flaky: failed in 2 of 5 runs; it was passed by" in out


def test_a_fault_that_shows_now_and_then_takes_more_runs_and_is_found(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history = History(place, ["good", "flaky"])
    assert cli.main(history.command()) == 0
    out, err = capsys.readouterr()
    assert "commit 1: flaky" in out.partition("the first bad commit")[2]
    # 2 of 5 runs failed: 0.6 to the power of 6 is less than 1 in 20.
    assert "a commit is good after 6 runs that pass" in err
    assert "commit 0: good: good: passed, 6 of 6 runs" in out


@pytest.mark.parametrize(
    ("answers", "ends", "says"),
    [
        (["good", "good"], (0, 1), r"the test does not fail at --bad \(.* commit 1: good\): it passed, 1 of 1 runs"),
        (["bad", "bad"], (0, 1), r"the test fails at --good \(.* commit 0: bad\) already: it failed, 1 of 1 runs"),
        (["skipped", "bad"], (0, 1), r"nothing can be told of --good \(.* commit 0: skipped\): 1 skipped"),
        (["good", "bad"], (1, 0), r"is no ancestor of .*: they have .* in common"),
        (["good", "bad"], (0, 0), r"are the same commit, .*: there is nothing between them"),
        (["good", "bad"], (0, "v9"), r"--bad=v9: --qemu-tree=.* has no such commit"),
    ],
)
def test_ends_that_cannot_be_searched_between_are_an_error_that_says_why(
    answers: list[str], ends: tuple[int | str, int | str], says: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history = History(place, answers)
    assert cli.main(history.command("--runs=1", good=ends[0], bad=ends[1])) == 2
    _matches(capsys.readouterr().err, says)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--qemu-tree=nowhere"], "--qemu-tree=nowhere: there is no such directory"),
        (["--qemu-tree=."], "--qemu-tree=. is no working tree of git: clone the repository"),
        (["--kernel-config=x"], "--kernel-config is for --kernel-tree without --build"),
        (["--", "--spapr-qemu=7.2"], "--spapr-qemu=7.2: what is tested is what each commit gives"),
        (["--", "no_such_test.py"], "nothing can be told of --bad .*: pytest refused its arguments"),
        (["--output=/dev/null/x"], "--output=/dev/null/x: nothing can be written there"),
    ],
)
def test_what_was_given_and_cannot_be_is_one_clear_message(
    change: list[str], says: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history = History(place, ["good", "bad"])
    command = history.command("--runs=1")
    divide = command.index("--")
    if change[0] == "--":
        command = [*command[:divide], *change]
    else:
        command[divide:divide] = change
    assert cli.main(command) == 2
    _matches(capsys.readouterr().err, says)


def test_errors_of_set_up_and_a_missing_report_do_not_make_a_commit_bad(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history = History(place, ["good", "bad"])
    assert cli.main(history.command("--runs=1", test=f"{history.test}::test_with_a_fixture_that_fails")) == 2
    assert "nothing can be told of --bad" in (err := capsys.readouterr().err)
    assert "1 error" in err
    assert read_answer(None, 0).answer is Answer.UNKNOWN
    assert read_answer(None, -9).answer is Answer.UNKNOWN
    assert read_answer(Tally(), 5).answer is Answer.UNKNOWN


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_whatever_ends_it_nothing_goes_on_and_the_next_search_succeeds(
    number: signal.Signals, status: int, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history = History(place, ["good", "hangs", "hangs", "bad"])
    before = history.state()
    os.mkfifo(history.told)
    words = [
        sys.executable,
        "-c",
        "import sys; from pytest_spapr.cli import main; sys.exit(main())",
        *history.command("--runs=1"),
    ]
    # A shell's background job ignores SIGINT, and so would this process; a handler becomes the default in a new program.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as search:
        signal.signal(signal.SIGINT, handler)
        try:
            with history.told.open() as told:
                test = os.pidfd_open(int(told.read()))
            search.send_signal(number)
            assert search.wait(_SECONDS) == status
        finally:
            search.kill()
    # A descriptor of a process is readable when that has ended.
    assert select.select([test], [], [], _SECONDS)[0]
    os.close(test)
    assert history.state() == before
    history.told.unlink()
    assert cli.main(history.command("--runs=1")) == 0
    assert "commit 3: bad" in capsys.readouterr().out.partition("the first bad commit")[2]


@pytest.mark.parametrize(
    ("said", "intermittent", "state", "asked"),
    [
        ([PASSED, PASSED, FAILED], False, State.GOOD, 2),
        ([FAILED, FAILED, PASSED], False, State.BAD, 2),
        ([FAILED, UNKNOWN], False, State.UNKNOWN, 2),
        ([PASSED, FAILED, FAILED, FAILED, FAILED, FAILED], False, State.UNKNOWN, 5),
        ([PASSED, FAILED, PASSED], True, State.BAD, 2),
        ([PASSED, PASSED, FAILED], True, State.GOOD, 2),
        ([FAILED], True, State.BAD, 1),
    ],
)
def test_answers_make_a_ruling(said: list[Said], intermittent: bool, state: State, asked: int) -> None:
    answers = iter(said)
    ruling = rule(lambda: next(answers), 2, intermittent=intermittent)
    assert ruling.state is state
    assert ruling.runs == asked
    assert ruling.flaky is (PASSED in said[:asked] and FAILED in said[:asked])
    assert {State.GOOD: 0, State.BAD: 1, State.UNKNOWN: 125}[state] == ruling.state.status


@pytest.mark.parametrize(("failed", "runs", "wanted"), [(5, 5, 1), (1, 2, 5), (1, 5, 14), (1, 100, 30)])
def test_a_rare_fault_wants_more_runs_up_to_a_bound(failed: int, runs: int, wanted: int) -> None:
    assert runs_to_trust(failed, runs) == wanted


def test_a_tree_is_built_as_its_version_wants_with_its_own_firmware() -> None:
    for version, meson in (("5.2.50", True), ("8.0.94", True), ("8.1.0", False), ("11.1.50", False)):
        recipe = for_tree(version)
        assert recipe.meson is meson
        assert "--target-list=ppc64-softmmu" in recipe.options
        assert not {"--disable-blobs", "--disable-install-blobs", "--disable-download"} & set(recipe.options)
    with pytest.raises(BuildError, match=r"QEMU 5\.1\.0 is too old"):
        for_tree("5.1.0")
    with pytest.raises(BuildError, match="no version of QEMU"):
        for_tree("devel")


def test_a_kernel_without_a_configuration_is_an_error_before_anything_is_built(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a kernel needs a configuration"):
        Making("kernel", 1).check()
    with pytest.raises(ConfigError, match="there is no such file"):
        Making("kernel", 1, config=str(tmp_path / "none")).check()


def test_a_kernel_is_built_with_its_configuration_and_given_as_one(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    history = History(place, ["good", "good", "bad"])
    (place / "my.config").write_text("CONFIG_X=y\n")
    tools = {"make": _MAKE.format(said=place / "said", tree='"$2"'), "powerpc64le-linux-gnu-gcc": "#!/bin/sh\n"}
    (place / "tools").mkdir()
    for name, text in tools.items():
        (place / "tools" / name).write_text(text)
        (place / "tools" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place / 'tools'}:{os.environ['PATH']}")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    ends = [
        f"--good={history.commits[0]}",
        f"--bad={history.commits[2]}",
        f"--kernel-tree={history.tree}",
        "--runs=1",
        "--jobs=3",
    ]
    assert cli.main(["bisect", *ends, "--kernel-config=my.config", "--", f"{history.test}::test_the_answer"]) == 0
    assert "commit 2: bad" in capsys.readouterr().out.partition("the first bad commit")[2]
    said = (place / "said").read_text().splitlines()
    root = next((place / "cache/build").glob("bisect-kernel-*"))
    words = f"-C {root}/src O={root}/obj ARCH=powerpc CROSS_COMPILE=powerpc64le-linux-gnu- -j3"
    assert said == 3 * [f"{words} olddefconfig", f"{words} vmlinux"]
    assert (root / "obj/.config").read_text() == "CONFIG_X=y\n"


def _matches(text: str, pattern: str) -> None:
    assert re.search(pattern, text, re.DOTALL), f"{pattern!r} is not in {text!r}"
