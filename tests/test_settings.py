"""What comes from outside: the environment, names, and URLs with passwords in them."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rstream import RStream
from rstream.errors import ConfigError
from rstream.settings import Settings, check_name
from rstream.store.connect import Endpoint

SECRET = "s3cr3t"


def test_what_is_given_wins_over_the_environment_and_that_over_the_defaults() -> None:
    assert Settings.load({}) == Settings() == Settings(url=None, namespace="rstream")
    environ = {"RSTREAM_URL": "redis://env", "RSTREAM_NAMESPACE": "env", "RSTREAM_MAX_EVENT_BYTES": "1"}
    assert Settings.load(environ) == Settings(url="redis://env", namespace="env")
    assert Settings.load(environ, url="redis://given", namespace=None) == Settings(url="redis://given", namespace="env")
    assert Settings.load({"RSTREAM_URL": "", "RSTREAM_NAMESPACE": ""}) == Settings()


def test_the_environment_of_this_process_is_read_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RSTREAM_URL", "redis://elsewhere:1234/5")
    monkeypatch.setenv("RSTREAM_NAMESPACE", "team")
    assert repr(RStream()) == "RStream('redis://elsewhere:1234/5', namespace='team')"
    monkeypatch.setenv("RSTREAM_NAMESPACE", "two words")
    with pytest.raises(ConfigError, match="namespace 'two words' cannot be used"):
        RStream()


@pytest.mark.parametrize(
    "options",
    [
        *({"publish_timeout": 0}, {"publish_timeout": -1}, {"publish_timeout": 301}, {"publish_timeout": "soon"}),
        *({"publish_timeout": math.nan}, {"publish_timeout": math.inf}, {"max_event_bytes": 0}),
        *({"max_event_bytes": 1.5}, {"max_event_bytes": 64 * 1024 * 1024 + 1}, {"namespace": 5}, {"url": 5}),
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_used_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"setting {next(iter(options))} cannot be used: .") as caught:
        RStream(**options)
    assert "\n" not in str(caught.value)


def test_a_setting_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigError, match="publish_timeuot"):
        Settings.load({}, publish_timeuot=3)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings().namespace = "other"


@pytest.mark.parametrize("name", ["a", "A1", "0", "a.b-c_d", "x" * 128])
def test_names(name: str) -> None:
    assert check_name("stream", name) == name


@pytest.mark.parametrize(
    "name",
    ["", " ", ".a", "-a", "_a", "a b", "a:b", "a/b", "{a}", "é", "a\n", "x" * 129, "a\0", "*", "~retry", "１"],
)
@pytest.mark.parametrize("what", ["stream", "group", "namespace"])
def test_a_name_that_cannot_be_part_of_a_key_is_refused(name: str, what: str) -> None:
    with pytest.raises(ConfigError, match="cannot be used: a name has 1 to 128 letters") as caught:
        check_name(what, name)
    assert str(caught.value).startswith(f"{what} {name!r} ")
    with pytest.raises(ConfigError):
        Settings(namespace=name)


# -- URLs


@pytest.mark.parametrize(
    ("url", "label", "transport"),
    [
        ("redis://example", "redis://example", "tcp"),
        ("redis://example:6380/5", "redis://example:6380/5", "tcp"),
        (f"redis://ada:{SECRET}@example:6380/5?socket_timeout=9", "redis://example:6380/5", "tcp"),
        (f"redis://:{SECRET}@example", "redis://example", "tcp"),
        (f"redis://{SECRET}@example", "redis://example", "tcp"),
        (f"redis://ada:{SECRET}%2F%40%3A@example", "redis://example", "tcp"),
        (f"redis://ada:x@{SECRET}@example", "redis://example", "tcp"),
        (f"redis://example?password={SECRET}", "redis://example", "tcp"),
        (f"rediss://:{SECRET}@example:1", "rediss://example:1", "tls"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock", "unix"),
        (f"unix://ada:{SECRET}@/run/redis.sock?db=3", "unix:///run/redis.sock", "unix"),
        ("embedded:", "embedded:", "unix"),
        ("embedded:data/dir", "embedded:data/dir", "unix"),
        (None, "embedded:", "unix"),
        ("", "embedded:", "unix"),
    ],
)
def test_a_label_says_where_and_no_more(url: str | None, label: str, transport: str) -> None:
    endpoint = Endpoint(url)
    assert (endpoint.label, endpoint.transport) == (label, transport)


def test_what_a_url_says_reaches_the_connection() -> None:
    kwargs = Endpoint(f"redis://ada:{SECRET}%2F@example:6380/5?socket_timeout=9").kwargs()
    wanted = {"host": "example", "port": 6380, "db": 5, "username": "ada", "password": f"{SECRET}/"}
    assert wanted.items() <= kwargs.items()
    assert kwargs["socket_timeout"] == kwargs["socket_connect_timeout"] == 9


@pytest.mark.parametrize("scheme", ["http", "valkey", "redis+tls", "REDIS", "rediss+x", "tcp", "file", "", "embeded"])
def test_an_unknown_scheme_is_refused_with_those_there_are(scheme: str) -> None:
    with pytest.raises(ConfigError, match="is no URL of a Redis: a URL is redis://HOST:PORT/DB, rediss://") as caught:
        Endpoint(f"{scheme}://ada:{SECRET}@example")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("url", ["example", "example:6379", "redis:example", "redis:/example", "//example", "/run/x"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="is no URL of a Redis"):
        Endpoint(url)


@pytest.mark.parametrize("port", ["x", "-1", "65536", "99999999", "6379x", "1 2", "é"])
@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_a_bad_port_is_refused(scheme: str, port: str) -> None:
    with pytest.raises(ConfigError, match=r"(?i)port") as caught:
        Endpoint(f"{scheme}://ada:{SECRET}@example:{port}/0")
    assert f"example:{port}" in str(caught.value) and SECRET not in str(caught.value)


@pytest.mark.parametrize("option", ["socket_timeout=soon", "max_connections=many", "health_check_interval=x"])
def test_an_option_with_a_bad_value_is_named(option: str) -> None:
    with pytest.raises(ConfigError, match=option.partition("=")[0]):
        Endpoint(f"redis://example?{option}")


def test_an_option_that_does_not_exist_is_named_when_the_url_is_read() -> None:
    with pytest.raises(ConfigError, match="socket_timeuot"):
        Endpoint("redis://example?socket_timeuot=3")


@pytest.mark.parametrize("option", ["max_connections=10", "timeout=20", "decode_responses=True"])
def test_an_option_that_only_pools_and_clients_know_is_dropped(option: str) -> None:
    kwargs = Endpoint(f"redis://example?{option}&socket_timeout=9").kwargs()
    assert option.partition("=")[0] not in kwargs and kwargs["socket_timeout"] == 9


def test_a_message_ends_once() -> None:
    endpoint = Endpoint("redis://example")
    told = str(endpoint.unavailable(OSError("Timed out.")))
    assert told == ("Redis at redis://example does not answer: Timed out (is it running, and is this its address?)")
    told = str(endpoint.refused(ValueError("NOAUTH Authentication required.")))
    assert told.startswith("Redis at redis://example refused: NOAUTH Authentication required. Check user")


@pytest.mark.parametrize("typed", ["localhost:6379", "10.0.0.1", "cache:6379/0"])
def test_what_is_no_url_is_told_as_it_was_typed(typed: str) -> None:
    with pytest.raises(ConfigError, match=f"^'{typed}' is no URL"):
        Endpoint(typed)


def test_a_database_that_is_no_number_is_refused() -> None:
    with pytest.raises(ConfigError, match="staging"):
        Endpoint("redis://example/staging")


# Passwords are pasted in as they are: what has to be quoted in a URL often is not.
PASTED = [
    *("redis://:{}@example", "redis://ada:{}@example:6379/0", "redis://{}@example", "redis://ada:{}@example:port"),
    *("rediss://:{}@", "unix://:{}@/run/redis.sock", "redis:ada:{}@example", "redis:{}@example", "ada:{}@example:6379"),
    *("{}@example", ":{}@example", "://:{}@example", "http://ada:{}@example", "redis://ada:{}@[::1"),
    *("//ada:{}@example", "redis://ada:{}@ho\u2100st", "redis://example?password={}", "REDIS://ada:{}@example"),
    *("redis:/ada:{}@example", "redis//ada:{}@example", "redis://ada:{}@example?password={}"),
    "redis://ada:12345/{}@example",
]


def assert_secret(url: str) -> None:
    try:
        endpoint = Endpoint(url)
    except ConfigError as error:
        told = str(error)
    else:
        told = endpoint.label + str(endpoint.unavailable("gone")) + str(endpoint.refused(ValueError("no")))
    assert SECRET not in told, f"the password of {url!r} is told: {told}"


@pytest.mark.parametrize("url", PASTED)
def test_a_password_is_never_told(url: str) -> None:
    for password in ("{}", "{}/", "/{}", "a/{}", "{}#", "a#{}", "{}?", "a?{}", "{}:", "{}@", "a@{}", "[{}"):
        assert_secret(url.format(password.format(SECRET), SECRET))


@settings(deadline=None)
@given(st.sampled_from(PASTED), st.text("/#?:@[]%=.-1a", max_size=6), st.text("/#?:@[]%=.-1a", max_size=6))
def test_no_password_is_ever_told(url: str, before: str, after: str) -> None:
    assert_secret(url.format(before + SECRET + after, SECRET))
