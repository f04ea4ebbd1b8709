"""Level 5: settings -> concrete objects, and the jobs that the ways in share.

``assembly`` is the only module that knows all concrete adapters.
"""
