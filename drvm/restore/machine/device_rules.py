"""The allow list for devices.

``PLAIN`` devices are copied by rule as they are. The other rules are for the parts of devices
whose connection to the host is made anew in ``devices.py``. What stands in neither has no way
into a restored domain: hostdev, filesystem, shmem, redirdev, smartcard, lease, nvram, crypto and
whatever libvirt may invent.
"""

from __future__ import annotations

from collections.abc import Mapping

from drvm.restore.machine.allowlist import Rule
from drvm.restore.machine.values import (
    BOOT,
    CONTROLLER,
    COUNT,
    DISK_NAME,
    GROUP,
    INDEX,
    KEYMAP,
    NUMBER,
    ON_OFF,
    PORT_NAME,
    ROM,
    SCSI_TEXT,
    SERIAL,
    SIZE,
    VIRTIO,
    VIRTIO_OPTIONS,
    WHERE,
    WWN,
    YES_NO,
    device,
    one_of,
    rule,
)

_VIRTIO_DRIVER = rule(also=VIRTIO_OPTIONS)

_CONTROLLER = device(
    {
        "driver": rule(
            queues=COUNT,
            cmd_per_lun=NUMBER,
            max_sectors=NUMBER,
            ioeventfd=ON_OFF,
            iothread=COUNT,
            also=VIRTIO_OPTIONS,
        ),
        "model": rule(
            need="name",
            name=one_of(
                "spapr-pci-host-bridge pci-bridge i82801b11-bridge pcie-pci-bridge ioh3420 "
                "pcie-root-port x3130-upstream xio3130-downstream pxb pxb-pcie"
            ),
        ),
        "target": rule(
            {"node": rule(text=COUNT)},
            chassisNr=CONTROLLER,
            chassis=CONTROLLER,
            port=INDEX,
            busNr=CONTROLLER,
            index=CONTROLLER,
            hotplug=ON_OFF,
        ),
        "pcihole64": SIZE,
        "master": rule(startport=COUNT),
    },
    need="type",
    type=one_of("ide fdc scsi sata usb pci isa virtio-serial"),
    index=CONTROLLER,
    model=one_of(
        "auto buslogic lsilogic lsisas1068 lsisas1078 vmpvscsi ibmvscsi virtio-scsi ncr53c90 dc390 "
        "am53c974 virtio virtio-transitional virtio-non-transitional piix3 piix4 ich6 piix3-uhci "
        "piix4-uhci ehci ich9-ehci1 ich9-uhci1 ich9-uhci2 ich9-uhci3 vt82c686b-uhci pci-ohci "
        "nec-xhci qusb1 qusb2 qemu-xhci none pci-root pcie-root pci-bridge dmi-to-pci-bridge "
        "pcie-to-pci-bridge pcie-root-port pcie-switch-upstream-port pcie-switch-downstream-port "
        "pci-expander-bus pcie-expander-bus"
    ),
    ports=COUNT,
    vectors=COUNT,
)

_VIDEO = device(
    {
        "driver": rule(name=one_of("qemu"), vgaconf=one_of("io on off"), also=VIRTIO_OPTIONS),
        "model": rule(
            {"resolution": rule(need="x y", x=NUMBER, y=NUMBER)},
            need="type",
            type=one_of("vga cirrus vmvga virtio gop none bochs ramfb qxl"),
            ram=NUMBER,
            vram=NUMBER,
            vram64=NUMBER,
            vgamem=NUMBER,
            heads=COUNT,
            primary=YES_NO,
            blob=ON_OFF,
        ),
    }
)

_MEMORY = device(
    {"target": rule({"size": SIZE, "node": rule(text=COUNT), "block": SIZE, "requested": SIZE})},
    need="model",
    model=one_of("dimm virtio-mem"),
    discard=YES_NO,
)

PLAIN: Mapping[str, Rule] = {
    "controller": _CONTROLLER,
    "hub": device(need="type", type=one_of("usb")),
    "input": device(
        {"driver": _VIRTIO_DRIVER},
        need="type",
        type=one_of("tablet mouse keyboard"),
        bus=one_of("ps2 usb virtio"),
        model=VIRTIO,
    ),
    "iommu": device(
        {
            "driver": rule(
                intremap=ON_OFF, caching_mode=ON_OFF, eim=ON_OFF, iotlb=ON_OFF, aw_bits=NUMBER
            )
        },
        need="model",
        model=one_of("intel smmuv3 virtio"),
    ),
    "memballoon": device(
        {"driver": _VIRTIO_DRIVER, "stats": rule(need="period", period=NUMBER)},
        need="model",
        model=one_of("virtio virtio-transitional virtio-non-transitional none"),
        autodeflate=ON_OFF,
        freePageReporting=ON_OFF,
    ),
    "memory": _MEMORY,
    "panic": device(model=one_of("isa pseries hyperv s390 pvpanic")),
    "sound": device(
        {
            "codec": rule(need="type", most=8, type=one_of("duplex micro output")),
            "audio": rule(need="id", id=one_of("1")),
        },
        need="model",
        model=one_of("sb16 es1370 pcspk ac97 ich6 ich7 ich9 usb"),
    ),
    "video": _VIDEO,
    "watchdog": device(
        need="model",
        model=one_of("i6300esb ib700 diag288 itco"),
        action=one_of("reset shutdown poweroff pause none inject-nmi"),
    ),
}

DISK_DRIVER = rule(
    {"metadata_cache": rule({"max_size": SIZE})},
    cache=one_of("default none writeback writethrough directsync unsafe"),
    io=one_of("threads native io_uring"),
    discard=one_of("unmap ignore"),
    detect_zeroes=one_of("off on unmap"),
    error_policy=one_of("stop report ignore enospace"),
    rerror_policy=one_of("stop report ignore"),
    ioeventfd=ON_OFF,
    event_idx=ON_OFF,
    copy_on_read=ON_OFF,
    discard_no_unref=ON_OFF,
    queues=COUNT,
    queue_size=NUMBER,
    iothread=COUNT,
    anew="name type",
    also=VIRTIO_OPTIONS,
)

_IOTUNE = " ".join(
    f"{amount}_{unit}_sec{burst}"
    for amount in ("total", "read", "write")
    for unit in ("bytes", "iops")
    for burst in ("", "_max", "_max_length")
)
DISK_CHILDREN: Mapping[str, Rule] = {
    **WHERE,
    "boot": BOOT,
    "serial": rule(text=SERIAL),
    "wwn": rule(text=WWN),
    "vendor": rule(text=SCSI_TEXT),
    "product": rule(text=SCSI_TEXT),
    "readonly": rule(),
    "blockio": rule(
        logical_block_size=NUMBER, physical_block_size=NUMBER, discard_granularity=NUMBER
    ),
    "geometry": rule(
        need="cyls heads secs",
        cyls=NUMBER,
        heads=NUMBER,
        secs=NUMBER,
        trans=one_of("auto none lba large rechs"),
    ),
    "iotune": rule(
        {
            **dict.fromkeys(_IOTUNE.split(), rule(text=NUMBER)),
            "size_iops_sec": rule(text=NUMBER),
            "group_name": rule(text=GROUP),
        }
    ),
}
DISK_TARGET = rule(
    need="dev",
    dev=DISK_NAME,
    bus=one_of("ide scsi virtio usb sata fdc sd"),
    removable=ON_OFF,
    rotation_rate=NUMBER,
)

_RATE = rule(need="average", average=NUMBER, peak=NUMBER, burst=NUMBER, floor=NUMBER)
_OFFLOADS = ("csum", "gso", "tso4", "tso6", "ecn", "ufo", "mrg_rxbuf")
NIC_CHILDREN: Mapping[str, Rule] = {
    **WHERE,
    "model": rule(
        need="type",
        type=one_of(
            "virtio virtio-transitional virtio-non-transitional e1000 e1000e e1000-82540em "
            "e1000-82544gc e1000-82545em igb rtl8139 pcnet ne2k_pci i82550 i82551 i82557a i82557b "
            "i82557c i82558a i82558b i82559a i82559b i82559c i82559er i82562 i82801 vmxnet3 "
            "usb-net lan9118 smc91c111 spapr-vlan tulip"
        ),
    ),
    "driver": rule(
        {
            "host": rule(also=dict.fromkeys(_OFFLOADS, ON_OFF)),
            "guest": rule(also=dict.fromkeys(_OFFLOADS, ON_OFF)),
        },
        name=one_of("vhost qemu"),
        txmode=one_of("iothread timer"),
        ioeventfd=ON_OFF,
        event_idx=ON_OFF,
        queues=COUNT,
        rx_queue_size=NUMBER,
        tx_queue_size=NUMBER,
        rss=ON_OFF,
        also=VIRTIO_OPTIONS,
    ),
    "link": rule(need="state", state=one_of("up down")),
    "boot": BOOT,
    "rom": ROM,
    "mtu": rule(need="size", size=NUMBER),
}
NIC_NETWORK_CHILDREN: Mapping[str, Rule] = {
    "bandwidth": rule({"inbound": _RATE, "outbound": _RATE}),
    "port": rule(isolated=YES_NO),
    "vlan": rule(
        {"tag": rule(need="id", most=4096, id=NUMBER, nativeMode=one_of("tagged untagged"))},
        trunk=YES_NO,
    ),
}
"""What belongs to the network rather than to the guest: not for an isolated one."""

CHARDEV_TARGET = rule(
    {
        "model": rule(
            need="name",
            name=one_of(
                "isa-serial usb-serial pci-serial spapr-vty pl011 16550a sclpconsole "
                "sclplmconsole isa-debugcon"
            ),
        )
    },
    type=one_of(
        "serial virtio sclp sclplm isa-serial usb-serial pci-serial spapr-vio-serial "
        "system-serial sclp-serial isa-debug"
    ),
    port=COUNT,
)
CHANNEL_TARGET = rule(need="type name", type=one_of("virtio"), name=PORT_NAME, anew="state")

GRAPHICS_CHILDREN: Mapping[str, Rule] = {
    "image": rule(compression=one_of("auto_glz auto_lz quic glz lz off"), need="compression"),
    "jpeg": rule(compression=one_of("auto never always"), need="compression"),
    "zlib": rule(compression=one_of("auto never always"), need="compression"),
    "playback": rule(compression=ON_OFF, need="compression"),
    "streaming": rule(mode=one_of("filter all off"), need="mode"),
    "clipboard": rule(copypaste=YES_NO, need="copypaste"),
    "mouse": rule(mode=one_of("server client"), need="mode"),
    "filetransfer": rule(enable=YES_NO, need="enable"),
}
GRAPHICS_KEYMAP = KEYMAP
TPM_MODEL = one_of("tpm-tis tpm-crb tpm-spapr")
TPM_VERSION = one_of("1.2 2.0")
PCR_BANKS = rule(dict.fromkeys(("sha1", "sha256", "sha384", "sha512"), rule()))
RNG_CHILDREN: Mapping[str, Rule] = {
    **WHERE,
    "driver": _VIRTIO_DRIVER,
    "rate": rule(need="bytes", bytes=NUMBER, period=NUMBER),
}
VSOCK_CHILDREN: Mapping[str, Rule] = {**WHERE, "driver": _VIRTIO_DRIVER}
