"""Measurements. Each is one command that prints a table and writes JSON; no test asks for times."""
