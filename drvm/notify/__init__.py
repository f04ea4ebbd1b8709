"""Level 1: telling people and machines elsewhere what happened."""
