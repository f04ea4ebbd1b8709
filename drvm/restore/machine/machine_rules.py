"""The allow list outside ``<devices>``: what makes the guest's machine what it is.

Words and shapes follow libvirt's own schema (domaincommon.rng of 9.0) and "Domain XML format" on
libvirt.org. Left out on purpose: whatever names something of the host (pinning, cgroup
partitions, block device weights, huge pages, files), and whatever reaches past libvirt
(the ``qemu`` namespace).
"""

from __future__ import annotations

from collections.abc import Mapping

from drvm.restore.machine.allowlist import Rule
from drvm.restore.machine.values import (
    COUNT,
    CPUS,
    HV_VENDOR,
    NUMBER,
    ON_OFF,
    SIGNED,
    SIZE,
    STATE,
    TOKEN,
    UNIT,
    YES_NO,
    ZONE,
    one_of,
    rule,
)

_LIMIT = rule(text=SIGNED, unit=UNIT)
_SHARES = rule(text=SIGNED)

_SWITCHES = "hap pvspinlock pmu vmport vmcoreinfo htm nested-hv ccf-assist ras"
_HYPERV_SWITCHES = (
    "relaxed vapic vpindex runtime synic reset frequencies reenlightenment tlbflush ipi evmcs avic "
    "emsr_bitmap xmm_input"
)
_KVM_SWITCHES = "hidden hint-dedicated poll-control pv-ipi"

FEATURES = rule(
    {
        **dict.fromkeys(("acpi", "pae", "viridian", "privnet"), rule()),
        **dict.fromkeys(_SWITCHES.split(), STATE),
        "apic": rule(eoi=ON_OFF),
        "hyperv": rule(
            {
                **dict.fromkeys(_HYPERV_SWITCHES.split(), STATE),
                "spinlocks": rule(state=ON_OFF, retries=NUMBER),
                "stimer": rule({"direct": STATE}, state=ON_OFF),
                "vendor_id": rule(state=ON_OFF, value=HV_VENDOR),
            },
            mode=one_of("custom passthrough"),
        ),
        "kvm": rule(
            {
                **dict.fromkeys(_KVM_SWITCHES.split(), STATE),
                "dirty-ring": rule(state=ON_OFF, size=NUMBER),
            }
        ),
        "gic": rule(version=one_of("host 2 3")),
        "smm": rule({"tseg": SIZE}, state=ON_OFF),
        "ioapic": rule(need="driver", driver=one_of("kvm qemu")),
        "hpt": rule({"maxpagesize": SIZE}, resizing=one_of("enabled disabled required")),
        "msrs": rule(need="unknown", unknown=one_of("ignore fault")),
        "tcg": rule({"tb-cache": SIZE}),
    }
)

CLOCK = rule(
    {
        "timer": rule(
            {"catchup": rule(threshold=NUMBER, slew=NUMBER, limit=NUMBER)},
            need="name",
            most=16,
            name=one_of("platform hpet kvmclock pit rtc tsc hypervclock armvtimer"),
            track=one_of("boot guest wall realtime"),
            tickpolicy=one_of("delay catchup merge discard"),
            frequency=NUMBER,
            mode=one_of("auto native emulate paravirt smpsafe"),
            present=YES_NO,
        )
    },
    need="offset",
    offset=one_of("utc localtime timezone variable absolute"),
    adjustment=SIGNED,
    basis=one_of("utc localtime"),
    timezone=ZONE,
    start=NUMBER,
)

_DISTANCES = rule(
    {"sibling": rule(need="id value", most=1024, id=COUNT, value=COUNT)},
)
CPU_TOPOLOGY: Mapping[str, Rule] = {
    "topology": rule(
        need="sockets cores threads",
        sockets=COUNT,
        dies=COUNT,
        clusters=COUNT,
        cores=COUNT,
        threads=COUNT,
    ),
    "numa": rule(
        {
            "cell": rule(
                {"distances": _DISTANCES},
                need="memory",
                most=1024,
                id=COUNT,
                cpus=CPUS,
                memory=NUMBER,
                unit=UNIT,
                discard=YES_NO,
            )
        }
    ),
}
"""The part of a CPU that holds whatever processor is below it."""

CPU = rule(
    {
        **CPU_TOPOLOGY,
        "model": rule(
            text=TOKEN, fallback=one_of("allow forbid"), vendor_id=HV_VENDOR, vendor=TOKEN
        ),
        "vendor": rule(text=TOKEN),
        "cache": rule(mode=one_of("emulate passthrough disable"), level=NUMBER),
        "maxphysaddr": rule(mode=one_of("emulate passthrough"), bits=NUMBER, limit=NUMBER),
        "feature": rule(
            need="name",
            most=1024,
            name=TOKEN,
            policy=one_of("force require optional disable forbid"),
        ),
    },
    mode=one_of("custom host-model host-passthrough maximum"),
    match=one_of("exact minimum strict"),
    check=one_of("none partial full"),
    migratable=ON_OFF,
)

_CPUTUNE_PLAIN = (
    "shares period quota global_period global_quota emulator_period emulator_quota "
    "iothread_period iothread_quota"
)

MACHINE: Mapping[str, Rule] = {
    "memory": rule(text=NUMBER, unit=UNIT, dumpCore=ON_OFF),
    "currentMemory": SIZE,
    "maxMemory": rule(text=NUMBER, need="slots", unit=UNIT, slots=COUNT),
    "memtune": rule(dict.fromkeys(("hard_limit", "soft_limit", "swap_hard_limit"), _LIMIT)),
    "blkiotune": rule({"weight": _SHARES}),
    "vcpu": rule(text=COUNT, placement=one_of("static"), current=COUNT),
    "vcpus": rule(
        {
            "vcpu": rule(
                need="id enabled",
                most=4096,
                id=COUNT,
                enabled=YES_NO,
                hotpluggable=YES_NO,
                order=COUNT,
            )
        }
    ),
    "iothreads": rule(text=COUNT),
    "iothreadids": rule(
        {
            "iothread": rule(
                need="id",
                most=1024,
                id=COUNT,
                thread_pool_min=COUNT,
                thread_pool_max=COUNT,
            )
        }
    ),
    "defaultiothread": rule(thread_pool_min=COUNT, thread_pool_max=COUNT),
    "cputune": rule(dict.fromkeys(_CPUTUNE_PLAIN.split(), _SHARES)),
    "features": FEATURES,
    "cpu": CPU,
    "clock": CLOCK,
    "on_poweroff": rule(text=one_of("destroy restart preserve rename-restart")),
    "on_reboot": rule(text=one_of("destroy restart preserve rename-restart")),
    "on_crash": rule(text=one_of("destroy restart preserve rename-restart")),
    "on_lockfailure": rule(text=one_of("poweroff restart pause ignore")),
    "pm": rule(
        {
            "suspend-to-mem": rule(need="enabled", enabled=YES_NO),
            "suspend-to-disk": rule(need="enabled", enabled=YES_NO),
        }
    ),
}
"""Element by element; ``<os>``, ``<sysinfo>`` and ``<metadata>`` are rebuilt by hand."""

HOST_BOUND = frozenset({"cputune", "memtune", "blkiotune"})
"""What a drill leaves out too: it asks the host for cgroup controllers."""

KVM_ONLY_FEATURES = frozenset({"kvm", "hyperv", "pvspinlock", "ioapic", "pmu", "viridian"})
KVM_ONLY_TIMERS = frozenset({"kvmclock", "hypervclock"})

OS_CHILDREN: Mapping[str, Rule] = {
    "bios": rule(useserial=YES_NO, rebootTimeout=SIGNED),
    "boot": rule(need="dev", most=8, dev=one_of("hd cdrom network fd")),
    "bootmenu": rule(enable=YES_NO, timeout=NUMBER),
    "smbios": rule(need="mode", mode=one_of("emulate sysinfo")),
}

FIRMWARE_FEATURE = rule(
    need="name enabled", name=one_of("secure-boot enrolled-keys"), enabled=YES_NO, most=4
)

SMBIOS_ENTRIES: Mapping[str, frozenset[str]] = {
    "bios": frozenset({"vendor", "version", "date", "release"}),
    "system": frozenset({"manufacturer", "product", "version", "serial", "uuid", "sku", "family"}),
    "baseBoard": frozenset({"manufacturer", "product", "version", "serial", "asset", "location"}),
    "chassis": frozenset({"manufacturer", "version", "serial", "asset", "sku"}),
}
