"""The rig of QEMU's breaks, with a source of three lines: what is broken, who is asked, what is written down, and where one goes on."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ci.mutation import __main__ as command
from ci.mutation.breaks import Break, read_breaks
from ci.mutation.results import Result, Results, table, write_table
from ci.mutation.rig import BROKEN, PLAIN, Rig
from ci.mutation.watchers import ROOT, Exploration, Probe, Seen, Suite, Watcher, commands
from pytest_spapr.builds import source
from pytest_spapr.builds.tree import PatchedTree
from pytest_spapr.errors import BuildError, ConfigError
from pytest_spapr.explore import findings
from pytest_spapr.qemu.behaviour import BEHAVIOURS

CODE = """\
void other(void);

static void release(Drc *drc);

static void release(Drc *drc)
{
    if (drc->asked) {
        drc->dev = NULL;
    }
}

static void keep(Drc *drc,
                 int more)
{
    if (drc->asked) {
        return;
    }
}
"""
RELEASE = Break(
    name="release", file="hw/drc.c", function="release", old="if (drc->asked) {", new="if (false) {", why="Nothing goes."
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    path = tmp_path / "pristine" / "hw" / "drc.c"
    path.parent.mkdir(parents=True)
    path.write_text(CODE)
    return tmp_path / "pristine"


@dataclass
class FakeWatcher:
    """Notices what the code of a build has and the unbroken one has not. :ivar asked: the builds that it was asked of."""

    name: str
    built: Path
    looks_for: str
    always: bool = False
    problem: str = ""
    asked: list[str] = field(default_factory=list)

    def watch(self, build: str, _broken: Break, _directory: Path) -> Seen:
        self.asked.append(build)
        if self.problem:
            return Seen(problem=self.problem)
        return Seen(said="it is there" if self.looks_for in (self.built / build).read_text() else "")

    def is_sound(self, build: str, seen: Seen, _directory: Path) -> bool:
        self.asked.append(build)
        return not self.always


def rig(tmp_path: Path, tree: Path, *watchers: Watcher) -> Rig:
    """A rig whose builds are copies of the code."""
    root = tmp_path / "root"
    root.mkdir()
    patched = PatchedTree(root, tree, ["patch"])
    patched.create()

    def make(name: str, patches: Sequence[Path]) -> None:
        patched.patch(patches)
        shutil.copy(patched.source / "hw/drc.c", tmp_path / name)

    return Rig(tree, make, watchers, tmp_path / "results")


needs_patch = pytest.mark.skipif(not shutil.which("patch"), reason="no patch here")


def test_a_break_changes_one_line_of_the_function_that_it_names(tree: Path) -> None:
    changed = [line for line in RELEASE.patch(tree).splitlines() if line[:1] in "+-" and line[:3] not in ("---", "+++")]
    assert changed == ["-    if (drc->asked) {", "+    if (false) {"]
    assert "@@ -4,7 +4,7 @@" in RELEASE.patch(tree)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"old": "if (drc->gone) {"},
            r"break release: hw/drc\.c, release: 'if \(drc->gone\) \{' stands there 0 times, expected once",
        ),
        ({"function": ""}, "stands there 2 times"),
        ({"function": "other"}, "stands there 0 times"),
        ({"file": "hw/none.c"}, r"break release: hw/none\.c: No such file or directory: no file of this QEMU"),
    ],
)
def test_a_break_that_does_not_fit_the_source_is_an_error_with_its_name(tree: Path, changes: dict[str, str], says: str) -> None:
    values: dict[str, Any] = {name: getattr(RELEASE, name) for name in ("name", "file", "function", "old", "new", "why")}
    with pytest.raises(ConfigError, match=says):
        Break(**{**values, **changes}).patch(tree)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1", r"expected \[\[break\]\] tables and nothing else"),
        ("[[break]]\nname = 'a'\nfile = 'f'\nold = 'x'\nwhy = 'w'", "break a has no new"),
        ("[[break]]\nname = 'a'\nfile = 'f'\nold = 'x'\nnew = 'y'\nwhy = 'w'\nline = 'z'", r"break a: what is line\? Known are"),
        ("[[break]]\nname = 'a'\nfile = 'f'\nold = 'x'\nnew = 'x'\nwhy = 'w'", "two different lines"),
        ("[[break]]\nname = 'a'\nfile = 'f'\nold = ' x'\nnew = 'y'\nwhy = 'w'", "without blanks around them"),
        ("[[break]]\nname = 'A b'\nfile = 'f'\nold = 'x'\nnew = 'y'\nwhy = 'w'", "a name has small letters"),
        ("[[break]]\nname = 'a'\nfile = 'f'\nold = 'x'\nnew = 'y'\nwhy = 'w'\ntests = 'z'", "a list of texts for tests"),
        ("[[break]]\nname = 'a'\nfile = 'f'\nold = 'x'\nnew = 'y'\nwhy = 'w'\n" * 2, "two breaks are called a"),
        ("[[", r"expected a TOML file"),
    ],
)
def test_breaks_that_cannot_be_read_are_told(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "breaks.toml").write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_breaks(tmp_path / "breaks.toml")


def test_the_breaks_of_this_project_can_be_read_and_their_tests_are_there() -> None:
    breaks = read_breaks(command.BREAKS)
    assert len(breaks) >= 20
    assert len({(one.file, one.function, one.old, one.new) for one in breaks}) == len(breaks)
    for file, _, test in (named.partition("::") for one in breaks for named in one.tests):
        assert f"def {test}" in (ROOT / file).read_text()
    assert set(tomllib.loads(command.BREAKS.read_text())) == {"break"}


@needs_patch
def test_the_first_watcher_that_notices_ends_a_break_and_the_dear_ones_are_not_asked(tmp_path: Path, tree: Path) -> None:
    blind = FakeWatcher("blind", tmp_path, "never there")
    sees = FakeWatcher("sees", tmp_path, "if (false)")
    dear = FakeWatcher("dear", tmp_path, "if (false)")
    result = rig(tmp_path, tree, blind, sees, dear).try_break(RELEASE)
    assert (result.by, result.said, result.problems) == ("sees", "it is there", [])
    assert (blind.asked, sees.asked, dear.asked) == ([BROKEN], [BROKEN, PLAIN], [])
    assert set(result.seconds) == {"build", "blind", "sees"}
    assert "+    if (false) {" in (tmp_path / "results/release/release.patch").read_text()


@needs_patch
def test_what_the_unbroken_build_shows_too_is_not_noticed(tmp_path: Path, tree: Path) -> None:
    cries = FakeWatcher("cries", tmp_path, "if (false)", always=True)
    ill = FakeWatcher("ill", tmp_path, "", problem="ill ended with status 3")
    result = rig(tmp_path, tree, cries, ill).try_break(RELEASE)
    assert result.by == ""
    assert result.problems == ["cries says of the unbroken build, too: it is there", "ill ended with status 3"]


@needs_patch
def test_each_break_is_built_without_the_one_before_it(tmp_path: Path, tree: Path) -> None:
    keep = Break(name="keep", file="hw/drc.c", function="keep", old="return;", new="drc = NULL;", why="It stays.")
    made = rig(tmp_path, tree)
    made.try_break(RELEASE)
    made.try_break(keep)
    assert (tmp_path / BROKEN).read_text() == CODE.replace("return;", "drc = NULL;")
    made.build_plain()
    assert (tmp_path / PLAIN).read_text() == CODE


def test_a_break_that_does_not_compile_is_not_noticed_and_says_so(tmp_path: Path, tree: Path) -> None:
    def make(_name: str, _patches: Sequence[Path]) -> None:
        raise BuildError("compiling QEMU failed")

    result = Rig(tree, make, (), tmp_path / "results").try_break(RELEASE)
    assert (result.by, result.problems) == ("", ["build: compiling QEMU failed"])


def test_the_table_tells_who_noticed_what_and_stands_between_its_marks(tmp_path: Path) -> None:
    other = Break(name="other", file="hw/pci.c", old="x", new="y", why="It goes.")
    third = Break(name="third", file="hw/pci.c", old="x", new="z", why="It goes.")
    results = Results(tmp_path)
    results.add(Result(name="release", key="1"))
    results.add(Result(name="release", key="1", by="explore", said="a | b"))
    results.add(Result(name="other", key="2"))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table -->\nold\n<!-- end of the table -->\nafter\n")
    write_table(page, table((RELEASE, other, third), results.read()))
    assert page.read_text().splitlines() == [
        "before",
        "<!-- table -->",
        "1 of 2 were noticed; 1 were not tried yet.",
        "",
        "| break | where | why it is wrong | noticed by | how |",
        "|---|---|---|---|---|",
        "| `release` | `hw/drc.c`, `release` | Nothing goes. | explore | `a \\| b` |",
        "| `other` | `hw/pci.c` | It goes. | **nobody** |  |",
        "<!-- end of the table -->",
        "after",
    ]
    with pytest.raises(ConfigError, match="between which the table goes"):
        write_table(tmp_path / "results.jsonl", "")


def test_results_that_are_none_are_told(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text('{"name": "a"}\n')
    with pytest.raises(ConfigError, match=r"results\.jsonl:1 is no result: .* Remove the line"):
        Results(tmp_path).read()


def build_with(*behaviours: str, unprobed: str | None = None) -> Any:
    return SimpleNamespace(features=frozenset({"x-vof", *behaviours}), unprobed=unprobed)


def test_the_probe_notices_what_a_build_does_otherwise_and_that_it_does_not_start(tmp_path: Path) -> None:
    heard, repeat = "core-refusal-heard", "repeat-pci-rejected"
    assert {heard, repeat} <= BEHAVIOURS.keys()
    builds = {
        PLAIN: build_with(heard),
        "same": build_with(heard),
        "other": build_with(repeat),
        "mute": build_with(unprobed="no\nx"),
    }

    def probed(name: str) -> Any:
        if name not in builds:
            raise BuildError("it ended\nat once")
        return builds[name]

    probe = Probe(probed, PLAIN)
    said = {name: probe.watch(name, RELEASE, tmp_path).said for name in ("same", "other", "mute", "dead")}
    assert said == {
        "same": "",
        "other": f"does not: {heard}, does: {repeat}",
        "mute": "no",
        "dead": "it does not start: it ended",
    }


class FakeCommands:
    """:ivar answers: status and what is said, for each command in turn. :ivar given: the commands."""

    def __init__(self, *answers: tuple[int | None, str]) -> None:
        self.answers = list(answers)
        self.given: list[Sequence[str]] = []

    def __call__(self, command: Sequence[str], log: Path) -> int | None:
        self.given.append(command)
        status, said = self.answers.pop(0)
        log.write_text(said)
        return status


def test_a_test_that_fails_is_run_with_the_unbroken_build_too(tmp_path: Path) -> None:
    run = FakeCommands(
        (1, ".F\nFAILED tests/a.py::test_b[x, y] - no\n1 failed"), (0, ""), (1, "FAILED tests/a.py::test_b[x, y] - no")
    )
    tests = Suite(run, "tests", lambda one: [f"tests/{one.name}.py"], ("--more",))
    seen = tests.watch(BROKEN, RELEASE, tmp_path)
    assert seen == Seen(said="tests/a.py::test_b[x, y]", tests=("tests/a.py::test_b[x, y]",))
    assert run.given[0][-2:] == ["--more", "tests/release.py"]
    assert tests.is_sound(PLAIN, seen, tmp_path)
    assert not tests.is_sound(PLAIN, seen, tmp_path)
    assert run.given[1][-1] == "tests/a.py::test_b[x, y]"
    assert f"--spapr-qemu={PLAIN}" in run.given[1]


@pytest.mark.parametrize(
    ("status", "said", "problem"),
    [
        (None, "half\n", "tests took too long: half"),
        (5, "no tests ran\n\n", "tests ended with status 5: no tests ran"),
        (1, "", "tests ended with status 1: it said nothing"),
    ],
)
def test_a_run_that_tells_nothing_is_a_problem_and_no_notice(tmp_path: Path, status: int | None, said: str, problem: str) -> None:
    tests = Suite(FakeCommands((status, said)), "tests", lambda _: ["tests/a.py"])
    assert tests.watch(BROKEN, RELEASE, tmp_path) == Seen(problem=problem)


def test_exploration_tells_what_broke_and_the_unbroken_build_is_explored_once(tmp_path: Path) -> None:
    run = FakeCommands((1, ""), (0, ""))
    findings.save(tmp_path / "explore-1/violation-1/history.json", (), "device_del core: it went")
    explore = Exploration(run)
    seen = explore.watch(BROKEN, RELEASE, tmp_path)
    assert seen == Seen(said="device_del core: it went")
    assert explore.is_sound(PLAIN, seen, tmp_path)
    assert explore.is_sound(PLAIN, seen, tmp_path)
    assert [f"--qemu={build}" in given for build, given in zip((BROKEN, PLAIN), run.given, strict=True)] == [True, True]


def test_a_command_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    assert commands(0.5 / 60)(["sleep", "60"], tmp_path / "log") is None
    assert commands(1)(["sh", "-c", "echo said; exit 3"], tmp_path / "log") == 3
    assert (tmp_path / "log").read_text() == "said\n"


def test_a_run_goes_on_where_it_was_and_does_again_what_was_changed(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    breaks = tmp_path / "breaks.toml"
    entry = "[[break]]\nname = '{}'\nfile = 'hw/drc.c'\nfunction = 'keep'\nold = 'return;'\nnew = '{}'\nwhy = 'w'\n"
    breaks.write_text(entry.format("a", "x;") + entry.format("b", "y;"))
    page = tmp_path / "page.md"
    page.write_text("<!-- table -->\n<!-- end of the table -->\n")
    built: list[str] = []

    class Notices:
        name = "fake"

        def watch(self, _build: str, broken: Break, _directory: Path) -> Seen:
            built.append(broken.name)
            return Seen(said="yes" if broken.new != "y;" else "")

        def is_sound(self, _build: str, _seen: Seen, _directory: Path) -> bool:
            return True

    monkeypatch.setattr(command, "BREAKS", breaks)
    monkeypatch.setattr(command, "watchers", lambda *_: (Notices(),))
    monkeypatch.setattr(command, "_make", lambda *_: lambda _name, _patches: None)
    monkeypatch.setattr(source, "pristine", lambda *_: nullcontext(tree))
    words = [f"--results={tmp_path / 'results'}", f"--page={page}", f"--cache-dir={tmp_path / 'cache'}"]
    assert command.main(words) == 1
    assert "1 of 2 breaks noticed" in capsys.readouterr().out
    assert command.main(words) == 1
    assert built == ["a", "b"]
    assert "NOT NOTICED: b" in capsys.readouterr().out
    assert command.main([*words, "--again"]) == 1
    assert built == ["a", "b", "b"]
    breaks.write_text(entry.format("a", "z;") + entry.format("b", "x;"))
    assert command.main(words) == 0
    assert built == ["a", "b", "b", "a", "b"]
    assert "2 of 2 were noticed." in page.read_text()
    breaks.write_text(entry.format("a", "z;") + entry.format("b", "x;").replace("return;", "gone;"))
    assert command.main(words) == 2
    assert "break b: hw/drc.c, keep: 'gone;' stands there 0 times" in capsys.readouterr().err
    assert command.main([*words, "nonesuch"]) == 2
    assert "no break is called nonesuch" in capsys.readouterr().err
