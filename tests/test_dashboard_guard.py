"""Who gets into the dashboard, and whose requests it does."""

from __future__ import annotations

import socket
from typing import Any

import httpx
import pytest
from starlette.datastructures import URL
from starlette.requests import HTTPConnection

from rstream import RStream
from rstream.dashboard.app import make_app, routes
from rstream.dashboard.auth import SESSION_SECONDS, Caller, Keys, host_allowed, is_loopback, local_path, own_request
from rstream.dashboard.guard import Guard
from rstream.dashboard.site import Site
from rstream.errors import ConfigError
from tests.commands import Commands, Order
from tests.dashboards import OPERATOR, VIEWER, csrf, dashboard, shop, text

SECRET = b"s" * 32


@pytest.fixture
def an_order(rs: Commands) -> None:
    with shop(rs) as orders:
        orders.sync.publish(Order(customer="ada", total=1))


# -- the rules ---------------------------------------------------------------------------------------------------------


def test_a_session_is_what_it_was_given_as_and_for_as_long() -> None:
    keys = Keys(OPERATOR, VIEWER, "operator", SECRET)
    for role in ("operator", "viewer"):
        cookie = keys.session(role, 1000.0, "nonce")  # type: ignore[arg-type]
        caller = keys.caller(cookie, 1000.0 + SESSION_SECONDS - 1)
        assert caller == Caller(role, ambient=True, nonce="nonce")  # type: ignore[arg-type]
        assert keys.caller(cookie, 1000.0 + SESSION_SECONDS) is None
        assert Keys(OPERATOR, VIEWER, None, b"other").caller(cookie, 1000.0) == caller, "after a restart, on a replica"
        assert Keys(OPERATOR + "x", VIEWER, None, SECRET).caller(cookie, 1000.0) is None, "a token was changed"


def test_a_session_that_was_tampered_with_is_none() -> None:
    keys = Keys(OPERATOR, VIEWER, None, SECRET)
    cookie = keys.session("viewer", 1000.0, "nonce")
    role, until, nonce, signature = cookie.split(".")
    for forged in (
        f"operator.{until}.{nonce}.{signature}",
        f"{role}.{int(until) + 1}.{nonce}.{signature}",
        f"{role}.{until}.other.{signature}",
        f"{role}.{until}.{nonce}.{'0' * len(signature)}",
        f"{role}.{until}.{nonce}.",
        "", ".", "...", "viewer", "\0é", f"{role}.x.{nonce}.{keys._sign('session', f'{role}.x.{nonce}')[:-1]}",
    ):  # fmt: skip
        assert keys.caller(forged, 1000.0) is None, forged


def test_a_form_token_is_of_one_session() -> None:
    keys = Keys(OPERATOR, None, None, SECRET)
    one, other = Caller("operator", True, "a"), Caller("operator", True, "b")
    assert keys.is_form_token(one, keys.form_token(one))
    assert not keys.is_form_token(one, keys.form_token(other))
    assert not keys.is_form_token(one, "")
    assert not keys.is_form_token(one, "é")


@pytest.mark.parametrize("token", ["short", " " + "x" * 20, "x" * 20 + "\n"])
def test_a_weak_token_is_refused(token: str) -> None:
    with pytest.raises(ConfigError, match="openssl rand"):
        Keys(token, None, None, SECRET)


def test_viewers_have_another_token_than_operators() -> None:
    with pytest.raises(ConfigError, match="viewers may act"):
        Keys(OPERATOR, OPERATOR, None, SECRET)


@pytest.mark.parametrize(
    ("header", "fine"),
    [
        ("localhost", True), ("localhost:8400", True), ("LOCALHOST:1", True), ("127.0.0.1:8400", True),
        ("[::1]:8400", True), ("evil.example", False), ("evil.example:8400", False), ("localhost.evil.example", False),
        ("", False), ("[::2]", False), ("127.0.0.1.nip.io:8400", False), ("[::1", False),
    ],
)  # fmt: skip
def test_hosts(header: str, fine: bool) -> None:
    assert host_allowed(header, ("localhost", "127.0.0.1", "[::1]")) is fine


def test_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "127.evil.example", "")))


OWN = {"host": "localhost:8400", "origin": "http://localhost:8400", "sec-fetch-site": "same-origin"}


@pytest.mark.parametrize(
    ("headers", "own"),
    [
        (OWN, True),
        ({**OWN, "origin": "https://LOCALHOST:8400"}, True),  # behind something that speaks TLS
        ({"host": "localhost:8400", "sec-fetch-site": "same-origin"}, True),
        ({"host": "localhost:8400", "origin": "http://localhost:8400"}, True),
        ({**OWN, "origin": "http://evil.example"}, False),
        ({**OWN, "origin": "http://localhost:9999"}, False),
        ({**OWN, "origin": "null"}, False),
        ({**OWN, "origin": ""}, False),
        ({**OWN, "sec-fetch-site": "cross-site"}, False),
        ({**OWN, "sec-fetch-site": "same-site"}, False),
        ({**OWN, "sec-fetch-site": "none"}, False),
        ({"host": "localhost:8400"}, False),
    ],
)
def test_own_requests(headers: dict[str, str], own: bool) -> None:
    assert own_request(headers, Caller("operator", ambient=True)) is own
    assert own_request(headers, None) is own


def test_a_bearer_is_no_browser_that_was_tricked() -> None:
    assert own_request({"host": "x"}, Caller("operator", ambient=False))
    assert not own_request({"host": "x", "origin": "http://evil.example"}, Caller("operator", ambient=False))


@pytest.mark.parametrize(
    ("asked", "goes"),
    [("/s/orders?span=6h", "/s/orders?span=6h"), ("//evil.example", "/"), ("/\\evil.example", "/"),
     ("https://evil.example", "/"), ("", "/"), ("/a\nSet-Cookie: x", "/"), ("javascript:alert(1)", "/")],
)  # fmt: skip
def test_after_the_login_one_stays_here(asked: str, goes: str) -> None:
    assert local_path(asked) == goes


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "dashboard.internal"])
def test_elsewhere_than_on_loopback_it_demands_a_token(host: str) -> None:
    with RStream("redis://127.0.0.1:1") as app:
        with pytest.raises(ConfigError, match=r"RSTREAM_DASHBOARD_TOKEN.*openssl rand.*SSH tunnel"):
            make_app(app, host=host)
        make_app(app, host=host, viewer=VIEWER)


def form_token(client: httpx.Client) -> str:
    """Of a form that there is as soon as there is a stream."""
    return csrf(client.get("/s/orders/replay"))


# -- over a socket -----------------------------------------------------------------------------------------------------


def posts() -> list[str]:
    """Every path that takes a form."""
    site = Site(RStream("redis://127.0.0.1:1"), Keys(OPERATOR, None, None, SECRET))
    paths = [route.path for route in routes(site) if "POST" in (getattr(route, "methods", None) or ())]
    fill = {"stream": "orders", "group": "billing", "letter": "1-1@1.0", "id": "1-1@1.0", "number": "1"}
    for name, value in fill.items():
        paths = [path.replace(f"{{{name}}}", value) for path in paths]
    assert len(paths) > 12
    assert not any("{" in path for path in paths)
    return paths


def test_the_command_refuses_to_be_open_to_others(rs: Commands) -> None:
    done = rs.run("dashboard", "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: the dashboard would be open to everybody who reaches 0.0.0.0")
    rs.env["RSTREAM_DASHBOARD_TOKEN"] = ""  # a variable that nobody filled in
    assert rs.run("dashboard", "--host", "0.0.0.0", "--port", "0").returncode == 1


def test_tokens(rs: Commands) -> None:
    """Without one nothing but the login, with the wrong one neither; each role's does what it may."""
    with dashboard(rs, "--host", "0.0.0.0", tokens=True) as board:
        with board.client() as nobody:
            assert nobody.get("/healthz").text == "ok\n"
            for path in ("/", "/workers", "/s/orders", "/s/orders/g/billing", "/replays"):
                page = nobody.get(path)
                assert page.url.path == "/login", path
                assert nobody.get(path, headers={"X-Live": "1"}).status_code == 401
                wrong = nobody.get(path, headers={"Authorization": "Bearer " + "x" * 20})
                assert (wrong.status_code, wrong.headers["www-authenticate"]) == (401, "Bearer")
            assert nobody.post("/login", data={"token": "x" * 20}).status_code == 403
            assert nobody.post("/login", data={}).status_code == 403
            assert not nobody.cookies
            for path in posts():
                if path != "/login":
                    assert nobody.post(path, data={"csrf": "x"}).status_code == 401, path
        assert "wrong token from 127.0.0.1" in board.log
        with board.client(VIEWER) as viewer:
            page = viewer.get("/")
            assert (page.status_code, "viewer" in page.text) == (200, True)
            token = csrf(page)
            for path in posts():
                if path not in ("/login", "/logout"):
                    answer = viewer.post(path, data={"csrf": token})
                    assert (answer.status_code, "operator's token" in text(answer)) == (403, True), path
            assert viewer.post("/logout", data={"csrf": token}).url.path == "/login"
            assert viewer.get("/").url.path == "/login"
        with board.client(OPERATOR) as operator:
            assert "operator" in operator.get("/").text
            assert operator.get("/login").url.path == "/", "is logged in already"
        alone = {"Authorization": f"bearer {OPERATOR}"}
        with httpx.Client(base_url=board.url, headers=alone) as machine:
            assert machine.get("/").status_code == 200
            assert machine.post("/replays/1/stop", data={}).status_code == 303, "no form token, for nothing is ambient"
        for secret in (OPERATOR, VIEWER):
            assert secret not in board.log


def test_the_cookie(rs: Commands) -> None:
    with dashboard(rs, "--host", "0.0.0.0", tokens=True) as board, board.client() as client:
        answer = client.post("/login", data={"token": VIEWER, "next": "//evil.example"}, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert VIEWER not in cookie
        behind = {"X-Forwarded-Proto": "https"}  # a proxy on loopback that speaks TLS
        secure = client.post("/login", data={"token": VIEWER}, headers=behind, follow_redirects=False)
        assert "secure" in secure.headers["set-cookie"].lower()


def test_a_forged_request_is_refused(rs: Commands, an_order: None) -> None:
    """By its origin, by what the browser says of it, by the missing token of its form: each alone does it."""
    with dashboard(rs) as board, board.client() as client:
        token = form_token(client)
        for path in posts():
            for headers, form in (
                ({"Origin": "http://evil.example"}, {"csrf": token}),
                ({"Origin": "null"}, {"csrf": token}),
                ({"Sec-Fetch-Site": "cross-site"}, {"csrf": token}),
                ({"Sec-Fetch-Site": "same-site"}, {"csrf": token}),
                ({}, {}),
                ({}, {"csrf": "0" * 64}),
            ):
                answer = client.post(path, data=form, headers=headers)
                if path == "/login" and not headers:
                    continue  # it has no session yet: a wrong token is all that can come of it
                assert answer.status_code == 403, (path, headers)
            del client.headers["Origin"]
            assert client.post(path, data={"csrf": token}).status_code == 403, path
            client.headers["Origin"] = board.url
        assert "not from a page of the dashboard" in board.log
        assert "wrong form token" in board.log


def test_a_path_in_the_host_header_opens_nothing(rs: Commands, an_order: None) -> None:
    """`http://x/static/?` + `/s/orders`: by the URL that this makes, it asks for a file that everybody may have."""
    with dashboard(rs, "--host", "0.0.0.0", tokens=True) as board:
        for name in ("x/static/?", "x/login?", "x/static/#", "localhost:1/static/?", "[::1", "x\\@/static/?"):
            for path in ("/", "/s/orders", "/workers"):
                status, answer = asked(board.url, path, Host=name)
                assert status in (303, 400), (name, path, answer)
                assert "orders</" not in answer


async def test_the_guard_judges_what_is_routed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL is made of `Host`, and by some versions of Starlette without a look at what is in there."""
    monkeypatch.setattr(HTTPConnection, "url", URL("http://x/static/?/workers"))
    passed, sent = [], []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope["path"])

    async def send(message: Any) -> None:
        sent.append(message)

    guard = Guard(inner, Keys(OPERATOR, None, None, SECRET), None)
    for path in ("/workers", "/static/style.css"):
        scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": [(b"host", b"x")]}
        await guard(scope, None, send)  # type: ignore[arg-type]
    assert passed == ["/static/style.css"]
    assert sent[0]["status"] == 303


def test_an_origin_that_is_none_is_refused(rs: Commands) -> None:
    with dashboard(rs) as board:
        for origin in ("http://[", "http://", "://", "", "null", "http://]:1"):
            assert asked(board.url, "/login", method="POST", Origin=origin)[0] == 403, origin


def test_what_is_too_long_is_refused_and_no_error(rs: Commands) -> None:
    """A number of more digits than Python reads, more fields than a form has, more bytes: also of who has no token."""
    with dashboard(rs, tokens=True) as board, board.client() as client:
        for form in (b"a&" * 3000, b"a" * 100_000):
            kind = {"Content-Type": "application/x-www-form-urlencoded"}
            assert client.post("/login", content=form, headers=kind).status_code == 413
        alone = {"Authorization": f"Bearer {OPERATOR}"}
        for number in ("9" * 5000, "x", "-1", "٣"):
            answer = client.post(f"/replays/{number}/stop", headers=alone, follow_redirects=False)
            assert answer.status_code == 303, number[:10]


def asked(url: str, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    """What is answered to a request with these headers as they are."""
    host, port = url.removeprefix("http://").split(":")
    told = {"Host": f"{host}:{port}", "Content-Length": "0", "Connection": "close", **headers}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in told.items()), "", ""]
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall("\r\n".join(lines).encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    return int(answer.split(" ", 2)[1]), answer


def test_on_loopback_a_foreign_host_name_is_refused(rs: Commands) -> None:
    """DNS rebinding: the browser believes to talk with evil.example, whose address is 127.0.0.1 by now."""
    with dashboard(rs, "--allow-host", "board.internal") as board, board.client() as client:
        for name in ("evil.example", "evil.example:8400", "localhost.evil.example"):
            answer = client.get("/", headers={"Host": name})
            assert (answer.status_code, "--allow-host" in answer.text) == (421, True)
        for name in ("localhost:1", "127.0.0.1", "[::1]:8400", "board.internal"):
            assert client.get("/", headers={"Host": name}).status_code == 200


def test_what_every_answer_carries(rs: Commands) -> None:
    with dashboard(rs) as board, board.client() as client:
        for path in ("/", "/nowhere", "/s/none", "/healthz", "/login", "/static/style.css"):
            headers = client.get(path).headers
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert headers["x-frame-options"] == "DENY"
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "same-origin"
            assert headers["cache-control"] == ("no-cache" if path.startswith("/static") else "no-store")
            assert "server" not in headers
        page = client.get("/").text
        assert " style=" not in page
        assert "onclick" not in page
        assert "://" not in page.replace(board.url, "").replace("unix://", "").replace("redis://", ""), (
            "nothing from elsewhere"
        )


def test_a_form_is_of_bounded_size(rs: Commands, an_order: None) -> None:
    with dashboard(rs) as board, board.client() as client:
        token = form_token(client)
        assert (
            client.post("/replays/1/stop", content=b"csrf=" + token.encode() + b"&x=" + b"y" * 70_000).status_code
            == 413
        )


def test_read_only(rs: Commands, an_order: None) -> None:
    with dashboard(rs, "--read-only") as board, board.client() as client:
        assert "viewer" in client.get("/").text
        assert client.post("/replays/1/stop", data={"csrf": form_token(client)}).status_code == 403


def test_a_token_of_another_alphabet_is_just_wrong() -> None:
    keys: Any = Keys(OPERATOR, VIEWER, None, SECRET)
    assert keys.role_of("é" * 30) is None
    assert keys.role_of("\udcff") is None
    assert keys.role_of(OPERATOR) == "operator"
    assert keys.role_of(VIEWER) == "viewer"


def test_without_the_extra_it_says_what_to_install(rs: Commands) -> None:
    rs.write("uvicorn.py", "raise ModuleNotFoundError('no uvicorn', name='uvicorn')")  # found before the installed one
    done = rs.run("dashboard", "--port", "0")
    assert (done.returncode, "pip install starlette uvicorn jinja2" in done.stderr) == (1, True), done.stderr
    assert rs.run("dashboard", "--help").returncode == 0


def test_a_port_that_is_taken(rs: Commands) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = rs.run("dashboard", "--port", str(port))
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: the dashboard cannot listen at 127.0.0.1:{port}: Address already in use")


def test_what_contradicts_itself(rs: Commands) -> None:
    assert rs.run("dashboard", "--read-only", "--token", OPERATOR).returncode == 2
