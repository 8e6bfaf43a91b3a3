"""Known defects of connectors and devices, in QEMU and in Linux, whatever runs the guest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from pytest_spapr.hotplug.defects.row import DRAIN, NEVER, NOT_YET, RESET, TCG, KnownDefect, Reproducer

_ALONE: Final = ("-device", "spapr-pci-host-bridge,index=1,id=alone,dma_win_size=0x1000000,ddw=off")
_PASSED_THROUGH: Final[Mapping[str, Any]] = {
    "driver": "vfio-user-pci",
    "id": "card1",
    "bus": "alone.0",
    "addr": "1.0",
    "socket": {"type": "unix", "path": "{socket}"},
}
_CARD: Final = {"driver": "virtio-rng-pci", "id": "card1", "bus": "pci.0"}

ROWS: Final = (
    KnownDefect(
        id="dimm-part-migration",
        summary="a DIMM that migrates when its guest has given back some LMBs of it never goes: QEMU stops waiting and tells nobody",
        reference=(
            "the destination attaches every LMB of a DIMM anew, an empty connector has no state in the stream (spapr_drc_needed), and "
            "spapr_recover_pending_dimm_state counts the LMBs that are attached; no report found"
        ),
        seen="QEMU 7.2.22 and 11.1.3",
        since="QEMU 7.2 or earlier",
        fixed=NOT_YET,
        versions=(((0, 0, 0), NEVER),),
    ),
    KnownDefect(
        id="xive-tctx-instance",
        summary="a machine that a core in the middle has gone from cannot migrate: Unknown section or instance 'xive-tctx' 2",
        reference=(
            "vmstate_xive_tctx is registered with VMSTATE_INSTANCE_ID_ANY, so that its number tells in which order the CPUs came, and "
            "the destination counts anew; that of the XICS presenter is the CPU's index (hw/intc/xive.c, icp_realize); no report found"
        ),
        seen="QEMU 11.1.3",
        since="QEMU 10.0 or earlier",
        fixed=NOT_YET,
        versions=(((0, 0, 0), NEVER),),
    ),
    KnownDefect(
        id="loadvm-pending-unplug",
        summary="loadvm fails while an unplug is pending, also of a snapshot that was taken just then, and the device is gone",
        reference=(
            "load_snapshot (migration/savevm.c) resets the machine before it loads, and spapr_drc_reset_all releases what is pending; "
            "the state of the device is in the snapshot and then finds none; no report found"
        ),
        seen="QEMU 7.2.22 and 11.1.3",
        since="QEMU 5.2 or earlier",
        fixed=NOT_YET,
        versions=(((0, 0, 0), NEVER),),
    ),
    KnownDefect(
        id="phb-instance",
        summary=(
            "a machine that a PHB has gone from before a PHB or bridge that came later cannot migrate: Unknown section or instance "
            "'spapr_pci' 2 (or 'PCIBUS')"
        ),
        reference=(
            "found by `spapr explore`; a PHB has no path, so that qdev registers its state (vmstate_spapr_pci) with "
            "VMSTATE_INSTANCE_ID_ANY, and so is a bus's (pci_bus_realize): the number tells in which order they came, and the destination "
            "counts anew; no report found"
        ),
        seen="QEMU 5.2.0, 7.2.22, 10.0.13 and 11.1.3",
        since="QEMU 5.2 or earlier",
        fixed=NOT_YET,
        versions=(((0, 0, 0), NEVER),),
    ),
    KnownDefect(
        id="virtio-queue-size",
        summary="a machine with a virtio device cannot move on to QEMU 11.1: vring.num 1024 exceeds allocated max 256 (or another)",
        reference=(
            "found by `spapr explore --onward`; in 10.0.13 virtio_add_queue (hw/virtio/virtio.c) makes every queue as large as can be, "
            '"for qemu <11.1", and names the thread on qemu-devel; 11.1 takes no more than the device\'s own size'
        ),
        seen="QEMU 10.0.13 to 11.1.3: rng and balloon without a guest, but not net; net with one, each time; not 7.2.22 to 11.1.3",
        since="QEMU 10.0.13 or earlier",
        fixed=NOT_YET,
        versions=(((10, 0, 0), (10, 1, 0)),),
    ),
    KnownDefect(
        id="core-without-drc-index",
        summary="a core's node has no ibm,my-drc-index where vsmt is not the number of threads: the guest cannot find it, nor remove it",
        reference=(
            "e8185fdc63e1 (ppc/spapr: fix drc index mismatch for partially enabled vcpus) looks a core's connector up by core_index in "
            "spapr_dt_cpu, but its id is the first thread's vcpu_id, which is vsmt times as much; no report found"
        ),
        seen="QEMU 10.0.13 and 11.1.3, not 7.2.22",
        since="QEMU 9.2 and 9.1.3",
        fixed=NOT_YET,
        versions=(((9, 1, 3), NEVER),),
    ),
    KnownDefect(
        id="dimm-first-lmb-silent",
        summary="a DIMM's refusal is not signalled when its first LMB fails, so never for a DIMM of one LMB",
        reference="Linux dlpar_memory_remove_by_ic unisolates only LMBs that it had removed, and no QEMU compensates",
        seen="Linux 6.1, 6.12 and 7.2, with QEMU 5.2 to 11.1",
        since="Linux 5.10 or earlier",
        fixed="not by Linux 7.2",
    ),
    KnownDefect(
        id="lmb-lost-by-guest",
        summary="an LMB that the guest gives up of its own accord is lost to it and to QEMU: it cannot be had back, its DIMM cannot go",
        reference=(
            "QEMU refuses the ISOLATE of an LMB that it has not asked for (drc_isolate_logical), Linux ignores that (dlpar_release_drc in "
            "dlpar_remove_lmb) and drops the memory; dlpar_acquire_drc then finds the connector in use"
        ),
        seen="Linux 6.1.176 and 6.12.107, with QEMU 7.2.22 and 11.1.3",
        since="Linux 5.10 or earlier",
        fixed="not by Linux 6.12",
    ),
    KnownDefect(
        id="phb-again-oops",
        summary="the removal of a PHB that came, went and came again kills drmgr: the kernel's rpaphp dereferences NULL",
        reference="an oops in __rpaphp_get_sensor_state, from get_adapter_status, when drmgr reads the slot's `presence`; no report found",
        seen="Linux 6.12.107 and 7.2.13, with 4 and 64 KiB pages, powerpc-utils 1.3.10, QEMU 11.1.3; not Linux 6.1.176",
        since="Linux 6.2 to 6.12",
        fixed="not by Linux 7.2",
        kernels=(((6, 2, 0), NEVER),),
    ),
    KnownDefect(
        id="drmgr-isolates-busy-disk",
        summary="drmgr gives back a card that another removal in the guest is still at; what that then touches is a machine check",
        reference=(
            "powerpc-utils issue 31: drmgr ignores that it cannot open the card's `remove`; "
            "ppc_cpu_do_transaction_failed, which POWER9 has since QEMU 8.1, has Linux in a checkstop: GUEST_PANICKED"
        ),
        seen="powerpc-utils 1.3.10, Linux 6.1.176, QEMU 11.1.3; with QEMU 7.2.22 such an access reads zeroes, and the guest lives",
        since="QEMU 8.1",
        fixed=NOT_YET,
        versions=(((8, 1, 0), NEVER),),
        accelerators=TCG,
    ),
    KnownDefect(
        id="xhci-never-finalized",
        summary="a USB controller that is unplugged is gone, but no DEVICE_DELETED is sent: its parts hold each other for ever",
        reference="hw/usb/hcd-xhci-pci.c: the strong link 'host' of the embedded controller to the PCI device that has it",
        seen="QEMU 5.2.0 and 7.2.22",
        since="QEMU 5.2",
        fixed="QEMU 10.0.13 or earlier, 11.1",
        versions=(((5, 2, 0), (10, 0, 13)),),
    ),
    KnownDefect(
        id="dimm-doubled-guest-error",
        summary="one refusal of a DIMM gives two DEVICE_UNPLUG_GUEST_ERROR events",
        reference="spapr_memory_unplug_rollback and drc_unisolate_logical both send it; with Linux 5.14 and later",
        seen="QEMU 7.2.22 and 11.1.3",
        since="QEMU 6.2",
        fixed=NOT_YET,
        versions=(((6, 2, 0), NEVER),),
    ),
    KnownDefect(
        id="msi-run-out",
        summary="a guest that asks for more message-signalled interrupts than are left kills QEMU: cards on two PHBs are enough",
        reference=(
            "spapr_irq_msi_alloc takes irq_map_nr for the answer of a bitmap without so large a hole, but bitmap_find_next_zero_area "
            "answers with more than that; spapr_irq_claim: assertion failed: (irq < (smc->nr_xirqs + SPAPR_XIRQ_BASE))"
        ),
        seen="QEMU 7.2.22 and 11.1.3",
        since="QEMU 7.2 or earlier",
        fixed=NOT_YET,
        versions=(((0, 0, 0), NEVER),),
        fatal=True,
    ),
    KnownDefect(
        id="dimm-between-lmbs",
        summary="a DIMM is accepted at an address that is no multiple of an LMB: the guest is told of LMBs whose memory is elsewhere",
        reference="spapr_memory_pre_plug looks at the size only, memory_device_get_free_addr at the backend's alignment, which is 2 MiB",
        seen="QEMU 5.2.0, 7.2.22, 10.0.13 and 11.1.3",
        since="QEMU 5.2 or earlier",
        fixed=NOT_YET,
        versions=(((0, 0, 0), NEVER),),
    ),
    KnownDefect(
        id="backend-size-wraps",
        summary="object-add of a memory backend of nearly 2^64 bytes aborts QEMU, where it should be refused",
        reference="rounded up to pages the size is 0: find_ram_offset: Assertion `size != 0' failed (system/physmem.c)",
        seen="QEMU 5.2.0, 7.2.22, 10.0.13 and 11.1.3",
        since="QEMU 5.2 or earlier",
        fixed=NOT_YET,
        versions=(((0, 0, 0), NEVER),),
        fatal=True,
        reproducer=Reproducer(
            (), (("object-add", {"qom-type": "memory-backend-ram", "id": "wraps", "size": (1 << 64) - 1}),), "dies"
        ),
    ),
    KnownDefect(
        id="vfio-lone-container",
        summary="a vfio-user device alone on its PHB aborts QEMU: at its start, at a reset, or when the guest's kernel asks for EEH",
        reference=(
            "pseries' EEH code takes the only container of an address space for one of the kernel's: Object is not an instance of type "
            "vfio-iommu-legacy; where there are none or several it backs off, so that machine.vfio plugs two that nobody uses"
        ),
        seen="QEMU 11.1.3",
        since="QEMU 10.1, the first with vfio-user devices",
        fixed=NOT_YET,
        versions=(((10, 1, 0), NEVER),),
        fatal=True,
        reproducer=Reproducer((*_ALONE, "-device", json.dumps(_PASSED_THROUGH)), (), "dies", server="idle"),
    ),
    KnownDefect(
        id="vfio-msix-removal",
        summary="the removal of a vfio-user device that has MSI-X aborts QEMU",
        reference=(
            "vfio_user_msix_teardown takes the pending bits out of a BAR that they are in no more when the device is finalized: "
            "memory_region_del_subregion: Assertion `subregion->container == mr' failed"
        ),
        seen="QEMU 11.1.3",
        since="QEMU 10.1, the first with vfio-user devices, or later",
        fixed=NOT_YET,
        versions=(((10, 1, 0), NEVER),),
        fatal=True,
        reproducer=Reproducer(
            _ALONE, (("device_add", _PASSED_THROUGH), ("device_del", {"id": "card1"}), DRAIN), "dies", server="nvme"
        ),
    ),
    KnownDefect(
        id="vfio-broken-connection",
        summary="a vfio-user server that ends with a message of QEMU's unread aborts QEMU",
        reference=(
            "the next read fails (ECONNRESET), and vfio_user_recv_hdr gives an error of its own where qio_channel_readv_full has set one: "
            "error_setv: Assertion `*errp == NULL' failed"
        ),
        seen="QEMU 11.1.3",
        since="QEMU 11.0 (hw/vfio-user/proxy.c: vfio_user_recv_hdr, of December 2025)",
        fixed=NOT_YET,
        versions=(((11, 0, 0), NEVER),),
        fatal=True,
    ),
    KnownDefect(
        id="vfio-migration",
        summary="a vfio-user device does not keep its machine from migrating: it is left behind, and nobody is told",
        reference=(
            'vfio_user_pci_realize has no vfio_migration_realize, which adds the blocker ("No live migration support yet"); '
            "machine.migrate() refuses instead"
        ),
        seen="QEMU 11.1.3",
        since="QEMU 10.1, the first with vfio-user devices",
        fixed=NOT_YET,
        versions=(((10, 1, 0), NEVER),),
    ),
    KnownDefect(
        id="pci-function-taken",
        summary="device_add of a PCI function where there is one already kills QEMU, unless it is function 0",
        reference=(
            "spapr_pci_pre_plug sets a second error where the slot has a function 0 (error_setv: Assertion `*errp == NULL' failed), and "
            "else asks for the name of a function 0 that is not there"
        ),
        seen="QEMU 7.2.22, 10.0.13 and 11.1.3, with any device; not 5.2.0",
        since="QEMU 6.0 to 7.2",
        fixed=NOT_YET,
        versions=(((6, 0, 0), NEVER),),
        fatal=True,
        reproducer=Reproducer(
            (),
            tuple(("device_add", {**_CARD, "id": f"card{n}", "addr": f"5.{n % 2}", "multifunction": True}) for n in (1, 2, 3)),
            "dies",
        ),
    ),
    KnownDefect(
        id="dimm-part-refused",
        summary="device_del of a DIMM of which the guest has given back one LMB and kept another aborts QEMU",
        reference=(
            "found by `spapr explore`; a refusal (spapr_memory_unplug_rollback) forgets that the DIMM is pending, also where an LMB is "
            "released already, which the next request then takes for attached: spapr_drc_unplug_request: assertion failed: (drc->dev); "
            "an LMB is released at once that the guest never took, or by the guest before it refuses the next one; no report found"
        ),
        seen="QEMU 7.2.22, 10.0.13 and 11.1.3; not 5.2.0",
        since="QEMU 6.0, the first that hears of a refusal",
        fixed=NOT_YET,
        versions=(((6, 0, 0), NEVER),),
        fatal=True,
    ),
    KnownDefect(
        id="dimm-refused-after-migration",
        summary="a DIMM that migrates while its removal is pending, and that the guest then refuses to give up, aborts QEMU",
        reference=(
            "read in spapr_memory_unplug_rollback, and shown by exploration's tests; the destination has the LMBs that are pending but not "
            "the list of the DIMMs that are, which a refusal rests on: spapr_memory_unplug_rollback: assertion failed: (ds); a device_del "
            "in between mends it; no report found"
        ),
        seen="QEMU 7.2.22, 10.0.13 and 11.1.3; not 5.2.0",
        since="QEMU 6.0, the first that hears of a refusal",
        fixed=NOT_YET,
        versions=(((6, 0, 0), NEVER),),
        fatal=True,
    ),
    KnownDefect(
        id="phb-bridge-reset",
        summary="a reset while the removal of a PHB is pending that has a bridge below it kills QEMU",
        reference=(
            "found by `spapr explore`: SIGSEGV after the connectors of the PHB's slots were unrealized, in the loop over all connectors of "
            "a reset (spapr_drc_reset_all; 5.2: drc_reset), as it seems for those of the bridge's slots; no report found"
        ),
        seen="QEMU 5.2.0, 7.2.22, 10.0.13 and 11.1.3; not where the guest gives the PHB back",
        since="QEMU 5.2 or earlier",
        fixed=NOT_YET,
        versions=(((0, 0, 0), NEVER),),
        fatal=True,
        reproducer=Reproducer(
            (),
            (
                ("device_add", {"driver": "spapr-pci-host-bridge", "id": "phb1", "index": 1}),
                ("device_add", {"driver": "pci-bridge", "id": "bridge1", "bus": "phb1.0", "chassis_nr": 1}),
                *RESET * 4,
                ("device_del", {"id": "phb1"}),
                *RESET * 4,
            ),
            "dies",
        ),
    ),
    KnownDefect(
        id="phb-again-too-soon",
        summary="a PHB that comes before DEVICE_DELETED was told of the one before it, with the same index, aborts QEMU",
        reference=(
            "found by `spapr explore`: the old PHB is finalized after an RCU grace period, and takes the new one's memory away, as it "
            "seems: memory_region_del_subregion: Assertion `subregion->container == mr' failed; no report found"
        ),
        seen="QEMU 5.2.0, 7.2.22, 10.0.13 and, one time in six, 11.1.3; not with another index or after the event",
        since="QEMU 5.2 or earlier",
        fixed=NOT_YET,
        versions=(((0, 0, 0), NEVER),),
        fatal=True,
        reproducer=Reproducer(
            (),
            # Again and again: the grace period may be over before the next one comes.
            tuple(
                command
                for number in range(1, 65)
                for command in (
                    ("device_add", {"driver": "spapr-pci-host-bridge", "id": f"phb{number}", "index": 1}),
                    ("device_del", {"id": f"phb{number}"}),
                )
            ),
            "dies",
        ),
    ),
    KnownDefect(
        id="vof-bridge",
        summary="a PCI bridge that a machine boots with by VOF is no bridge for Linux: it has no bus, and nothing behind it is found",
        reference=(
            "found by `spapr explore`: QEMU writes no device_type, bus-range and ranges into a bridge's node, which SLOF adds and "
            "VOF does not; Linux of_create_pci_dev and of_scan_pci_bridge go by them; no report found"
        ),
        seen="QEMU 7.2.22, 10.0.13 and 11.1.3, Linux 6.1.176 and 6.12.107; not by SLOF",
        since="QEMU 6.1, the first with VOF",
        fixed=NOT_YET,
        versions=(((6, 1, 0), NEVER),),
    ),
    KnownDefect(
        id="pci-slot-31",
        summary="with a function 0 in slot 31 of a PHB, device_add without addr= fails although other slots are free",
        reference="spapr_pci_pre_plug looks for a function 0 before a slot is chosen, when devfn is still -1: slot 31, function 7",
        seen="QEMU 7.2.22, 10.0.13 and 11.1.3, with any device; not 5.2.0",
        since="QEMU 6.0 to 7.2",
        fixed=NOT_YET,
        versions=(((6, 0, 0), NEVER),),
        reproducer=Reproducer(
            ("-device", "virtio-rng-pci,bus=pci.0,addr=1f.0"),
            (("device_add", {"driver": "virtio-rng-pci", "id": "card1", "bus": "pci.0"}),),
            "refuses",
        ),
    ),
)
