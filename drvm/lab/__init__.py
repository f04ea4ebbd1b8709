"""A small real guest and local services, for tests and the demo. Not for production."""
