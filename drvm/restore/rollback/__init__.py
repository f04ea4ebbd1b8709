"""A machine that is off, turned back to a point where it is (``restore --in-place``)."""
