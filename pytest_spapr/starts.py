"""How a test gets a machine: a clone of a template where there can be one, else a boot."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_spapr.timeline import Timeline

if TYPE_CHECKING:
    from pytest_spapr.cache import Cache
    from pytest_spapr.hotplug.pseries import PseriesMachine
    from pytest_spapr.images.store import GuestImage
    from pytest_spapr.machine import Harness
    from pytest_spapr.progress import Progress
    from pytest_spapr.qemu.argv import MachineSpec
    from pytest_spapr.templates.store import Template


@dataclass(frozen=True, slots=True)
class Started:
    """A machine that was started. :ivar how: ``clone`` or ``boot``. :ivar why: why it was booted although a clone was wanted."""

    machine: PseriesMachine
    how: str
    why: str | None = None


class Starter:
    """Starts machines for one pytest process, from any of its threads. It opens each template once.

    :param max_size: bytes that templates may take in the cache.
    """

    def __init__(self, cache: Cache, max_size: int) -> None:
        self._cache = cache
        self._max_size = max_size
        self._lock = threading.Lock()
        self._templates: dict[str, Template] = {}
        self._without: dict[str, str] = {}

    def close(self) -> None:
        """Let other runs remove the templates that were used here."""
        with self._lock:
            for template in self._templates.values():
                template.close()
            self._templates.clear()

    def boot(
        self,
        shared: Harness,
        spec: MachineSpec,
        image: GuestImage | None,
        timeline: Timeline,
        *,
        boot: bool,
        why: str | None = None,
    ) -> Started:
        """Start a machine from nothing; see ``Machine.start``."""
        from pytest_spapr.hotplug.pseries import PseriesMachine

        return Started(PseriesMachine.start(shared, spec, image, timeline, boot=boot), "boot", why)

    def start(self, shared: Harness, spec: MachineSpec, image: GuestImage, timeline: Timeline, progress: Progress) -> Started:
        """Start a clone; its template is made if need be. Boot the machine where there can be no template.

        :param progress: told of a template that is being made.
        :raises MachineError: the machine does not come up.
        """
        template, why = self._template(shared, spec, image, timeline, progress)
        if template is None:
            return self.boot(shared, spec, image, timeline, boot=True, why=why)
        return Started(_clone(shared, spec, image, timeline, template), "clone")

    def clone(self, shared: Harness, spec: MachineSpec, image: GuestImage, timeline: Timeline) -> PseriesMachine | None:
        """Start a clone if there is a template already.

        :raises SpaprError: it cannot be started.
        """
        template, _ = self._template(shared, spec, image, timeline, None)
        return None if template is None else _clone(shared, spec, image, timeline, template)

    def _template(
        self, shared: Harness, spec: MachineSpec, image: GuestImage, timeline: Timeline, progress: Progress | None
    ) -> tuple[Template | None, str | None]:
        """Return the template, or why there is none."""
        from pytest_spapr.images.disk import OwnDisk
        from pytest_spapr.templates import make, store

        if isinstance(image, OwnDisk):
            return None, "a disk of your own has no console shell, which gives a clone the time and entropy"
        key = make.key_for(shared.build, spec, image)
        with self._lock:
            if why := self._without.get(key):
                return None, why
            try:
                template = self._known(key) or make.existing(self._cache, key, spec)
                if template is None and progress is not None:
                    template = make.obtain(self._cache, shared, spec, image, progress, timeline)
                    store.trim(self._cache, self._max_size)
            except store.NoTemplate as error:
                self._without[key] = str(error)
                return None, str(error)
            if template is not None:
                self._templates[key] = template
                template.touch()
            return template, None

    def _known(self, key: str) -> Template | None:
        from pytest_spapr.templates.store import Damaged

        template = self._templates.get(key)
        if template is not None:
            try:
                template.require_unchanged()
            except Damaged:
                self._templates.pop(key).close()
                return None
        return template


def _clone(shared: Harness, spec: MachineSpec, image: GuestImage, timeline: Timeline, template: Template) -> PseriesMachine:
    from pytest_spapr.hotplug.pseries import PseriesMachine

    timeline.adopt(template.boot)
    timeline.step(f"clone of template {template.key}, whose boot stands above")
    return PseriesMachine.restore(shared, spec, image, timeline, template.snapshot)
