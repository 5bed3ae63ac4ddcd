"""The Lua scripts. Each .lua opens with a header: KEYS, ARGV, returns, cost."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

Arg = str | bytes | int
Call = tuple[Arg, ...]
"""One Redis command: its name and arguments."""


class Script:
    """A Lua script, called by its SHA1; whoever sends the call loads it where the server lacks it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.source = (Path(__file__).parent / "lua" / f"{name}.lua").read_text("utf-8")
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        BY_SHA[self.sha] = self

    def __call__(self, keys: Sequence[str], *args: Arg) -> Call:
        return ("EVALSHA", self.sha, len(keys), *keys, *args)


BY_SHA: dict[str, Script] = {}

PUBLISH = Script("publish")
RANGE = Script("range")
DECLARE = Script("declare")
GROUP = Script("group")
BEAT = Script("beat")
FETCH = Script("fetch")
SETTLE = Script("settle")
RECOVER = Script("recover")
BEGIN = Script("begin")
MINE = Script("mine")
LEAVE = Script("leave")
REPLAY = Script("replay")
STATS = Script("stats")
MEMO = Script("memo")
DEAD = Script("dead")
REDRIVE = Script("redrive")
