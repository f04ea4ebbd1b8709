"""Restore: plan first, then write the disks, and define the machine last."""
