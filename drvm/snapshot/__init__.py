"""Level 2: capture. A running or stopped VM becomes a frozen machine that can be read.

Nothing in here knows of repositories. Whatever an engine changes outside is written to the
journal first, so that recovery can undo it.
"""
