"""URLs of Sentinels and clusters; tests/test_settings.py has those of one server."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rstream.errors import ConfigError
from rstream.store.connect import Endpoint
from rstream.store.url import label, read

SECRET = "s3cr3t"


# -- what they say


@pytest.mark.parametrize(
    ("url", "label", "seeds"),
    [
        ("redis+cluster://a", "redis+cluster://a", [("a", 6379)]),
        ("redis+cluster://a:1,b,c:3", "redis+cluster://a:1,b,c:3", [("a", 1), ("b", 6379), ("c", 3)]),
        (f"redis+cluster://ada:{SECRET}@a,b:2/", "redis+cluster://a,b:2/", [("a", 6379), ("b", 2)]),
        (f"redis+cluster://:{SECRET}@a:1/0?socket_timeout=9", "redis+cluster://a:1/0", [("a", 1)]),
        ("rediss+cluster://[::1]:7,[fe80::2]", "rediss+cluster://[::1]:7,[fe80::2]", [("::1", 7), ("fe80::2", 6379)]),
        ("redis+sentinel://a,b:2/main", "redis+sentinel://a,b:2/main", [("a", 26379), ("b", 2)]),
        (
            f"redis+sentinel://x:{SECRET}@[::1]:7,b/main/3",
            "redis+sentinel://[::1]:7,b/main/3",
            [("::1", 7), ("b", 26379)],
        ),
        (f"rediss+sentinel://ada:{SECRET}%2C@a/main/", "rediss+sentinel://a/main/", [("a", 26379)]),
    ],
)
def test_a_url_names_its_seeds_and_is_told_without_secrets(url: str, label: str, seeds: list[tuple[str, int]]) -> None:
    endpoint = Endpoint(url)
    assert (endpoint.label, list(endpoint.seeds)) == (label, seeds)
    assert endpoint.transport == ("tls" if url.startswith("rediss") else "tcp")
    assert (endpoint.clustered, endpoint.watched) == ("cluster" in url, "sentinel" in url)


def test_one_server_is_neither() -> None:
    for url in ("redis://a", "rediss://a", "unix:///s", "embedded:", None):
        endpoint = Endpoint(url)
        assert not endpoint.clustered and not endpoint.watched and endpoint.seeds == ()


def test_user_and_options_hold_for_every_node_of_a_cluster() -> None:
    endpoint = Endpoint(f"redis+cluster://ada:{SECRET}%2F%2C@a:1,b:2?socket_timeout=9")
    for address in (("a", 1), ("elsewhere", 7)):
        kwargs = endpoint.kwargs(address)
        assert (kwargs["host"], kwargs["port"]) == address and kwargs["socket_timeout"] == endpoint.patience == 9
        assert (kwargs["username"], kwargs["password"]) == ("ada", f"{SECRET}/,") and "db" not in kwargs
    assert endpoint.kwargs()["host"] == "a"


def test_a_master_has_a_name_a_database_and_sentinels_with_credentials_of_their_own() -> None:
    url = read(f"redis+sentinel://ada:{SECRET}@a,b/ma%20in/3?sentinel_username=eve&sentinel_password=p%26w")
    assert (url.form, url.master, url.options["db"]) == ("sentinel", "ma in", 3)
    assert (url.options["username"], url.options["password"]) == ("ada", SECRET)
    assert url.credentials == {"username": "eve", "password": "p&w"} and "sentinel_username" not in url.options
    assert read("redis+sentinel://a/main").credentials == {} and "db" not in read("redis+sentinel://a/main").options
    assert read("redis+sentinel://a/main?db=4").options["db"] == 4


def test_a_password_for_sentinels_goes_to_nobody_else() -> None:
    for url in ("redis://a", "redis+cluster://a"):
        with pytest.raises(ConfigError, match="'sentinel_password' is no option") as caught:
            Endpoint(f"{url}?sentinel_password={SECRET}")
        assert SECRET not in str(caught.value)


# -- what is wrong with them


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis+sentinel://a,b", "it lacks the name by which the sentinels know the master"),
        ("redis+sentinel://a,b/", "it lacks the name by which the sentinels know the master"),
        ("redis+sentinel://a//3", "it lacks the name by which the sentinels know the master"),
        ("redis+sentinel://a/main/staging", "its database is no number"),
        ("redis+sentinel://a/main/1/2", "its database is no number"),
        ("redis+cluster://a/1", "a cluster has no numbered databases"),
        ("redis+cluster://a/main", "a cluster has no numbered databases"),
        ("redis+cluster://a?db=2", "a cluster has no numbered databases"),
        ("redis+cluster://", "it lacks a host"),
        ("redis+cluster://a,,b", "it lacks a host"),
        ("redis+cluster://a,", "it lacks a host"),
        ("redis+cluster://:7000", "it lacks a host"),
        ("redis+sentinel:///main", "it lacks a host"),
        (f"redis+sentinel://ada:{SECRET}@/main", "it lacks a host"),
        ("redis+cluster://a:x,b", "its host or port cannot be read"),
        ("redis+cluster://a,b:65536", "its host or port cannot be read"),
        ("redis+sentinel://a:-1/main", "its host or port cannot be read"),
        ("redis+cluster://::1:7000", "its host or port cannot be read"),
        ("redis+cluster://[::1,a", "its host or port cannot be read"),
        ("redis+cluster://a?socket_timeuot=3", "'socket_timeuot' is no option of a connection URL"),
        ("redis+sentinel://a/main?socket_timeout=soon", "'socket_timeout'"),
        (f"redis+cluster://a?{SECRET}", "its host or port cannot be read"),
        (f"redis+sentinel://ada:12345/{SECRET}@a/main", "in a password, / ? # : @ [ are written"),
        (f"redis+sentinel://ada:12345#{SECRET}@a/main", "in a password, / ? # : @ [ are written"),
        (f"redis+cluster://ada:12345?{SECRET}@a", "in a password, / ? # : @ [ are written"),
    ],
)
def test_what_cannot_be_used_is_told_with_the_reason(url: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Endpoint(url)
    message = str(caught.value)
    assert f"cannot be used: {why}" in message or why in message
    assert message.startswith(repr(label(url))) and SECRET not in message and "\n" not in message
    assert "redis+sentinel://HOST:PORT,HOST:PORT/MASTER/DB" in message and "redis+cluster://HOST" in message


@pytest.mark.parametrize("scheme", ["redis+sentinels", "sentinel", "redis+", "+cluster", "unix+cluster", "cluster"])
def test_an_unknown_scheme_is_refused_with_those_there_are(scheme: str) -> None:
    with pytest.raises(ConfigError, match="is no URL of a Redis: a URL is redis://HOST:PORT/DB, ") as caught:
        Endpoint(f"{scheme}://ada:{SECRET}@a/main")
    assert SECRET not in str(caught.value)


PASTED = [
    *(
        "redis+cluster://:{}@a,b",
        "redis+cluster://ada:{}@a:6379,b:1",
        "redis+cluster://{}@a",
        "redis+cluster://a:{}@a,",
    ),
    *("redis+sentinel://:{}@a,b/main", "rediss+sentinel://ada:{}@a:1/main/0", "redis+sentinel://ada:{}@a/main/x"),
    *("redis+sentinel://a/main?sentinel_password={}", "redis+sentinel://ada:{}@", "redis+cluster://ada:{}@a/9"),
    *("redis+sentinel://ada:{}@/main", "redis+cluster://ada:{}@[::1,b", "redis+cluster://a?password={}"),
    *("redis+sentinel://ada:12345/{}@a/main", "redis+clusters://ada:{}@a", "redis+cluster:/ada:{}@a"),
    *(
        "redis+sentinel://a/main?sentinel_password=://{}",
        "redis+cluster://a?password=x://y@{}",
        "redis+cluster:/a?password=://{}",
    ),
    *("rediss+cluster://ada:12345,{}@a,b", "redis+sentinel://ada:12345#{}@a/main", "redis+cluster://ada:1?{}@a"),
]


def tell(url: str) -> str:
    """All that is told about a URL."""
    try:
        endpoint = Endpoint(url)
    except ConfigError as error:
        return str(error)
    failures = (endpoint.unavailable("gone"), endpoint.refused(ValueError("no")), endpoint.unconfirmed(0, 1, 2))
    return endpoint.label + " ".join(map(str, failures))


@pytest.mark.parametrize("url", PASTED)
def test_a_password_is_never_told(url: str) -> None:
    for around in ("{}", "{}/", "/{}", "a/{}", "{}#", "a#{}", "{}?", "a?{}", "{}:", "{}@", "a@{}", "[{}", ",{}", "{},"):
        pasted = url.format(around.format(SECRET))
        assert SECRET not in tell(pasted), pasted


@pytest.mark.parametrize(
    "url", ["redis://:{}", "redis://ada:{}", "redis+sentinel://a,ada:{}/main", "redis+cluster://ada:{}"]
)
def test_a_password_that_no_host_follows_is_not_taken_for_a_port(url: str) -> None:
    assert SECRET not in tell(url.format(SECRET))


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(PASTED), st.text("/#?:@[]%=.,-1a", max_size=6), st.text("/#?:@[]%=.,-1a", max_size=6))
def test_no_password_is_ever_told(url: str, before: str, after: str) -> None:
    pasted = url.format(before + SECRET + after)
    assert SECRET not in tell(pasted), pasted
