"""The command line: one command family a file, each imported when it is called."""
