"""Level 1: what the daemon and ``drvm run`` did and do, kept on this host."""
