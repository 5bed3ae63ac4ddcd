"""What a doctor finds, in tests."""

from __future__ import annotations

from typing import Any

from rstream import RStream
from rstream.doctor.examine import examine
from rstream.doctor.finding import Finding


def look(app: RStream, *names: str, declared: bool = False) -> list[Finding]:
    return [finding for finding in examine(app, names, declared=declared) if finding.level != "ok"]


def looked(url: str, *names: str, **settings: Any) -> list[Finding]:
    """As whoever just came."""
    with RStream(url, **settings) as app:
        return look(app, *names)


def found(findings: list[Finding], code: str) -> Finding:
    """The one of this code; fails with what there is."""
    (one,) = [finding for finding in findings if finding.code == code] or [None]
    assert one is not None, f"no {code} among {[(finding.code, finding.what) for finding in findings]}"
    return one


def codes(findings: list[Finding], *levels: str) -> set[str]:
    return {finding.code for finding in findings if not levels or finding.level in levels}
