"""The definition of a restored machine: read as hostile, rebuilt from an allow list."""
