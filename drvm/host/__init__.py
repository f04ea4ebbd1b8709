"""Level 1: the KVM host. The only doors to libvirt, to QEMU's tools and to NBD."""
