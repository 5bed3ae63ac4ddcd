"""The Lua scripts. Each .lua opens with a header: KEYS, ARGV, returns, cost."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

LUA = Path(__file__).parent / "lua"

Arg = str | bytes | int
Call = tuple[Arg, ...]
"""One Redis command: its name and arguments."""


class Script:
    """A Lua script, called by its SHA1; whoever sends the call loads it where the server lacks it.

    Its file is read when it is first called: a process calls a few of the many.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        EVERY.append(self)

    @cached_property
    def source(self) -> str:
        text = (LUA / f"{self.name}.lua").read_text("utf-8")
        return re.sub(r"^-- include: (\w+)\n", _part, text, flags=re.MULTILINE)

    @cached_property
    def sha(self) -> str:
        sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        BY_SHA[sha] = self
        return sha

    def __call__(self, keys: Sequence[str | bytes] | Sequence[str], *args: Arg) -> Call:
        return ("EVALSHA", self.sha, len(keys), *keys, *args)


def _part(include: re.Match[str]) -> str:
    """What several scripts do in the same way: Redis has no library for scripts that every server knows."""
    return (LUA / "parts" / f"{include[1]}.lua").read_text("utf-8")


EVERY: list[Script] = []
BY_SHA: dict[str, Script] = {}
"""Those that were called here."""

PUBLISH = Script("publish")
ONCE = Script("once")
RANGE = Script("range")
EDGES = Script("edges")
STANDING = Script("standing")
ARCHIVED = Script("archived")
ARCHIVER = Script("archiver")
DECLARE = Script("declare")
RESTORE = Script("restore")
RESHARD = Script("reshard")
SHARD = Script("shard")
SEAL = Script("seal")
RETIRE = Script("retire")
GENERATIONS = Script("generations")
GROUP = Script("group")
BEAT = Script("beat")
PRESENT = Script("present")
ENROL = Script("enrol")
ROSTER = Script("roster")
MEMBERS = Script("members")
LOOK = Script("look")
OWN = Script("own")
DISOWN = Script("disown")
HOLDERS = Script("holders")
INHERIT = Script("inherit")
PARKED = Script("parked")
UNPARK = Script("unpark")
FETCH = Script("fetch")
ACK = Script("ack")
SETTLE = Script("settle")
EMIT = Script("emit")
OTHERS = Script("others")
RECOVER = Script("recover")
BEGIN = Script("begin")
MINE = Script("mine")
LEAVE = Script("leave")
REPLAY = Script("replay")
STATS = Script("stats")
TOTALS = Script("totals")
PEEK = Script("peek")
SAMPLE = Script("sample")
RESETS = Script("resets")
FORGET = Script("forget")
MEMO = Script("memo")
DEAD = Script("dead")
REDRIVE = Script("redrive")
RESET = Script("reset")
AGAIN = Script("again")
REMOVE = Script("remove")
UNCOUNT = Script("uncount")
GIVE = Script("give")
COUNT = Script("count")
REFERENCES = Script("references")
LIMITS = Script("limits")
INDEX = Script("index")
WEIGH = Script("weigh")
TRIM = Script("trim")
OFFICE = Script("office")
SIZES = Script("sizes")
RIGHTS = Script("rights")
PENDING = Script("pending")
ENTRY = Script("entry")
PAUSE = Script("pause")
CANCEL = Script("cancel")
RING = Script("ring")
