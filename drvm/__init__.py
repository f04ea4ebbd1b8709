"""drvm: backup, snapshots and disaster recovery for KVM virtual machines."""

__version__ = "0.1.0"
