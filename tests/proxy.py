"""A TCP proxy between a client and Redis that breaks connections in the ways networks do, on command.

- It listens on 127.0.0.1, forwards to a (host, port) or a unix socket, and runs in a thread of its own: tests may
  block. Every method may be called from any thread, and has taken effect when it returns.
- What it forwarded before a cut has been handed to Redis and is executed there: the upstream side is closed by a
  half-close after the last byte, never by a reset.
- After `stop()`, `start()` listens on the same port again.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import weakref
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

HOST = "127.0.0.1"
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST


class _Cuts:
    """When the next cut is due, counted in request bytes over all connections, and of what kind it is."""

    KINDS = ("mid-request", "before-reply", "mid-reply")

    def __init__(self, times: int, rng: random.Random, mean_bytes: int) -> None:
        self.left, self.rng, self.mean = times, rng, mean_bytes
        self.until = self._gap()

    def _gap(self) -> int:
        return 1 + int(self.rng.expovariate(1 / self.mean))

    def due(self, size: int) -> tuple[str, int] | None:
        """Whether a chunk of `size` bytes is hit: by what, and after how many of its bytes."""
        if not self.left:
            return None
        if self.until > size:
            self.until -= size
            return None
        at, self.until = self.until, self._gap()
        self.left -= 1
        return self.rng.choice(self.KINDS), at


class _Pair:
    """One client connection and its upstream connection; lives in the proxy's loop."""

    def __init__(self, proxy: ChaosProxy) -> None:
        self.proxy = proxy
        self.client = _Side(self.request, self.client_gone)
        self.upstream = _Side(self.reply, self.pass_ends)
        self.client.peer, self.upstream.peer = self.upstream, self.client
        self.early: list[bytes] = []  # requests that came before upstream was connected
        self.late: deque[bytes] = deque()  # replies that are being delayed
        self.connected = False
        self.lost = False  # bytes fell into a black hole: this connection never works again
        self.cut_reply: _Cuts | None = None  # the plan that wants the next reply cut in its middle

    async def connect(self) -> None:
        """Connect upstream, unless the client is meant to talk to nobody."""
        loop, target = asyncio.get_running_loop(), self.proxy.upstream
        try:
            if isinstance(target, tuple):
                await loop.create_connection(lambda: self.upstream, *target)
            else:
                await loop.create_unix_connection(lambda: self.upstream, str(target))
        except OSError:
            self.client.reset()
            return
        self.connected = True
        for data in self.early:
            self.upstream.write(data)
        if self.client.ended:
            self.upstream.finish()

    def request(self, data: bytes) -> None:
        if self.proxy.hole or self.lost:
            self.lost = True
        elif (plan := self.proxy.plan) and not self.cut_reply and (hit := plan.due(len(data))):
            self._hit(plan, data, *hit)
        else:
            self._forward(data)

    def _hit(self, plan: _Cuts, data: bytes, kind: str, at: int) -> None:
        self._forward(data[:at] if kind == "mid-request" else data)
        if kind == "mid-reply":
            self.cut_reply = plan
        else:
            self._cut(plan)

    def _forward(self, data: bytes) -> None:
        if self.connected:
            self.upstream.write(data)
        else:
            self.early.append(data)

    def reply(self, data: bytes) -> None:
        if self.proxy.hole or self.lost:
            self.lost = True
        elif plan := self.cut_reply:
            self.cut_reply = None
            self.client.write(data[: plan.rng.randrange(len(data))])
            self._cut(plan)
        elif self.proxy.delay or self.late:
            self.late.append(data)
            self.proxy.loop.call_later(self.proxy.delay, self._deliver)
        else:
            self.client.write(data)

    def _deliver(self) -> None:
        # Timers may fire out of order; what is delivered is always the oldest.
        data = self.late.popleft()
        if not (self.proxy.hole or self.lost):
            self.client.write(data)

    def _cut(self, plan: _Cuts) -> None:
        self.proxy.cuts += 1
        self.client.reset() if plan.rng.random() < 0.5 else self.client.close()

    def client_gone(self) -> None:
        if self.cut_reply:  # it left before it could be cut: somebody else's turn
            self.cut_reply.left += 1
            self.cut_reply = None
        self.pass_ends()

    def pass_ends(self) -> None:
        """Tell each side that the other has gone; not through a black hole, where no FIN comes through either."""
        if self.proxy.hole:
            return
        if self.client.ended:
            self.upstream.finish()
        elif self.upstream.ended:
            self.client.close()
        if self.client.ended and self.upstream.ended:
            self.proxy.pairs.discard(self)


class _Side(asyncio.Protocol):
    """One of the two connections of a pair; a slow reader slows its peer down."""

    def __init__(self, received: Callable[[bytes], None], gone: Callable[[], None]) -> None:
        self.received, self.gone = received, gone
        self.transport: asyncio.Transport | None = None
        self.peer: _Side | None = None
        self.ended = False  # nothing more will be received, or what is will be thrown away
        self.doomed = False  # reset before it was made
        self.closed = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if self.doomed:
            self.reset()

    def data_received(self, data: bytes) -> None:
        if not self.ended:
            self.received(data)

    def eof_received(self) -> bool:
        self._end()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.closed.set()
        self._end()

    def _end(self) -> None:
        if not self.ended:
            self.ended = True
            self.gone()

    def pause_writing(self) -> None:
        if self.peer and self.peer.transport:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer and self.peer.transport:
            self.peer.transport.resume_reading()

    def write(self, data: bytes) -> None:
        if self.transport and not self.transport.is_closing():
            self.transport.write(data)

    def close(self) -> None:
        """FIN, after what was written."""
        if self.transport:
            self.transport.close()
        self._end()

    def reset(self) -> None:
        """RST, now."""
        self.doomed = True
        if self.transport and not self.transport.is_closing():
            raw = self.transport.get_extra_info("socket")
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.transport.abort()
        self._end()

    def finish(self) -> None:
        """Half-close, and read on until Redis closes: it executes all it was sent, and sees no reset."""
        self.ended = True
        if self.transport and not self.transport.is_closing():
            self.transport.resume_reading()
            with contextlib.suppress(OSError):
                self.transport.write_eof()


class ChaosProxy:
    """See the module. `cuts` counts the connections that the plan of `cut_after_request` has cut."""

    def __init__(self, upstream: tuple[str, int] | str | Path) -> None:
        self.upstream = upstream
        self.port = 0
        self.cuts = 0
        self.hole = False
        self.refusing = False
        self.delay = 0.0
        self.plan: _Cuts | None = None
        self.pairs: set[_Pair] = set()
        self.loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread | None = None
        self._listener: asyncio.Server | None = None
        self._connecting: set[asyncio.Task[None]] = set()
        self._upstreams: weakref.WeakSet[_Side] = weakref.WeakSet()

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}"

    def start(self) -> ChaosProxy:
        assert self._thread is None, "already running"
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="chaos-proxy", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self.loop).result(10)
        return self

    def stop(self) -> None:
        if self._thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._close(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()
        self._thread = None

    def __enter__(self) -> ChaosProxy:
        return self if self._thread else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def cut_after_request(self, times: int, rng: random.Random, mean_bytes: int) -> None:
        """Cut `times` connections, each after some `mean_bytes` of requests more, at a random place.

        In the middle of the chunk of requests at hand (the rest of it is not sent on), after all of it before a
        reply returns, or in the middle of the reply; by RST or FIN. A new plan replaces the old; `times=0` ends it.
        """
        self._do(lambda: setattr(self, "plan", _Cuts(times, rng, mean_bytes)))

    def blackhole(self, on: bool) -> None:
        """Swallow what comes, either way, closing nothing.

        A connection that lost bytes, or was opened meanwhile, stays dead when the hole closes (a stream with a gap
        is nothing a network delivers); one that was silent goes on. Until then upstream does not see that a client
        left: a blocking read of it goes on in Redis, as it would.
        """
        self._do(lambda: self._blackhole(on))

    def refuse(self, on: bool) -> None:
        """Reset all connections, and new ones as soon as they are made."""
        self._do(lambda: self._refuse(on))

    def delay_replies(self, seconds: float) -> None:
        """Hold every reply back that long."""
        self._do(lambda: setattr(self, "delay", seconds))

    def cut_all(self) -> None:
        """Reset the connections there are; new ones work."""
        self._do(self._drop_all)

    def _do(self, action: Callable[[], None]) -> None:
        async def act() -> None:
            action()

        if self._thread is None:
            action()
        else:
            asyncio.run_coroutine_threadsafe(act(), self.loop).result(10)

    def _blackhole(self, on: bool) -> None:
        self.hole = on
        for pair in list(self.pairs):
            pair.pass_ends()

    def _refuse(self, on: bool) -> None:
        self.refusing = on
        if on:
            self._drop_all()

    def _drop_all(self) -> None:
        for pair in list(self.pairs):
            pair.client.reset()

    async def _listen(self) -> None:
        self._listener = await self.loop.create_server(self._accept, HOST, self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    def _accept(self) -> asyncio.Protocol:
        pair = _Pair(self)
        self.pairs.add(pair)
        self._upstreams.add(pair.upstream)
        if self.refusing:
            pair.client.reset()
        elif self.hole:
            pair.lost = True
        else:
            task = self.loop.create_task(pair.connect())
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)
        return pair.client

    async def _close(self) -> None:
        assert self._listener is not None
        self._listener.close()
        self.hole = False
        self._drop_all()
        if self._connecting:
            await asyncio.wait(self._connecting, timeout=1)
        upstreams = [side for side in self._upstreams if side.transport]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):  # Redis closes as soon as it has executed what it was sent
                for side in upstreams:
                    await side.closed.wait()
        for side in upstreams:
            side.reset()
        await asyncio.sleep(0.01)  # transports close their sockets in the next turns of the loop
