"""Level 0: what every room may use. The standard library only."""
