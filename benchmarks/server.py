"""The server that all contestants of a workload share: one binary, one address by TCP, one fsync policy.

It starts empty for each workload and ends with it. `appendfsync everysec` is what most people run; the file is not
rewritten meanwhile, which would disturb whoever is at work then.
"""

from __future__ import annotations

import random
import subprocess
import tempfile
import time
from types import TracebackType
from typing import Any

import redis

from rstream.store.embedded import find_server

POLICY = ("--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--auto-aof-rewrite-percentage", "0")
START_WITHIN, TRIES = 15.0, 5
_chance = random.SystemRandom()  # hypothesis makes the usual one the same in all test processes

Snapshot = list[tuple[bytes, int, bytes]]


class Server:
    """url; `raw`, a client for the harness."""

    def __enter__(self) -> Server:
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        for _ in range(TRIES):  # somebody may be faster at a port
            if self._start(_chance.randrange(16_384, 32_768)):
                return self
        self._folder.cleanup()
        raise RuntimeError(f"{find_server()} did not start at any of {TRIES} ports")

    def _start(self, port: int) -> bool:
        """Below the ports that the kernel gives to outgoing connections."""
        command = [str(find_server()), "--port", str(port), "--bind", "127.0.0.1", "--dir", self._folder.name, *POLICY]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.url = f"redis://127.0.0.1:{port}"
        self.raw = redis.Redis.from_url(self.url)
        limit = time.monotonic() + START_WITHIN
        while self._process.poll() is None and time.monotonic() < limit:
            if self._answers():
                return self._process.poll() is None
            time.sleep(0.01)
        self._process.kill()
        self._process.wait()
        return False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.raw.close()
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def _answers(self) -> bool:
        try:
            told: dict[str, Any] = self.raw.info("server")
            return int(told["process_id"]) == self._process.pid
        except redis.RedisError:
            return False

    @property
    def version(self) -> str:
        told: dict[str, Any] = self.raw.info("server")
        name = told.get("server_name", "redis").capitalize()
        return f"{name} {told.get('valkey_version') or told['redis_version']}"

    def cpu(self) -> float:
        """CPU seconds that the server has used."""
        told: dict[str, Any] = self.raw.info("cpu")
        return float(told["used_cpu_user"]) + float(told["used_cpu_sys"])

    def size(self) -> int:
        """Bytes that all keys take."""
        keys, total = list(self.raw.scan_iter(count=1000)), 0
        for at in range(0, len(keys), 1000):
            pipe = self.raw.pipeline(transaction=False)
            for key in keys[at : at + 1000]:
                pipe.memory_usage(key, samples=0)
            total += sum(pipe.execute())
        return total

    def reads(self) -> int:
        """How often the server has read from a connection: one for each command or pipeline that came alone."""
        told: dict[str, Any] = self.raw.info("stats")
        return int(told["total_reads_processed"])

    def commands(self) -> dict[str, int]:
        """How often each command was called, also from scripts."""
        told: dict[str, Any] = self.raw.info("commandstats")
        return {name.removeprefix("cmdstat_"): int(stat["calls"]) for name, stat in told.items()}

    def snapshot(self) -> Snapshot:
        """All there is, so that each round begins with the same queue, and publishes it once."""
        found: Snapshot = []
        for key in self.raw.scan_iter(count=1000):
            found.append((key, max(self.raw.pttl(key), 0), self.raw.dump(key)))
        return found

    def restore(self, snapshot: Snapshot) -> None:
        self.raw.flushall()
        for at in range(0, len(snapshot), 1000):
            pipe = self.raw.pipeline(transaction=False)
            for key, ttl, dumped in snapshot[at : at + 1000]:
                pipe.restore(key, ttl, dumped)
            pipe.execute()
