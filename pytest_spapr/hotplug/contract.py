"""Contracts: what a QEMU build together with a guest kernel promises of an unplug. The rows are data, in ``contracts/``.

A row is chosen by the device's kind, the situation, the features that the build was probed for and the guest's kernel release.
Exactly one row must fit: none or two are an error of the data, never a pass. Nothing is promised of a version as such: a QEMU that is
newer than all that were seen is held to the newest contract.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from pytest_spapr.errors import ConfigError
from pytest_spapr.hotplug.expectation import Expectation
from pytest_spapr.hotplug.outcome import Kind
from pytest_spapr.hotplug.rows import Row, packaged_rows, version


class HasKind(Protocol):
    """Anything with a device kind."""

    @property
    def kind(self) -> Kind: ...


#: The newest QEMU that the rows were seen to be true of. Of a newer one the same is promised, and the run says so.
NEWEST: Final = (11, 1)


class Contract:
    """The promises of one QEMU build with one guest kernel.

    :param features: the build's probed features, see ``qemu.build``.
    :param kernel: the guest's kernel release, e.g. ``6.1.0-50-powerpc64le``. :param qemu: the build's version.
    :param rows: the contract data, instead of the package's.
    :param above: rows of the user, which stand above those: where one of them speaks of this build and kernel, it alone counts.
    :param rtas_errd: whether it and drmgr work in the guest; else nobody gives PCI devices and host bridges up.
    """

    def __init__(
        self,
        features: frozenset[str],
        kernel: str,
        rows: Sequence[Row] | None = None,
        *,
        qemu: tuple[int, ...] = NEWEST,
        above: Sequence[Row] = (),
        rtas_errd: bool = True,
    ) -> None:
        self._features = features
        self._kernel = version(kernel)
        self._qemu = qemu
        self._rows = tuple(rows) if rows is not None else packaged_rows()
        self._above = tuple(above)
        self._rtas_errd = rtas_errd

    def removal(self, device: HasKind) -> Expectation:
        """Return what is promised when the guest is to give the device up: silence where nobody in it can."""
        if device.kind.by_drmgr and not self._rtas_errd:
            return self.silence(device, cause="rtas_errd absent")
        return self.expect(device.kind, "removal")

    def refusal(self, device: HasKind, *, cause: str) -> Expectation:
        """Return what is promised when the guest refuses and can say so. ``cause`` as in ``contracts/``."""
        return self.expect(device.kind, f"refusal: {cause}")

    def silence(self, device: HasKind, *, cause: str) -> Expectation:
        """Return what is promised when nobody answers. ``cause`` as in ``contracts/``."""
        return self.expect(device.kind, f"silence: {cause}")

    def rejection(self, device: HasKind, *, cause: str) -> Expectation:
        """Return what is promised when QEMU refuses the command itself. ``cause`` as in ``contracts/``."""
        return self.expect(device.kind, f"rejection: {cause}")

    def unasked_removal(self, device: HasKind) -> Expectation:
        """Return what is promised for a device that the guest never configured: it is removed, and nobody is asked."""
        return self.expect(device.kind, "removal: never configured")

    def repeat(self, device: HasKind, *, after: str | None = None) -> Expectation:
        """Return what is promised for a ``device_del`` while an earlier one is pending and its cause lasts.

        :param after: ``migration`` where the earlier one was sent to the QEMU that the machine has left.
        """
        return self.expect(device.kind, f"repeat after {after}" if after else "repeat while pending")

    def outlasted(self, device: HasKind, *, cause: str) -> Expectation:
        """Return what is promised of a silence that outlasts every time limit that a QEMU has for an unplug, ``cause`` going on."""
        return self.expect(device.kind, f"outlasted: {cause}")

    def before_boot(self, device: HasKind) -> Expectation:
        """Return what is promised for a device that was plugged before the machine ran for the first time, and is unplugged there."""
        return self.expect(device.kind, "before the first boot")

    def before_cas(self, device: HasKind) -> Expectation:
        """Return what is promised while the firmware has a machine whose guest had the device before the reset.

        It is what is to be seen until the guest boots: of what is pending, ``after(device, what="CAS")`` tells the rest.
        """
        return self.expect(device.kind, "before CAS")

    def after(self, device: HasKind, *, what: str) -> Expectation:
        """Return what is promised to become of a pending attempt after ``reset``, ``resume``, ``migration`` or ``CAS``.

        After a migration: when its cause is gone. CAS is what the guest calls when it boots.
        """
        return self.expect(device.kind, f"after: {what}")

    def retry(self, device: HasKind, *, cause: str) -> Expectation:
        """Return what is promised for one more ``device_del`` when the cause of a refusal or a silence is gone."""
        return self.expect(device.kind, f"retry: {cause}")

    def expect(self, kind: Kind, situation: str) -> Expectation:
        """Return what is promised for a kind of device in a situation.

        :raises ConfigError: no row fits, or more than one does; the message lists the situations there are.
        """
        for rows in (self._above, self._rows):
            fitting = [
                row for row in rows if row.subject == (kind, situation) and row.fits(self._features, self._kernel, self._qemu)
            ]
            if len(fitting) == 1:
                return fitting[0].expectation
            if fitting:
                raise ConfigError(f"{len(fitting)} contract rows for {kind} {situation!r} fit {self._subject()}")
        known = sorted({row.subject[1] for row in (*self._above, *self._rows) if row.subject[0] is kind})
        if situation in known:
            raise ConfigError(f"0 contract rows for {kind} {situation!r} fit {self._subject()}")
        raise ConfigError(f"no contract speaks of {kind} {situation!r}; there are {known}")

    def _subject(self) -> str:
        numbers = (".".join(map(str, numbers)) for numbers in (self._qemu, self._kernel))
        return "this QEMU {} and kernel {}".format(*numbers)
