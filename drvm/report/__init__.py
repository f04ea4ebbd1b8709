"""Level 1: results of drills -> pages for people and documents for machines. Pure.

Whatever a guest said is hostile text: escaped, without control characters, cut.
"""
