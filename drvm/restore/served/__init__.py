"""A point's disks as something that can be read at random while they stay in the repository."""
