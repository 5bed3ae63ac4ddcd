"""The dashboard in a real browser, beside live workers: what operators do there, by mouse and by keyboard."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.browsers import browser
from tests.commands import Commands, Order, Running
from tests.dashboards import OPERATOR, VIEWER, Dashboard, dashboard, shop
from tests.orders import stats
from tests.servers import Server
from tests.waiting import eventually

pytestmark = pytest.mark.long

GROUP = "/s/orders/g/billing"

TILL = """
import asyncio, pathlib
from rstream import Event, RStream, RetryPolicy
from shop import Order, remember

app = RStream()
orders = app.stream("orders", Order, key="customer", shards=4)

@orders.consumer("billing", concurrency=4, lease=2.0, retry=RetryPolicy(max_attempts=2, initial_delay=0.01))
async def bill(order: Order) -> None:
    if order.total < 0 and not pathlib.Path("fixed.txt").exists():
        raise ValueError(f"no account of {order.customer}")
    if order.customer == "stuck":
        remember("begin stuck")
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            remember("cancelled stuck")
            raise
    remember(f"billed {order.customer} {order.total:g}")
"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as opened:
        yield opened


@pytest.fixture
def board(rs: Commands) -> Iterator[Dashboard]:
    with dashboard(rs) as running:
        yield running


@pytest.fixture
def till(rs: Commands) -> Iterator[Running]:
    rs.write("till.py", TILL)
    with rs.started("worker", "till:app") as worker:
        eventually(lambda: "billing" in worker.err)
        yield worker


@pytest.fixture
def page(chromium: Any, board: Dashboard) -> Iterator[Any]:
    """A tab. Nothing may be refused by the content security policy, and no script may fail."""
    with tab(chromium, board) as opened:
        yield opened


@contextlib.contextmanager
def tab(chromium: Any, board: Dashboard, **options: Any) -> Iterator[Any]:
    context = chromium.new_context(base_url=board.url, viewport={"width": 1280, "height": 800}, **options)
    context.set_default_timeout(40_000)
    page, problems = context.new_page(), list[str]()
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda told: problems.append(told.text) if "Content Security Policy" in told.text else None)
    page.on("request", lambda asked: problems.append(asked.url) if not asked.url.startswith(board.url) else None)
    yield page
    context.close()
    assert not problems


def publish(rs: Commands, *orders: tuple[str, float]) -> list[Any]:
    with shop(rs) as stream:
        return stream.sync.publish_many([Order(customer=name, total=total) for name, total in orders])


def main(page: Any) -> str:
    return " ".join(page.inner_text("main").split())


# -- acting ------------------------------------------------------------------------------------------------------------


def test_dead_letters_are_redriven_and_discarded(rs: Commands, till: Running, page: Any) -> None:
    publish(rs, ("ada", -1), ("bob", -2), ("cid", -3), ("dan", 4))
    page.goto("/")
    page.get_by_role("link", name="3", exact=True).click()
    assert page.url.endswith("/s/orders/g/billing/dead")
    assert "ada" not in main(page)
    page.get_by_role("button", name="Show keys and errors").click()
    assert "ValueError: no account of bob" in main(page)
    page.locator("tr", has_text="account of bob").get_by_role("checkbox").check()
    page.get_by_role("button", name="Discard…").click()
    assert "Discard 1 dead letter?" in main(page)
    page.get_by_role("button", name="Discard 1").click()
    assert "Discarded: 1 dead letter" in main(page)
    rs.write("fixed.txt", "")
    page.get_by_role("link", name="Back to the dead letters").click()
    page.get_by_label("Reason").select_option("failed")
    page.get_by_role("button", name="Filter").click()
    page.get_by_label("all that match").check()
    page.get_by_role("button", name="Redrive…").click()
    assert "2 entries will be handled once more by group billing" in main(page)
    page.get_by_role("button", name="Redrive 2").click()
    assert "Redriven: 2 dead letters" in main(page)
    eventually(lambda: sorted(rs.handled) == ["billed ada -1", "billed cid -3", "billed dan 4"])
    page.get_by_role("link", name="Back to the dead letters").click()
    assert "There are none" in main(page)


def test_a_letter_is_shown_in_full_when_asked_for(rs: Commands, till: Running, page: Any) -> None:
    publish(rs, ("<b>ada</b>", -1))
    page.goto("/s/orders/g/billing/dead")
    eventually(lambda: "ValueError" in main(page))
    page.locator("tbody th a").click()
    assert "Traceback" not in main(page)
    page.get_by_role("button", name="Show contents").click()
    assert "no account of <b>ada</b>" in main(page)
    assert "Traceback (most recent call last)" in main(page)
    assert "till.py" in main(page)


def test_a_group_is_paused_and_resumed(rs: Commands, till: Running, page: Any) -> None:
    publish(rs, ("ada", 1))
    eventually(lambda: rs.handled == ["billed ada 1"])
    page.goto("/s/orders/g/billing")
    page.get_by_placeholder("why").fill("a bad release")
    page.get_by_role("button", name="Pause", exact=True).last.click()
    page.get_by_role("button", name="Resume").wait_for()
    assert "by dashboard operator: a bad release" in main(page)
    publish(rs, ("bob", 2))
    eventually(lambda: re.search(r"Unread [1-9]|Pending [1-9]", main(page)))  # as the page itself sees it
    assert rs.handled == ["billed ada 1"]
    page.goto("/")
    assert "paused" in main(page)
    page.goto("/s/orders/g/billing")
    page.get_by_role("button", name="Resume").click()
    eventually(lambda: rs.handled == ["billed ada 1", "billed bob 2"])


def test_a_delivery_is_cancelled(rs: Commands, till: Running, page: Any) -> None:
    (stuck, _) = publish(rs, ("stuck", 1), ("stuck", 2))
    eventually(lambda: "begin stuck" in rs.handled)
    page.goto("/s/orders/g/billing")
    page.get_by_role("link", name=str(stuck)).first.click()
    assert "in hand" in main(page)
    page.get_by_role("button", name="Cancel…").click()
    assert "Cancel 1 delivery?" in main(page)
    page.get_by_role("button", name="Cancel 1").click()
    assert "Cancelled: 1 delivery" in main(page)
    eventually(lambda: rs.handled[:3] == ["begin stuck", "cancelled stuck", "begin stuck"])  # and the key goes on


def test_a_window_picked_on_the_plot_is_replayed(rs: Commands, till: Running, page: Any) -> None:
    """Drag over it, dry run, confirm: the group handles it once more, and the replay is seen to end."""
    publish(rs, ("ada", 1), ("bob", 2))
    eventually(lambda: sorted(rs.handled) == ["billed ada 1", "billed bob 2"])
    page.goto(GROUP)
    canvas = page.locator(".canvas").first
    canvas.wait_for()  # workers write history down every few seconds
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 1, box["y"] + 40, steps=4)
    page.mouse.up()
    page.get_by_text(re.compile("^picked .* UTC$")).wait_for()
    start, end = (page.locator(f"#window [name={name}]").input_value() for name in ("from", "to"))
    assert start < end
    page.get_by_role("button", name="Replay it…").click()
    assert page.get_by_label("From").input_value() == start
    assert page.get_by_label("Group").input_value() == "billing"
    page.get_by_role("button", name="Dry run").click()
    assert "will handle 2 entries once more" in main(page)
    assert "nothing was changed" in main(page)
    assert len(rs.handled) == 2
    page.get_by_role("button", name="Replay 2").click()
    assert page.url.endswith("/replays")
    page.get_by_text("all given").wait_for()
    eventually(lambda: sorted(rs.handled) == ["billed ada 1"] * 2 + ["billed bob 2"] * 2)


def test_a_plot_is_read_and_picked_by_keyboard(rs: Commands, till: Running, page: Any) -> None:
    publish(rs, ("ada", 1))
    page.goto("/s/orders")
    canvas = page.locator(".canvas").first
    canvas.wait_for()
    walk_to(page, lambda at: at["label"].startswith("Throughput"))
    page.keyboard.press("End")
    page.get_by_text(re.compile("UTC: published ")).wait_for()
    for _ in range(3):
        page.keyboard.press("Shift+ArrowLeft")
    page.get_by_text(re.compile("^picked ")).wait_for()
    start, end = (page.locator(f"#window [name={name}]").input_value() for name in ("from", "to"))
    minutes = [int(text[14:16]) for text in (start, end)]
    assert (minutes[1] - minutes[0]) % 60 == 4
    page.keyboard.press("Enter")
    assert focused(page)["name"] == "from"
    page.keyboard.type("1h ago")
    page.keyboard.press("Enter")  # the first button: show it
    page.wait_for_url("**zoom=1**")
    page.locator(".canvas").first.wait_for()
    page.goto("/s/orders?span=30d")
    page.locator(".canvas").first.wait_for()


def test_a_group_is_made_in_the_past(rs: Commands, till: Running, page: Any) -> None:
    publish(rs, ("ada", 1), ("bob", 2))
    page.goto("/s/orders/replay?from=1h+ago&way=new")
    page.get_by_label("Group").fill("shadow")
    page.get_by_role("button", name="Dry run").click()
    assert "with 2 entries to catch up with" in main(page)
    with shop(rs) as orders:
        assert "shadow" not in [group.name for group in stats(orders)]
    page.get_by_role("button", name="Make it").click()
    assert page.url.endswith("/s/orders/g/shadow")
    assert "Unread 2" in main(page)


# -- who may -------------------------------------------------------------------------------------------------------


def test_viewers_look_and_have_no_buttons(rs: Commands, till: Running, chromium: Any) -> None:
    publish(rs, ("ada", -1), ("stuck", 1))
    eventually(lambda: "begin stuck" in rs.handled)
    with dashboard(rs, "--host", "0.0.0.0", tokens=True) as board, tab(chromium, board) as page:
        page.goto("/s/orders/g/billing")
        assert page.url.endswith("/login?next=/s/orders/g/billing")
        page.get_by_label("Token").fill("wrong" * 5)
        page.keyboard.press("Enter")
        page.get_by_text("not a token of this dashboard").wait_for()
        page.get_by_label("Token").fill(VIEWER)
        page.keyboard.press("Enter")
        page.wait_for_url("**/s/orders/g/billing")
        for path in ("/", "/s/orders/g/billing", "/s/orders/g/billing/dead", "/replays"):
            page.goto(path)
            buttons = page.locator("main button").all_inner_texts()
            assert set(buttons) <= {"Show", "Filter", "Show this time", "Replay it…"}, path
        page.get_by_role("button", name="Log out").click()
        page.get_by_label("Token").fill(OPERATOR)
        page.keyboard.press("Enter")
        page.locator(".role", has_text="operator").wait_for()
        page.goto("/s/orders/g/billing")
        assert page.locator("main button", has_text="Cancel the picked ones").count() == 1


def test_another_site_gets_nothing_done(rs: Commands, till: Running, chromium: Any, board: Dashboard) -> None:
    """A page of another origin, in the same browser, posts a form to the dashboard."""
    publish(rs, ("ada", 1))
    for target in ("pause", "dead/do"):
        form = f'<form method="post" action="{board.url}{GROUP}/{target}"><button>Win a prize</button></form>'
        context = chromium.new_context()
        with site(form) as url:
            page = context.new_page()
            page.goto(url)
            page.get_by_role("button").click()
            page.get_by_text("does not come from a page of this dashboard").wait_for()
        context.close()
        assert f"refused POST '{GROUP}/{target}'" in board.log


@contextlib.contextmanager
def site(page: str) -> Iterator[str]:
    """Somebody else's, with one page."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


# -- live ------------------------------------------------------------------------------------------------------------


def test_a_page_keeps_itself_fresh(rs: Commands, page: Any) -> None:
    publish(rs, ("ada", 1))
    page.goto("/s/orders")
    eventually(lambda: "Entries 1" in main(page))
    page.evaluate("window.stayed = true")
    page.locator("#window, main a").first.focus()
    focused = page.evaluate("document.activeElement.outerHTML")
    publish(rs, ("bob", 1))
    eventually(lambda: "Entries 2" in main(page))
    assert page.evaluate("window.stayed") is True, "without loading it anew"
    assert page.evaluate("document.activeElement.outerHTML") == focused
    asked = list[str]()
    page.on("request", lambda request: asked.append(request.url))
    page.get_by_role("button", name="Pause").click()
    page.evaluate("() => new Promise(done => setTimeout(done, 100))")
    asked.clear()
    publish(rs, ("cid", 1))
    page.evaluate("() => new Promise(done => setTimeout(done, 3000))")  # longer than it would wait
    assert asked == []
    assert "Entries 2" in main(page)
    page.get_by_role("button", name="Go on").click()
    eventually(lambda: "Entries 3" in main(page))
    page.evaluate(HIDDEN, True)  # as if somebody looked at another tab
    page.evaluate("() => new Promise(done => setTimeout(done, 100))")
    asked.clear()
    publish(rs, ("dan", 1))
    page.evaluate("() => new Promise(done => setTimeout(done, 3000))")
    assert asked == []
    page.evaluate(HIDDEN, False)
    eventually(lambda: "Entries 4" in main(page))


HIDDEN = """(hidden) => {
    Object.defineProperty(document, "hidden", {get: () => hidden, configurable: true});
    document.dispatchEvent(new Event("visibilitychange"));
}"""


def test_ticks_stay_while_the_page_changes(rs: Commands, till: Running, page: Any) -> None:
    publish(rs, ("ada", -1))
    page.goto("/s/orders/g/billing/dead")
    eventually(lambda: page.locator("tbody input").count() == 1)
    page.locator("tbody input").check()
    publish(rs, ("bob", -1))
    eventually(lambda: page.locator("tbody input").count() == 2)
    assert page.locator("tbody input").first.is_checked()
    assert not page.locator("tbody input").last.is_checked()


def test_a_page_says_that_redis_is_away_and_comes_back(rs: Commands, own_server: Server, chromium: Any) -> None:
    rs.env["RSTREAM_URL"] = own_server.url
    publish(rs, ("ada", 1))
    with dashboard(rs) as board, tab(chromium, board) as page:
        page.goto("/s/orders")
        own_server.kill()
        page.get_by_text("What you see is old").wait_for()
        assert "Entries 1" in main(page), "and still shows it"
        assert page.locator("#live-text").inner_text() == "stale"
        lost = chromium.new_context(base_url=board.url).new_page()
        lost.goto("/s/orders")
        assert "This page looks again by itself" in main(lost)
        own_server.start()
        publish(rs, ("bob", 1))
        eventually(lambda: "Entries 2" in main(page), timeout=40)
        assert not page.locator("#banner").is_visible()
        eventually(lambda: "Entries 2" in main(lost), timeout=40)
        lost.context.close()


# -- by keyboard, on a phone, at night ------------------------------------------------------------------------------


def test_by_keyboard_alone(rs: Commands, till: Running, page: Any) -> None:
    """From the address bar to a discarded letter, and every place that has the focus can be seen to have it."""
    publish(rs, ("ada", -1))
    page.goto("/s/orders/g/billing/dead")
    eventually(lambda: page.locator("tbody input").count() == 1)
    page.keyboard.press("Tab")
    assert focused(page)["text"] == "Skip to the content"
    assert focused(page)["seen"]
    page.keyboard.press("Enter")
    seen = walk_to(page, lambda at: at["type"] == "checkbox")
    assert all(each["outlined"] for each in seen), seen
    page.keyboard.press("Space")
    seen = walk_to(page, lambda at: at["text"] == "Discard…")
    assert all(each["outlined"] for each in seen), seen
    page.keyboard.press("Enter")
    page.wait_for_url("**/dead/plan")
    walk_to(page, lambda at: at["text"] == "Discard 1")  # not at once: Enter twice shall not be enough
    page.keyboard.press("Enter")
    page.wait_for_url("**/dead/do")
    assert "Discarded: 1" in main(page)


def focused(page: Any) -> dict[str, Any]:
    return page.evaluate("""() => {
        const at = document.activeElement, box = at.getBoundingClientRect(), style = getComputedStyle(at);
        return {text: at.innerText || "", type: at.type || "", name: at.name || "", label: at.ariaLabel || "",
                outlined: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2,
                seen: box.width > 1 && box.height > 1 && box.left >= 0 && box.top >= 0};
    }""")


def walk_to(page: Any, there: Any, most: int = 60) -> list[dict[str, Any]]:
    """Press Tab until the focus is there; where it was on the way."""
    seen = []
    for _ in range(most):
        page.keyboard.press("Tab")
        seen.append(focused(page))
        if there(seen[-1]):
            return seen
    raise AssertionError(f"not within {most} steps: {seen}")


PAGES = ("/", "/s/orders", GROUP, f"{GROUP}/dead", "/workers", "/replays", "/s/orders/replay", "/nowhere")


def test_on_a_phone_and_at_night(rs: Commands, till: Running, chromium: Any, board: Dashboard) -> None:
    """Nothing has to be scrolled sideways, whatever is filled in has a name, and text stands out from its ground."""
    publish(rs, ("ada", -1), ("a-key-that-is-rather-long-" * 4, -1), ("stuck", 1))
    eventually(lambda: "begin stuck" in rs.handled)
    grounds = {}
    for scheme, width in (("light", 360), ("light", 768), ("light", 1280), ("dark", 1280)):
        context = chromium.new_context(
            base_url=board.url, viewport={"width": width, "height": 780}, color_scheme=scheme
        )
        page = context.new_page()
        for path in PAGES:
            page.goto(path)
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, (path, width, wide)
            assert page.evaluate(UNNAMED) == [], path
            assert page.evaluate("document.querySelectorAll('h1').length") == 1
            if width == 1280:
                assert page.evaluate(PALE) == [], (path, scheme)
        grounds[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        context.close()
    assert grounds["light"] != grounds["dark"]


UNNAMED = """() => [...document.querySelectorAll("input:not([type=hidden]), select, button, a[href]")].filter(each =>
    !(each.ariaLabel || each.labels?.length && each.labels[0].innerText.trim() || each.textContent.trim())
).map(each => each.outerHTML)"""

PALE = """() => {
    const light = (text) => {
        const parts = text.match(/[\\d.]+/g).map(Number);
        const linear = (n) => n <= 0.03928 ? n / 12.92 : ((n + 0.055) / 1.055) ** 2.4;
        const line = parts.slice(0, 3).map(n => linear(n / 255));
        return 0.2126 * line[0] + 0.7152 * line[1] + 0.0722 * line[2];
    };
    const ground = (at) => {
        for (; at; at = at.parentElement) {
            const colour = getComputedStyle(at).backgroundColor;
            if (!/, 0\\)$|transparent/.test(colour)) return colour;
        }
        return "rgb(255, 255, 255)";
    };
    const found = [];
    for (const at of document.querySelectorAll("body *")) {
        const own = [...at.childNodes].some(each => each.nodeType === 3 && each.nodeValue.trim());
        if (!own || !at.checkVisibility() || at.closest("svg")) continue;
        const [one, other] = [light(getComputedStyle(at).color), light(ground(at))];
        const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
        if (contrast < 4.5) found.push([at.outerHTML.slice(0, 90), contrast.toFixed(2)]);
    }
    return found;
}"""
