"""Level 6: the dashboard, served on loopback by the daemon."""
