"""Level 1: object stores. Bytes under names, nothing else; the only door to S3.

A new store is one file that fulfils ``base.Store``, one line in ``urls.py`` and one parameter of
the contract suite in ``tests/contract/test_store.py``.
"""
