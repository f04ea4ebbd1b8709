"""Level 4: restore a point into isolation, boot it, check it, measure it, leave nothing."""
