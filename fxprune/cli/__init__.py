"""The command line: thin commands around the public functions, one file per concern."""
