"""Level 1: bytes <-> blocks, frames and runs. Pure: no input, no output, no keys of its own."""
