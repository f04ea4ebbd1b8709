"""Level 1: the config file, the environment, and the passphrase they lead to."""
