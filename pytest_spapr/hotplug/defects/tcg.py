"""Known defects of QEMU's TCG: guests of another accelerator do not have them."""

from __future__ import annotations

from typing import Final

from pytest_spapr.hotplug.defects.row import NEVER, NOT_YET, RESET, TCG, KnownDefect, Reproducer

_ONE_CORE: Final = ("-accel", "tcg,thread=multi", "-cpu", "power9_v2.0", "-smp", "1,maxcpus=8", "-m", "512")
_PLUG: Final = ("device_add", {"driver": "power9_v2.0-spapr-cpu-core", "id": "core1", "core-id": 1})
_UNPLUG: Final = ("device_del", {"id": "core1"})
_CARD: Final = ("device_add", {"driver": "virtio-rng-pci", "id": "card1", "bus": "pci.0"})

ROWS: Final = (
    KnownDefect(
        id="tcg-core-removal",
        summary="after the removal of a core under TCG, the next change of the memory map kills QEMU: a DIMM, a PCI device, a reset",
        reference=(
            "listeners of the dead CPU's address spaces stay registered; "
            "qemu-devel, Maydell, 2025-09-29 'Destroy CPU AddressSpaces on unrealize'"
        ),
        seen="QEMU 5.2.0 and 7.2.22",
        since="QEMU 5.2 or earlier",
        fixed="QEMU 10.2, and 10.0.13 or earlier",
        versions=(((0, 0, 0), (10, 0, 13)), ((10, 1, 0), (10, 2, 0))),
        accelerators=TCG,
        fatal=True,
        certain=False,
        reproducer=Reproducer(
            _ONE_CORE,
            (_PLUG, _UNPLUG, _CARD, *RESET * 4),
            "dies",
        ),
    ),
    KnownDefect(
        id="tcg-core-removal-heap",
        summary="the removal of a core under TCG damages QEMU's heap, of which it dies at once or later",
        reference=(
            "the vCPU's TLB and address spaces are freed while its thread still runs: cpu_remove_sync comes after the parent's "
            "unrealize in ppc_cpu_unrealize (target/ppc/cpu_init.c)"
        ),
        seen="QEMU 7.2.22, 10.0.13 and 10.2.2, most often once the guest has used the core",
        since="QEMU 7.2 or earlier",
        fixed="QEMU 11.1 or earlier",
        versions=(((0, 0, 0), (11, 0, 0)),),
        accelerators=TCG,
        fatal=True,
        certain=False,
    ),
    KnownDefect(
        id="tcg-single-thread-core-removal",
        summary="with one TCG thread for all vCPUs, device_del of a core never returns: QMP hangs for ever, or QEMU aborts",
        reference="the thread that removes the vCPU waits for itself; -accel tcg,thread=single, which the plugin never asks for",
        seen="QEMU 5.2.0, 7.2.22, 10.0.13 and 11.1.3",
        since="QEMU 5.2 or earlier",
        fixed=NOT_YET,
        versions=(((0, 0, 0), NEVER),),
        accelerators=TCG,
        fatal=True,
        certain=False,
        reproducer=Reproducer(("-accel", "tcg,thread=single", *_ONE_CORE[2:]), (_PLUG, _UNPLUG), "hangs"),
    ),
    KnownDefect(
        id="tcg-core-add",
        summary="now and then the plug of a core kills QEMU while a guest runs: it walks the TLB of a vCPU that has none yet",
        reference=(
            "cpu_exec_realizefn puts the vCPU on the list before tlb_init, and tb_gen_code of another one walks that list; "
            "mended by 4e4fa6c12d97 (7.2)"
        ),
        seen="QEMU 5.2.0, once in 70 plugs into fresh clones, whose vCPU has all of its code to translate",
        since="QEMU 5.2 or earlier",
        fixed="QEMU 7.2",
        versions=(((0, 0, 0), (7, 2, 0)),),
        accelerators=TCG,
        fatal=True,
        certain=False,
    ),
    KnownDefect(
        id="tcg-busy-vcpu-device-add",
        summary="device_add does not return, and QMP with it, until each vCPU has been idle: not while the firmware or a busy guest runs",
        reference=(
            "drain_call_rcu in qmp_device_add (7bed89958bfb) waits for vCPUs that nobody kicks out of their loop; "
            "mended by dd47a8f654d8, https://gitlab.com/qemu-project/qemu/-/issues/650"
        ),
        seen="QEMU 5.2.0, not 7.2.22",
        since="QEMU 5.2",
        fixed="QEMU 6.2 and 6.1.1",
        versions=(((5, 2, 0), (6, 1, 1)),),
        accelerators=TCG,
        certain=False,
        reproducer=Reproducer(_ONE_CORE, (("cont", {}), _PLUG), "hangs"),
    ),
    KnownDefect(
        id="tcg-smp-migration",
        summary="after a migration under TCG, a CPU that was idle takes no interrupt any more: a guest with several CPUs hangs",
        reference="seen from outside only: the CPU's interrupt is pending in its XIVE context (info pic), and its thread sleeps",
        seen="QEMU 10.0.13, not 7.2.22 and 11.1.3",
        since="QEMU 10.0 or earlier, later than 7.2",
        fixed="QEMU 11.1 or earlier",
        versions=(((10, 0, 0), (10, 1, 0)),),
        accelerators=TCG,
    ),
    KnownDefect(
        id="tcg-idle-cpu-migration",
        summary="after a migration under TCG with an older machine type, a CPU that was idle may take no interrupt: the guest hangs",
        reference="seen from outside only: the CPU's interrupt is pending in its XIVE context (info pic), and it goes on idling",
        seen="QEMU 7.2.22 to 11.1.3, and 11.1.3, with pseries-7.2 and power9_v2.0: every second time; not with a busy CPU",
        since="QEMU 11.1 or earlier",
        fixed=NOT_YET,
        versions=(((10, 1, 0), NEVER),),
        accelerators=TCG,
        certain=False,
    ),
    KnownDefect(
        id="tcg-pending-core-migration",
        summary="after a migration under TCG with the removal of a core pending, the guest hangs as it begins with the removal",
        reference=(
            "no decrementer travels (mended by target/ppc 'Migrate DECR SPR'), and the guest comes to the removal before its timers can "
            "be set going again"
        ),
        seen="QEMU 5.2.0; 7.2.22 once in some twenty times on a busy host: most often the timers are set going in time",
        since="QEMU 5.2 or earlier",
        fixed="QEMU 8.2",
        versions=(((0, 0, 0), (8, 2, 0)),),
        accelerators=TCG,
        certain=False,
    ),
    KnownDefect(
        id="tcg-xics-migration",
        summary="after a migration under TCG with an interrupt of XICS that the CPU has not taken yet, the guest takes no more: it hangs",
        reference=(
            "found by `spapr explore`; neither the CPU's pending_interrupts nor the level of its line travels, icp_post_load "
            "(hw/intc/xics.c) raises it for KVM only, and the XISR that is still held rejects what comes (icp_irq); no report found"
        ),
        seen="QEMU 5.2.0, 7.2.22, 10.0.13 and 11.1.3: each time where something was plugged or unplugged while the machine was paused",
        since="QEMU 5.2 or earlier",
        fixed=NOT_YET,
        versions=(((0, 0, 0), NEVER),),
        accelerators=TCG,
    ),
    KnownDefect(
        id="tcg-contexts-run-out",
        summary="every vCPU ever made keeps one of max_cpus translation contexts: one core plug too many aborts QEMU",
        reference="tcg_register_thread: assertion failed: (n < tcg_max_ctxs)",
        seen="QEMU 5.2.0, 7.2.22, 10.0.13 and 11.1.3",
        since="QEMU 5.2 or earlier",
        fixed=NOT_YET,
        versions=(((0, 0, 0), NEVER),),
        accelerators=TCG,
        fatal=True,
        reproducer=Reproducer(
            ("-accel", "tcg,thread=multi", "-cpu", "power9_v2.0", "-smp", "1,maxcpus=2", "-m", "512"),
            (_PLUG, _UNPLUG, _PLUG),
            "dies",
        ),
    ),
)
