"""Level 6: the command line. One file per command in ``commands``; only this room prints."""
