"""Disks of a point in the formats of other hypervisors, with a description of the machine."""
