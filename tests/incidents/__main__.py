"""Write what commands print into the pages of docs/runbook: all, or those that are named."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.incidents.page import Page
from tests.incidents.scenes import INCIDENTS
from tests.incidents.stage import played


def main() -> None:
    for name in sys.argv[1:] or INCIDENTS:
        page, outputs = Page(name), []
        with (
            tempfile.TemporaryDirectory(prefix="rstream-") as directory,
            played(INCIDENTS[name], Path(directory)) as (
                stage,
                go_to,
            ),
        ):
            for block in page.blocks:
                go_to(block.turn)
                outputs.append(stage.run(block.command))
        page.write(outputs)
        print(f"{page.path}: {len(outputs)} commands")


if __name__ == "__main__":
    main()
