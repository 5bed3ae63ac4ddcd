"""`python deploy/env.py EXAMPLE TARGET`: a copy of an env file, what is empty there filled with random secrets."""

import os
import secrets
import sys
from pathlib import Path


def filled(example: str) -> str:
    lines = example.splitlines()
    return "\n".join(line + secrets.token_hex(20) if line.endswith("=") else line for line in lines) + "\n"


if __name__ == "__main__":
    example, target = map(Path, sys.argv[1:])
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        sys.exit(f"{target} is there already, and its secrets are in use: delete it yourself for new ones")
    with os.fdopen(descriptor, "w") as file:
        file.write(filled(example.read_text("utf-8")))
    print(f"{target} has new secrets: keep it out of version control")
