"""The files inside a point's disks: read by libguestfs in an appliance of its own, never by the
host's kernel (docs/adr/038-guest-files.md)."""
