"""Asking Redis Sentinel which server is the master. Blocking, on connections of its own that are not kept.

What a sentinel says may be old: whoever connects to the server it names asks that one for its role.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from rstream.errors import StoreRefused, StoreUnavailable
from rstream.store.url import Address, Url, words

TIMEOUT = 1.0
"""Seconds that one sentinel may be silent before the next one is asked."""


class SentinelReport(NamedTuple):
    """failure: why it says nothing · master: its address, and whether it is down · sentinels: that it knows of, itself
    included · no_quorum: why no failover could be decided, "" = it could.
    """

    name: str
    failure: str = ""
    master: str = ""
    down: bool = False
    sentinels: int = 0
    replicas: int = 0
    no_quorum: str = ""


class Sentinels:
    """Those who know which server is the master. label: the URL they come from, for messages."""

    def __init__(self, url: Url, label: str) -> None:
        self._name, self._label = url.master, label
        self._order = url.seeds
        kept = {name: value for name, value in url.options.items() if name.startswith(("socket_", "ssl_"))}
        for limit in ("socket_timeout", "socket_connect_timeout"):
            kept[limit] = min(TIMEOUT, kept[limit])
        plain = {"protocol": 2, "driver_info": None, "client_name": "rstream", "ssl": url.transport == "tls"}
        self._kwargs: dict[str, Any] = kept | plain | url.credentials

    def master(self) -> Address:
        """Ask one after the other. Raises `StoreUnavailable`, `StoreRefused`."""
        from redis import exceptions as redis_errors

        told, refusals = [], 0
        for address in self._order:
            try:
                answer = self._ask(address)
            except (redis_errors.AuthenticationError, redis_errors.ResponseError) as error:
                answer = f"refused: {words(error)}"
                refusals += 1
            except (redis_errors.RedisError, OSError) as error:
                answer = f"does not answer ({words(error)})"
            if not isinstance(answer, str):
                # The next time it is asked first: one that is dead may cost a second.
                self._order = (address, *(other for other in self._order if other != address))
                return answer
            told.append(f"{address[0]}:{address[1]} {answer.rstrip('.')}")
        raise self._unknown("; ".join(told), refused=refusals == len(told))

    def _ask(self, address: Address) -> Address | str:
        """The master's address, or why it is not told."""
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        host, port = address
        with redis.Redis(host, port, retry=Retry(NoBackoff(), 0), **self._kwargs) as client:
            masters: dict[str, Any] = client.sentinel_masters()
        state = masters.get(self._name)
        if state is None:
            return f"knows no master {self._name!r}" + (f", only {', '.join(sorted(masters))}" if masters else "")
        if not state["is_master"] or state["is_sdown"] or state["is_odown"]:
            return "says that the master is down, and has no other yet"
        return state["ip"], int(state["port"])

    def reports(self) -> list[SentinelReport]:
        """What each of them says, one after the other."""
        return [self._report(address) for address in self._order]

    def _report(self, address: Address) -> SentinelReport:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        name, (host, port) = f"{address[0]}:{address[1]}", address
        try:
            with redis.Redis(host, port, retry=Retry(NoBackoff(), 0), **self._kwargs) as client:
                state = client.sentinel_masters().get(self._name)
                if state is None:
                    return SentinelReport(name, f"knows no master {self._name!r}")
                try:
                    client.execute_command("SENTINEL", "CKQUORUM", self._name)
                    quorum = ""
                except redis.ResponseError as error:
                    quorum = words(error)
        except (redis.RedisError, OSError) as error:
            return SentinelReport(name, f"does not answer ({words(error)})")
        down = bool(state["is_sdown"] or state["is_odown"])
        counts = int(state["num-other-sentinels"]) + 1, int(state["num-slaves"])
        return SentinelReport(name, "", f"{state['ip']}:{state['port']}", down, *counts, quorum)

    def _unknown(self, told: str, *, refused: bool) -> StoreRefused | StoreUnavailable:
        if refused:
            return StoreRefused(
                f"the sentinels of {self._label} refused: {told}. Check that these are sentinels, and their own "
                "credentials: sentinel_username and sentinel_password in the URL"
            )
        return StoreUnavailable(
            f"the sentinels of {self._label} name no master: {told} (are they running, and are these their addresses "
            "and the master's name?)"
        )
