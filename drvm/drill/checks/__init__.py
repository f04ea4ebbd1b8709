"""What a drill asks of the booted guest: a file for each kind, a line for each in the registry."""
