"""`python -m examples.digits`: the whole story on one machine, then clean up. See README.md."""

import argparse
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from examples.digits.models import DIRECTORY
from examples.digits.processes import Children, Failed
from rstream.errors import RStreamError


def main() -> int:
    """Run the demo; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.digits", description=__doc__)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in DIR (new or empty) and keep it")
    arguments = parser.parse_args()
    # SIGTERM cleans up like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with workspace(arguments.keep) as directory:
            settle_in(directory)
            run(directory)
    except (Failed, RStreamError) as error:
        print(f"digits: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("digits: interrupted, cleaned up", file=sys.stderr)
        return 130
    return 0


@contextmanager
def workspace(keep: Path | None) -> Iterator[Path]:
    """A directory for server, models and logs, gone afterwards unless it is to be kept."""
    if keep is None:
        directory = Path(tempfile.mkdtemp(prefix="rstream-digits-"))
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        return
    keep.mkdir(parents=True, exist_ok=True)
    if any(keep.iterdir()):
        raise Failed(f"--keep {keep}: not empty; what an earlier run left there would be counted again")
    yield keep.resolve()


def settle_in(directory: Path) -> None:
    """Say in the environment where the server and the models are; all child processes inherit it."""
    os.environ[DIRECTORY] = str(directory)
    if os.environ.get("RSTREAM_URL"):
        # Somebody's own server: keep to a namespace of this run, so that nothing is mixed up.
        namespace = os.environ["RSTREAM_NAMESPACE"] = f"demo-{secrets.token_hex(3)}"
        print(f"using RSTREAM_URL, in the namespace {namespace} (its keys stay there)")
    else:
        os.environ["RSTREAM_URL"] = f"embedded:{directory / 'server'}"


def run(directory: Path) -> None:
    """Do the job and print its report; on failure, what the processes said last."""
    # Not at the top: importing it makes the app, which takes its server from the environment.
    from examples.digits.app import app
    from examples.digits.job import Job

    try:
        with Children(directory) as children:
            try:
                print("\n" + Job(children).run())
            except (Failed, RStreamError):
                print(children.tails(), file=sys.stderr)
                raise
    finally:
        app.close()


if __name__ == "__main__":
    sys.exit(main())
