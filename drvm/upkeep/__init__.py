"""Level 3: which points stay, and their removal."""
