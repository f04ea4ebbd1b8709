"""Level 3: taking recovery points: a capture is read, stored and committed."""
