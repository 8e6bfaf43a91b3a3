"""QEMU built from Debian's source with patches of the user's, without root and without anything installed by hand.

::

    CACHE/source/qemu-SOURCE/           Debian's source with Debian's patches, and the firmware that goes with it
    CACHE/toolchain/SUITE-ARCH/         compiler, tools, headers (toolchain.py)
    CACHE/build/SOURCE-ARCH/            the kept tree: src/ obj/ build.log
    CACHE/qemu/NAME-ARCH/               the finished build, with its own libraries: like a packaged one

The tree is kept for each source, not for each name: the next build of the same source compiles only what other patches change.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pytest_spapr.builds import packages, store, toolchain
from pytest_spapr.builds.make import Maker
from pytest_spapr.builds.recipe import RECIPES
from pytest_spapr.builds.toolchain import Toolchain
from pytest_spapr.builds.tree import PatchedTree, contents
from pytest_spapr.cache import Cache, Entry, cache_errors
from pytest_spapr.debian.apt import SOURCE, AptState, file_sha256
from pytest_spapr.debian.source import unpack_source, version_of
from pytest_spapr.debian.unpack import unpack
from pytest_spapr.errors import BuildError, CacheError
from pytest_spapr.progress import Progress

KIND: Final = "source"
TREES: Final = "build"
_MANIFEST: Final = "source.json"
_FIRMWARE: Final = "qemu-system-data"
_FORMAT: Final = 1
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]*")


@dataclass(frozen=True)
class _Source:
    """Debian's source in the cache. :ivar pristine: the tree. :ivar firmware: the directory for ``-L``."""

    pristine: Path
    firmware: Path
    manifest: Mapping[str, Any]


def build(
    source: str,
    name: str,
    patches: Sequence[Path],
    cache: Cache,
    mirror: Callable[[], str],
    progress: Progress,
    *,
    jobs: int,
) -> store.StoredQemu:
    """Build a QEMU and put it into the store as ``name``, in place of an earlier build of this name.

    The first build of a source takes about 5 minutes on 2 CPUs, 100 MB from the mirror and 0.6 GB of disk; later ones only what the
    patches make necessary. Where anything fails, the store is as it was.

    :param source: the name of a packaged build, whose source is taken. :param patches: applied in this order on top of Debian's.
    :param mirror: called for the mirror's base URL only when there is something to fetch. :param jobs: compilers at a time.
    :raises CacheError: the cache's path is none to build in.
    :raises BuildError: an unknown source, a name that cannot be one, a patch that does not apply, or a failed build.
    :raises SpaprError: what fetching and verifying packages raises.
    """
    _check(source, name, cache)
    architecture = store.architecture()
    recipe = RECIPES[source]
    digests = [{"name": patch.name, "sha256": hashlib.sha256(contents(patch)).hexdigest()} for patch in patches]
    place = f"{source}-{architecture}"
    with ExitStack() as hold:
        tools = toolchain.obtain(recipe.toolchain, architecture, cache, mirror, progress, hold)
        debian = _obtain(source, architecture, tools, cache, mirror, progress, hold)
        hold.enter_context(cache.lock(f"{TREES}-{place}", progress))
        root = cache.directory(TREES, place)
        maker = Maker(root, tools, debian.manifest["version"], recipe, progress)
        tree = PatchedTree(root, debian.pristine, [tools.tool("patch")])
        if not maker.is_current(tree.source):
            cache.require_space(1_000_000_000, f"building QEMU {source}")
            tree.create()
            maker.forget()
        progress.phase(f"patching QEMU {source}")
        changed = tree.patch(patches)
        if any(Path(path).name == "configure" for path in changed):
            maker.forget()
        binary = maker.make(tree.source, jobs)
        manifest = {
            "format": _FORMAT,
            "architecture": architecture,
            "source": {"name": source, "version": debian.manifest["version"], "files": debian.manifest["files"]},
            "patches": digests,
            "configure": maker.configure_line,
            "packages": {**tools.packages, _FIRMWARE: debian.manifest["firmware"]},
        }
        with cache.lock(f"qemu-{store.key_of(name, architecture)}", progress):
            _publish(cache, name, binary, tools, debian, manifest, progress)
    progress.done()
    found = store.find(cache, name)
    if found is None:
        raise BuildError(f"the QEMU build {name} was removed from the cache {cache.root} while it was built: try again.")
    return found


@contextmanager
def pristine(source: str, cache: Cache) -> Iterator[Path]:
    """Have the directory of Debian's source as builds begin with it, for reading only; it is not removed inside the ``with`` block.

    :param source: as for :func:`build`, which puts it there. :raises BuildError: it is not there.
    """
    key = f"qemu-{source}"
    tree = cache.entry(KIND, key) / "pristine"
    if not tree.is_dir():
        raise BuildError(
            f"the source of QEMU {source} is not in the cache {cache.root}: `spapr qemu build --source={source}` gets it."
        )
    with cache.using(KIND, key):
        yield tree


def trees(cache: Cache) -> list[Entry]:
    """Return what is kept only to build again sooner: toolchains, sources and build trees."""
    return [entry for kind in (toolchain.KIND, KIND, TREES) for entry in cache.entries(kind)]


def remove_tree(cache: Cache, entry: Entry, progress: Progress) -> None:
    """Remove one of :func:`trees`, after the builds that use it."""
    with cache.lock(f"{entry.kind}-{entry.key}", progress):
        cache.remove_unused(entry.kind, entry.key, wait=progress)


def require_buildable(cache: Cache) -> None:
    """Check that QEMU can be built in a cache that is there. :raises CacheError: its configure takes no such path."""
    if re.search(r"[\s:']", str(cache.root)):
        raise CacheError(
            f"QEMU cannot be built in {cache.root}: its configure takes no directory with blanks or colons. Set SPAPR_CACHE_DIR."
        )


def _check(source: str, name: str, cache: Cache) -> None:
    require_buildable(cache)
    if source not in RECIPES:
        raise BuildError(f"there is no source called {source!r}: known are {', '.join(RECIPES)}.")
    if not _NAME.fullmatch(name):
        raise BuildError(
            f"{name!r} cannot name a build: letters, digits and . _ + ~ - are allowed, the first a letter or a digit."
        )
    if name in packages.SOURCES:
        raise BuildError(f"{name} is the name of a packaged build: give the one that is built from source another --name.")


def _obtain(
    source: str,
    architecture: str,
    tools: Toolchain,
    cache: Cache,
    mirror: Callable[[], str],
    progress: Progress,
    hold: ExitStack,
) -> _Source:
    """Return Debian's source, from the cache or else from the mirror, verified by apt against the suite's signed index.

    :param hold: nobody removes it before this is closed.
    """
    key = f"qemu-{source}"
    with cache.lock(f"{KIND}-{key}", progress):
        entry = cache.entry(KIND, key)
        if not (entry / _MANIFEST).exists():
            origin, url = packages.SOURCES[source], mirror()
            sources = AptState(cache, url, origin.suites, SOURCE, progress, target=origin.target)
            with cache.lock(sources.name, progress):
                files = sources.fetch_source("qemu")
                cache.require_space(1_000_000_000, f"unpacking QEMU {source}'s source")
                progress.phase(f"unpacking QEMU {source}'s source")
                with cache.publish(KIND, key) as scratch:
                    unpack_source(files, scratch / "pristine", [tools.tool("patch")], progress)
                    version = _add_firmware(scratch, source, architecture, cache, url, progress)
                    digests = {package.file: package.sha256 for package in files}
                    facts = {"format": _FORMAT, "version": version_of(files), "files": digests, "firmware": version}
                    with cache_errors(scratch):
                        (scratch / _MANIFEST).write_text(json.dumps(facts, indent=1))
        hold.enter_context(cache.using(KIND, key))
        manifest = json.loads((entry / _MANIFEST).read_text())
        return _Source(entry / "pristine", entry / "firmware", manifest)


def _add_firmware(scratch: Path, source: str, architecture: str, cache: Cache, url: str, progress: Progress) -> str:
    """Unpack the firmware, which Debian builds from sources of its own, and return its package's version."""
    origin = packages.SOURCES[source]
    # It is the same package for all architectures: any that the suite carries will do.
    listed = architecture if origin.architectures is None or architecture in origin.architectures else origin.architectures[0]
    apt = AptState(cache, url, origin.suites, listed, progress, target=origin.target)
    with cache.lock(apt.name, progress):
        debs = apt.fetch([_FIRMWARE], lambda package: package.name == _FIRMWARE)
        unpack(list(debs.values()), scratch / "data", ("usr/share/doc/*",), progress)
    with cache_errors(scratch):
        (scratch / "data" / store.FIRMWARE).rename(scratch / "firmware")
        shutil.rmtree(scratch / "data")
    return next(package.version for package in debs)


def _publish(
    cache: Cache, name: str, binary: Path, tools: Toolchain, debian: _Source, manifest: Mapping[str, Any], progress: Progress
) -> None:
    """Put the binary with its libraries, its loader and its firmware into the store."""
    progress.phase(f"storing QEMU {name}")
    with cache.publish(store.KIND, store.key_of(name, tools.architecture)) as scratch, cache_errors(scratch):
        root = scratch / "root"
        for library in (binary, *_libraries(binary, tools)):
            target = root / (store.BINARY if library == binary else library.relative_to(tools.prefix))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, target)
        _run([*tools.patchelf, "--remove-rpath", str(root / store.BINARY)], tools)
        shutil.copytree(debian.firmware, root / store.FIRMWARE, symlinks=True)
        facts = {**manifest, "binary": file_sha256(root / store.BINARY)}
        (scratch / store.MANIFEST).write_text(json.dumps(facts, indent=1))


def _libraries(binary: Path, tools: Toolchain) -> list[Path]:
    """Return the loader and all libraries that a binary needs, as the loader itself finds them."""
    loader = store.loader_below(tools.prefix, tools.architecture)
    assert loader is not None, "the toolchain runs through it"
    search = store.library_path(tools.prefix, tools.architecture)
    listed = _run([str(loader), "--library-path", search, "--list", str(binary)], tools)
    return [loader, *(Path(path) for path in re.findall(rf"=> ({re.escape(str(tools.prefix))}\S+)", listed))]


def _run(command: Sequence[str], tools: Toolchain) -> str:
    result = subprocess.run(command, env=dict(tools.environment), capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise BuildError(f"`{' '.join(command)}` failed: {(result.stderr or result.stdout).strip()}")
    return result.stdout
