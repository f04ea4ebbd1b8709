"""Level 1: when things are due. Pure: every moment comes in as an argument, in UTC."""
