"""Instant recovery: a machine that runs before its disks are restored. docs/adr/037."""
