"""`python -m rstream` is the command line."""

from rstream.cli.main import main

if __name__ == "__main__":
    main()
