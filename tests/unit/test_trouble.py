"""What is read from a kernel's words about its own trouble."""

from __future__ import annotations

import pytest

from pytest_spapr.guest.trouble import ends_trace, troubles
from pytest_spapr.timeline import Lane, Record

_WORKER = """\
Oops: Exception in kernel mode, sig: 4 [#1]
CPU: 0 PID: 24 Comm: kworker/u16:1 Not tainted 6.1.0-50-powerpc64le #1  Debian 6.1.176-1
Workqueue: pseries hotplug workque pseries_hp_work_fn
NIP:  c0000000000f3128 LR: c0000000000ea294 CTR: c0000000000ea2f0
NIP [c0000000000f3128] dlpar_cpu+0x8/0x1f0
---[ end trace 0000000000000000 ]---"""
_TOLD = "Oops: Exception in kernel mode, sig: 4 [#1] in dlpar_cpu+0x8/0x1f0, task kworker/u16:1 on the pseries hotplug workque"
_READ = """\
BUG: Kernel NULL pointer dereference on read at 0x00000000
Faulting instruction address: 0xc0000000000f3128
Oops: Kernel access of bad area, sig: 11 [#2]
CPU: 3 UID: 0 PID: 811 Comm: drmgr Tainted: G      D            6.12.107+deb13-powerpc64le #1  Debian 6.12.107-1
NIP [c0000000000f3128] __rpaphp_get_sensor_state+0x20/0x90 [rpaphp]
---[ end trace 0000000000000000 ]---"""


def said(text: str, lane: Lane = Lane.KERNEL, stamp: str = "") -> list[Record]:
    return [Record(seq, float(seq), lane, f"{stamp}{line}") for seq, line in enumerate(text.splitlines())]


def told(text: str) -> list[str]:
    return [str(trouble) for trouble in troubles(said(text))]


@pytest.mark.parametrize("queue", ["pseries hotplug workque", "pseries hotplug workqueue"])
def test_an_oops_says_where_and_to_whom_it_came(queue: str) -> None:
    [trouble] = troubles(said(_WORKER.replace("pseries hotplug workque", queue)))
    assert str(trouble) == _TOLD.replace("pseries hotplug workque", queue)
    assert trouble.ends_hotplug


def test_an_oops_of_other_work_ends_no_hotplug() -> None:
    [trouble] = troubles(said(_WORKER.replace("pseries hotplug workque", "events")))
    assert trouble.oops
    assert not trouble.ends_hotplug


def test_what_led_to_an_oops_is_one_trouble_with_it() -> None:
    [trouble] = troubles(said(_READ))
    assert str(trouble) == (
        "BUG: Kernel NULL pointer dereference on read at 0x00000000 in __rpaphp_get_sensor_state+0x20/0x90, task drmgr"
    )
    assert trouble.oops
    assert not trouble.ends_hotplug


def test_each_is_told_in_its_order() -> None:
    assert told(f"{_WORKER}\n{_READ}\nKernel panic - not syncing: Fatal exception")[::2] == [
        _TOLD,
        "Kernel panic - not syncing: Fatal exception",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [kworker/u16:1:24]",
        "watchdog: CPU 0 detected hard LOCKUP on other CPUs 1",
        "rcu: INFO: rcu_sched self-detected stall on CPU",
        "rcu: INFO: rcu_sched detected stalls on CPUs/tasks:",
        "INFO: task drmgr:811 blocked for more than 120 seconds.",
        "kernel BUG at mm/slub.c:435!",
    ],
)
def test_other_troubles(line: str) -> None:
    assert told(line) == [line]
    assert not troubles(said(line))[0].ends_hotplug


def test_a_warning_is_none() -> None:
    warning = "WARNING: CPU: 0 PID: 24 at kernel/workqueue.c:1 process_one_work+0x8/0x1f0\n" + "\n".join(_WORKER.splitlines()[1:])
    assert told(warning) == []
    assert ends_trace(said(warning)[-1])


def test_the_console_has_it_too_and_it_counts_once() -> None:
    assert [str(one) for one in troubles(said(_WORKER, Lane.CONSOLE, "[   10.031166] ") + said(_WORKER))] == [_TOLD]
    # Linux says by whom, where it is built to.
    assert [str(one) for one in troubles(said(_WORKER, Lane.CONSOLE, "[   10.031166][   T24] "))] == [_TOLD]


def test_what_a_program_writes_to_the_console_is_no_word_of_the_kernel() -> None:
    assert not troubles(said(_WORKER, Lane.CONSOLE))
    assert not troubles(said(_WORKER, Lane.SSH))
