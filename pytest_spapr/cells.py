"""A cell of the matrix: one QEMU build with one guest image, and what is found for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Generic, TypeVar

from pytest_spapr.config import Settings
from pytest_spapr.deadline import host_slowness
from pytest_spapr.errors import SpaprError
from pytest_spapr.supply import (
    BINARY,
    check_machine,
    check_recipe,
    contract_notes,
    supply_accelerator,
    supply_build,
    supply_image,
)

if TYPE_CHECKING:
    from pytest_spapr.ahead import Ahead
    from pytest_spapr.cache import Cache
    from pytest_spapr.images.store import GuestImage
    from pytest_spapr.progress import Progress
    from pytest_spapr.qemu.build import QemuBuild

T = TypeVar("T")


class Once(Generic[T]):
    """The result of the first call, or its error, for all later calls."""

    def __init__(self) -> None:
        self.value: T | None = None
        self._error: SpaprError | None = None

    def get(self, make: Callable[[], T]) -> T:
        if self._error is not None:
            raise self._error
        if self.value is None:
            try:
                self.value = make()
            except SpaprError as error:
                self._error = error
                raise
        return self.value


class Cell:
    """One for each pair of a QEMU build and a guest image. Each thing is found or made once; an error stays the same error.

    :ivar id: what tests with it are called by where there are several cells, e.g. ``7.2-debian-13``; empty where it is the only one.
    :ivar settings: what was set, with this build and this image. :ivar ahead: prepares the next test's machine, while a harness lives.
    """

    def __init__(
        self, name: str, settings: Settings, build: Once[QemuBuild], accelerator: Once[str], image: Once[GuestImage]
    ) -> None:
        self.id = name
        self.settings = settings
        self.ahead: Ahead | None = None
        self._build = build
        self._accelerator = accelerator
        self._image = image

    @property
    def has_build(self) -> bool:
        return self._build.value is not None

    def cache(self) -> Cache:
        from pytest_spapr.cache import Cache

        return Cache(self.settings.cache_dir.value)

    def build(self, progress: Progress | None = None) -> QemuBuild:
        """Return the QEMU build. :raises SpaprError: see ``supply_build``."""
        return self._build.get(lambda: supply_build(self.settings, self.cache(), progress or _silent()))

    def other_build(self, name: str) -> QemuBuild:
        """Return one more build than the cell's, for its machines to move to. :param name: as for ``--spapr-qemu``.

        :raises SpaprError: see ``supply_build``.
        """
        other = replace(self.settings, qemu=replace(self.settings.qemu, value=name, label=f"the other build {name}"))
        return supply_build(other, self.cache(), _silent())

    def accelerator(self) -> str:
        """Return ``tcg`` or ``kvm``. :raises SpaprError: see ``supply_accelerator``."""
        return self._accelerator.get(lambda: supply_accelerator(self.settings, self.build()))

    def image(self, progress: Progress | None = None) -> GuestImage:
        """Return the guest image. :raises SpaprError: see ``supply_image``."""
        return self._image.get(lambda: supply_image(self.settings, self.cache(), progress or _silent()))

    def kernel_release(self) -> str | None:
        """Return the kernel release of the guest image, None where it cannot be had: that is told by who needs it."""
        try:
            return self.image().kernel_release
        except SpaprError:
            return None

    def obtain(self, progress: Progress, *, image: bool) -> None:
        """Get the QEMU build, the accelerator and, if any part was named, the guest image.

        :raises SpaprError: one of them cannot be had.
        """
        if image:
            check_recipe(self.settings)
        check_machine(self.settings, self.build(progress))
        self.accelerator()
        if image and self.settings.asked:
            self.image(progress)

    def facts(self) -> str:
        """Return, in one line, what is tested; only what has been found by now."""
        found = []
        if build := self._build.value:
            found.append(f"{build.version_text}, {build.binary}")
        if accelerator := self._accelerator.value:
            found.append(accelerator)
            if accelerator == "kvm" and build and build.kvm_properties:
                found.append(f"which needs {' '.join(build.kvm_properties)} here")
        if image := self._image.value:
            found.append(f"image {image.name}, {image.kernel_text}")
        if (times := host_slowness()) > 1:
            found.append(f"a slow host: time budgets times {times:.0f}")
        if build:
            found += contract_notes(self.settings, build)
        return ", ".join([f"{self.id}: {found[0]}", *found[1:]] if found and self.id else found)


def make_cells(settings: Sequence[Settings]) -> tuple[Cell, ...]:
    """Return the cells; those of one build share it, and those of one image that. Nothing is looked for yet."""
    builds: dict[str | None, tuple[Once[QemuBuild], Once[str]]] = {}
    images: dict[str | None, Once[GuestImage]] = {}
    cells = []
    for name, one in zip(_ids(settings), settings, strict=True):
        build, accelerator = builds.setdefault(one.qemu.value, (Once(), Once()))
        cells.append(Cell(name, one, build, accelerator, images.setdefault(one.image.value, Once())))
    return tuple(cells)


def _ids(settings: Sequence[Settings]) -> list[str]:
    """Return a short name for each cell: names as they are, of a path as much of its end as tells it from the others."""
    if len(settings) == 1:
        return [""]
    from pytest_spapr.images.recipe import DEFAULT_IMAGE

    builds = _names(one.qemu.value or "default" for one in settings)
    images = _names(one.image.value or DEFAULT_IMAGE for one in settings)
    return [f"{builds[one.qemu.value or 'default']}-{images[one.image.value or DEFAULT_IMAGE]}" for one in settings]


def _names(values: Iterable[str]) -> dict[str, str]:
    """Return a name for each of these names and paths. Where all binaries have QEMU's own name, it is told by their directories."""
    parts = {value: _parts(value) for value in values}
    longest = max(map(len, parts.values()))
    for count in range(1, longest + 1):
        names = {value: "-".join(words[-count:]) for value, words in parts.items()}
        if len(set(names.values())) == len(names):
            break
    return names


def _parts(value: str) -> list[str]:
    words = [part for part in PurePath(value).parts if part != "/"]
    return words[:-1] if len(words) > 1 and words[-1] == BINARY else words


def _silent() -> Progress:
    from pytest_spapr.progress import NullProgress

    return NullProgress()
