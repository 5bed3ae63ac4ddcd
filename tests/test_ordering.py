"""Order per key, with real worker processes that come, go, die and freeze: what was accepted is looked at."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.ordering import EACH, KEYS, Deed, chaos
from tests.servers import Server
from tests.steps import faults

SOME = 250
"""Steps of each key where it is not to last a minute."""


def resharded(server: Server, namespace: str, shards: int, kill_at: str) -> Deed:
    """By the command, killed as soon as it says that word, and run again."""
    command = [sys.executable, "-m", "rstream", "--url", server.url, "--namespace", namespace]
    command += ["streams", "reshard", "steps", "--shards", str(shards)]

    def reshard(_: object) -> None:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
            assert first.stdout is not None
            assert any(kill_at in line for line in first.stdout), "it ended before it could be killed"
            first.kill()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert f"-> {shards}" in done.stdout or f"{shards} shards" in done.stdout, done.stdout

    return reshard


def storm(
    server: Server,
    namespace: str,
    folder: Path,
    *,
    strikes: int,
    seed: int,
    each: int = EACH,
    reshardings: Mapping[int, tuple[int, str]] = MappingProxyType({}),
) -> None:
    """reshardings: by number of strikes, to how many shards, and where the command is killed."""
    between = {at: resharded(server, namespace, *plan) for at, plan in reshardings.items()}
    found, done = chaos(server, namespace, folder, strikes=strikes, seed=seed, each=each, between=between)
    assert faults(found, KEYS, each) == {}, done


@pytest.mark.timeout(240)
def test_workers_that_come_go_die_and_freeze_never_turn_the_steps_of_a_key_around(
    own_server: Server, namespace: str, tmp_path: Path
) -> None:
    storm(own_server, namespace, tmp_path, strikes=10, seed=20261120, each=SOME)


@pytest.mark.torture
@pytest.mark.timeout(240)
def test_nor_does_a_stream_that_is_resharded_twice_by_commands_that_are_killed(
    own_server: Server, namespace: str, tmp_path: Path
) -> None:
    plan = {3: (12, "opened"), 8: (5, "planned")}
    storm(own_server, namespace, tmp_path, strikes=12, seed=20261121, each=SOME, reshardings=plan)


@pytest.mark.torture
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(3))
def test_a_minute_of_it_and_of_reshardings(own_server: Server, namespace: str, tmp_path: Path, seed: int) -> None:
    plan = {15: (12, "opened"), 35: (5, "planned")}
    storm(own_server, namespace, tmp_path, strikes=60, seed=seed + 100, reshardings=plan)


@pytest.mark.torture
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(3))
def test_a_minute_of_it(own_server: Server, namespace: str, tmp_path: Path, seed: int) -> None:
    storm(own_server, namespace, tmp_path, strikes=60, seed=seed)
