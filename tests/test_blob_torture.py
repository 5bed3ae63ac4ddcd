"""Much that is large: what it costs Redis, and a worker's memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from rstream import RStream
from tests.handlers import Media, Scan
from tests.objects import bucket, moto
from tests.servers import Server

MB = 1024 * 1024
COUNT, SIZE = 100, 8 * MB

WORKER = r"""
import asyncio, re, sys
from rstream import Delivery, RStream
from rstream.worker.worker import Worker
from tests.handlers import Media, Scan

app = RStream(sys.argv[1], namespace=sys.argv[2], blobs=sys.argv[3])
seen = []

def peak():  # in MB; not ru_maxrss, which begins with that of the parent
    return int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) // 1024

base = peak()

@app.stream("scans", Scan, key="who").consumer("g", concurrency=4, lease=5.0)
async def scan(event: Scan) -> None:
    seen.append(len(event.pixels))

@app.stream("media", Media, key="who").consumer("g", concurrency=4, lease=5.0)
async def hear(event: Media) -> None:
    async with event.audio.open() as file:
        seen.append(await asyncio.to_thread(lambda: sum(map(len, iter(lambda: file.read(65536), b"")))))

Worker(app, [sys.argv[4]], burst=True).run()
print(len(seen), set(seen), peak() - base)
"""


@pytest.mark.torture
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of a process from /proc")
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("stream", "bound"), [("scans", 350), ("media", 100)])
@pytest.mark.parametrize("kind", ["directory", "s3"])
def test_a_hundred_payloads_of_8_mb(
    own_server: Server, namespace: str, tmp_path: Path, kind: str, stream: str, bound: int
) -> None:
    url = f"file://{tmp_path}/blobs" if kind == "directory" else f"s3://{bucket(moto())}?endpoint={moto()}"
    with RStream(own_server.url, namespace=namespace, blobs=url) as app, redis.Redis.from_url(own_server.url) as client:
        scans, media = app.stream("scans", Scan, key="who"), app.stream("media", Media, key="who")
        scans.sync.layout(), media.sync.layout()
        before = client.info("memory")["used_memory"]
        for n in range(COUNT):
            if stream == "scans":
                scans.sync.publish(Scan(who=f"w{n}", pixels=os.urandom(SIZE)))
            else:
                (tmp_path / "audio").write_bytes(os.urandom(SIZE))
                from rstream import Blob

                media.sync.publish(Media(who=f"w{n}", audio=Blob.file(tmp_path / "audio")))
        grown = client.info("memory")["used_memory"] - before
        arguments = [own_server.url, namespace, url, f"{stream}/g"]
        done = subprocess.run([sys.executable, "-c", WORKER, *arguments], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    count, sizes, peak = done.stdout.split()
    print(f"\n{kind} {stream}: Redis grew by {grown:,} bytes, the worker by {peak} MB")
    assert grown < MB
    assert (int(count), sizes) == (COUNT, f"{{{SIZE}}}")
    assert int(peak) < bound
