"""What is installed: a wheel, built as pip builds it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_wheel_has_all_that_is_not_python(tmp_path: Path) -> None:
    """Scripts, and what the dashboard's pages are made of: it needs no other server, and no build step."""
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
        metadata = next(packed.read(name).decode() for name in names if name.endswith("/METADATA"))
    kept = [path for path in (ROOT / "rstream").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {path.relative_to(ROOT).as_posix() for path in kept} <= names
    dashboard = {Path(name).name for name in names if name.startswith("rstream/dashboard/")}
    assert {"style.css", "live.js", "plot.js", "icon.svg", "base.html", "overview.html"} <= dashboard
    assert "Provides-Extra: dashboard" in metadata
    assert 'Requires-Dist: starlette>=0.46; extra == "dashboard"' in metadata.replace("'", '"')
