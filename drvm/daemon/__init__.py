"""Level 6: the scheduler. Policies become points, unattended."""
