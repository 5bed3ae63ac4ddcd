"""The demo is the first thing a newcomer runs, so it is a test: what it prints must be what happened."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.timeout(240)
def test_the_demo_says_what_it_did(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RSTREAM_")}
    command = [sys.executable, "-m", "examples.digits", "--keep", str(tmp_path / "kept")]
    run = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stdout + run.stderr

    def said(label: str) -> float:
        found = re.search(rf"^  {label}\s+([\d.,]+)", run.stdout, re.MULTILINE)
        assert found, run.stdout
        return float(found[1].replace(",", ""))

    assert said("published") == said("classified") == 1797
    assert said("redelivered") >= 1
    assert said("replayed") == 599
    assert said("accuracy of v1") < said("accuracy of v2") <= 100
    assert said("seconds") > 0
    assert "devices kept it" in run.stdout
