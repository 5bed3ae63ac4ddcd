"""The loop of `rstream top`: looks every few seconds, draws when something changed, does what keys say."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

from rstream import operate
from rstream.errors import RStreamError, StoreError
from rstream.process import clock
from rstream.top.draw import screen
from rstream.top.fetch import look
from rstream.top.model import Action, Model
from rstream.top.terminal import Terminal

if TYPE_CHECKING:
    from rstream.app import RStream

SHOWN = 200
"""Pending entries that are looked at: the oldest."""


class Top:
    """A screen, until somebody quits. every: seconds between two looks."""

    def __init__(self, app: RStream, model: Model, every: float, *, color: bool = True) -> None:
        self.app, self.model, self.every, self._color = app, model, every, color
        self._terminal = Terminal(self._press)
        self._look, self._quit = asyncio.Event(), asyncio.Event()
        self._deeds: set[asyncio.Task[None]] = set()
        self._since: float | None = None

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        handlers = {
            signal.SIGWINCH: self._resized,
            signal.SIGTSTP: self._suspend,
            signal.SIGTERM: self._quit.set,
            signal.SIGHUP: self._quit.set,
        }
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        self._terminal.open()
        looking = asyncio.create_task(self._look_on())
        try:
            self._resized()
            quitting = asyncio.create_task(self._quit.wait())
            await asyncio.wait([quitting, looking], return_when=asyncio.FIRST_COMPLETED)
            quitting.cancel()
            if looking.done():
                looking.result()
        finally:
            looking.cancel()
            for deed in self._deeds:
                deed.cancel()
            await asyncio.gather(looking, *self._deeds, return_exceptions=True)
            self._terminal.close()
            for number in handlers:
                loop.remove_signal_handler(number)

    # -- looking ----------------------------------------------------------------------------------------------------

    async def _look_on(self) -> None:
        while True:
            self._look.clear()
            try:
                self.model.came(await look(self.app, self.model.only))
                await self._look_into()
                self._since = None
            except StoreError as error:
                now = clock()
                self._since = now if self._since is None else self._since
                self.model.trouble = f"Redis is away for {now - self._since:.0f} s, what is shown is old: {error}"
            except RStreamError as error:  # a group that was removed meanwhile
                self.model.note = str(error)
            self._draw()
            try:
                await asyncio.wait_for(self._look.wait(), self.every)
            except TimeoutError:
                continue

    async def _look_into(self) -> None:
        """What the fleet's numbers do not say, of where somebody went into."""
        model = self.model
        at = level, stream, group, id = model.level, model.stream, model.group, model.id
        if stream is None or level in ("streams", "groups"):
            return
        opened = await asyncio.to_thread(self.app.open, stream)
        if level == "pending" and group is not None:
            page = await operate.pending(opened, group, limit=SHOWN)
            if at == (model.level, model.stream, model.group, model.id):  # nobody went elsewhere meanwhile
                model.pending, model.more = page.entries, page.more
        elif level == "entry" and id is not None:
            shown = await operate.show(opened, id)
            if at == (model.level, model.stream, model.group, model.id):
                model.shown = shown

    # -- doing ------------------------------------------------------------------------------------------------------

    def _press(self, key: str) -> None:
        if key == "redraw":
            self._terminal.forget()
        elif (action := self.model.press(key)) is not None:
            if action.deed == "quit":
                self._quit.set()
            elif action.deed == "look":
                self._look.set()
            else:
                deed = asyncio.create_task(self._do(action))
                self._deeds.add(deed)
                deed.add_done_callback(self._deeds.discard)
        self._draw()

    async def _do(self, action: Action) -> None:
        try:
            self.model.note = await self._done(action)
        except RStreamError as error:
            self.model.note = str(error)
        self._look.set()
        self._draw()

    async def _done(self, action: Action) -> str:
        opened = await asyncio.to_thread(self.app.open, action.stream)
        name = f"{action.stream}/{action.group}"
        if action.deed == "pause":
            new, pause = await operate.pause(opened, action.group, why="by rstream top")
            return f"{name} is paused" if new else f"{name} was paused already by {pause.by}"
        if action.deed == "resume":
            return f"{name} {'goes on' if await operate.resume(opened, action.group) else 'was not paused'}"
        assert action.id is not None
        (done,) = await operate.cancel(opened, action.group, [action.id])
        return f"{action.id}: {done.verdict}"

    # -- drawing ----------------------------------------------------------------------------------------------------

    def _resized(self) -> None:
        self.model.size = self._terminal.size
        self._terminal.forget()
        self._draw()

    def _draw(self) -> None:
        self._terminal.show(screen(self.model, self.app.endpoint.label, color=self._color))

    def _suspend(self) -> None:
        """Ctrl-Z: the shell gets its terminal as it was, and after `fg` this its own."""
        self._terminal.close()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._terminal.open()
        self._resized()
