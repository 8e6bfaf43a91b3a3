"""All checks, in the order in which they are told."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from pytest_spapr.cache import Cache
from pytest_spapr.config import Settings, Source
from pytest_spapr.doctor import host, python, storage, supplies, tools
from pytest_spapr.doctor.check import Check, State, Theme
from pytest_spapr.errors import SpaprError
from pytest_spapr.progress import Progress

_OURS: Final = re.compile(r"\bspapr (?=qemu|image)")
Look = Callable[[], Check | Iterable[Check]]


def examine(cells: Sequence[Settings], cache: Cache, progress: Progress) -> Iterator[Check]:
    """Yield what each check finds. Boots, fetches and mends nothing; 2 s, and 1 s more for each QEMU build that is new.

    :param cells: the settings of each pair of a QEMU build and a guest image.
    """
    progress.phase("examining")
    looks = _looks(cells, cache)
    for done, (theme, look) in enumerate(looks):
        progress.update(done, len(looks), f"checks, {theme}")
        for check in guarded(theme, look):
            yield _for_this_cache(check, cells[0])
    progress.done()


def guarded(theme: Theme, look: Look) -> Iterator[Check]:
    """Yield what a check finds; where it fails itself, that is what is wrong."""
    try:
        found = look()
        yield from [found] if isinstance(found, Check) else found
    except (SpaprError, OSError) as error:
        yield Check(theme, "examination", State.BROKEN, f"it could not be examined: {error}")


def _for_this_cache(check: Check, settings: Settings) -> Check:
    """Have a remedy mend the cache that was looked at, where only the command line of this look names it."""
    if check.remedy is None or settings.cache_dir.source is not Source.COMMAND_LINE:
        return check
    variable = f"SPAPR_CACHE_DIR={shlex.quote(str(settings.cache_dir.value))}"
    return replace(check, remedy=_OURS.sub(lambda found: f"{variable} {found[0]}", check.remedy))


def _looks(cells: Sequence[Settings], cache: Cache) -> list[tuple[Theme, Look]]:
    first = cells[0]
    builds = {cell.qemu.value: cell for cell in cells}.values()
    images = {cell.image.value: cell for cell in cells}.values()
    return [
        (Theme.PYTHON, python.interpreter),
        (Theme.PYTHON, python.needed),
        (Theme.PYTHON, python.extras),
        (Theme.HOST, host.slots),
        (Theme.HOST, host.memory),
        (Theme.HOST, host.kvm),
        (Theme.HOST, host.temporary),
        (Theme.HOST, host.loopback),
        (Theme.HOST, host.descriptors),
        (Theme.CACHE, lambda: storage.directory(cache, first.template_space.value)),
        (Theme.CACHE, lambda: storage.buildable(cache)),
        (Theme.QEMU, lambda: supplies.named(first)),
        *((Theme.QEMU, lambda cell=cell: supplies.build_under_test(cell, cache)) for cell in builds),
        (Theme.QEMU, lambda: supplies.stored_builds(first, cache)),
        *((Theme.IMAGES, lambda cell=cell: supplies.image_under_test(cell, cache)) for cell in images),
        (Theme.IMAGES, lambda: supplies.stored_images(cache)),
        (Theme.TOOLS, lambda: tools.apt(first)),
        (Theme.TOOLS, lambda: tools.compiler(cache)),
        (Theme.TOOLS, lambda: tools.libvirt(cache)),
        (Theme.TOOLS, lambda: tools.nested_host(cache)),
        (Theme.TOOLS, lambda: tools.browser(cache)),
        (Theme.TOOLS, tools.programs),
    ]
