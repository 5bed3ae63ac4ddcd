"""docs/runbook: each incident is staged, and what its page shows is what the commands say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from rstream.cli.main import COMMANDS
from tests.incidents.page import FOLDER, Page
from tests.incidents.scenes import INCIDENTS, SHOWS
from tests.incidents.stage import played

INDEX = FOLDER.parent / "runbook.md"
ALERTS = yaml.safe_load((FOLDER.parents[1] / "deploy/prometheus/alerts.yml").read_text("utf-8"))
NAMES = {rule["alert"] for group in ALERTS["groups"] for rule in group["rules"]}


def codes(output: str) -> set[str]:
    """Of what the doctor finds."""
    return set(re.findall(r"^(?:PROBLEM|WARNING|NOTE) +([a-z-]+)  ", output, re.M))


MORE = {
    *("redis-away", "entries-lost", "no-worker", "delivery-old", "group-paused"),
    *("redis-reset", "trim-pinned", "hot-key"),
}
"""They are staged by `make torture`."""


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.torture) if name in MORE else name for name in INCIDENTS]
)
def test_what_the_page_shows_is_what_happens(name: str, tmp_path: Path) -> None:
    page = Page(name)
    wanted = {(command, text) for command, texts in SHOWS[name].items() for text in texts}
    shown, said = set(wanted), set(wanted)
    with played(INCIDENTS[name], tmp_path) as (stage, go_to):
        for block in page.blocks:
            go_to(block.turn)
            now = stage.run(block.command)
            assert codes(block.output) <= codes(now), f"{block.command}: {now}"  # a busy machine may add its own
            for each in wanted:
                if block.command.startswith(each[0]):
                    shown -= {each} if each[1] in block.output else set()
                    said -= {each} if each[1] in now else set()
    assert not shown, f"{page.path.name} does not show {shown}: make runbook"
    assert not said, f"{name}: no command says {said}"


def test_every_page_is_staged_and_linked() -> None:
    pages = {path.stem for path in FOLDER.glob("*.md")}
    assert pages == INCIDENTS.keys() == SHOWS.keys()
    assert pages <= set(re.findall(r"\(runbook/([a-z-]+)\.md", INDEX.read_text("utf-8")))


@pytest.mark.parametrize("path", [INDEX, *sorted(FOLDER.glob("*.md"))], ids=lambda path: path.stem)
def test_a_page_names_what_there_is(path: Path) -> None:
    text = path.read_text("utf-8")
    assert set(re.findall(r"`(Rstream\w+)`", text)) <= NAMES
    called = set(re.findall(r"(?:^\$|`)(?:.*\| )? ?rstream ([a-z]+)", text, re.M))
    assert called <= set(COMMANDS), called - set(COMMANDS)
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert link.startswith("https://") or (path.parent / link).exists(), link


def test_every_alert_is_in_the_runbook() -> None:
    text = "".join(path.read_text("utf-8") for path in [INDEX, *FOLDER.glob("*.md")])
    assert set(re.findall(r"`(Rstream\w+)`", text)) == NAMES
