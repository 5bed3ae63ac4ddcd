// Keeps a page fresh: asks for its content again, and changes what is different, in place, so that focus, what was typed
// and what is ticked stay. Nothing is asked while the tab is hidden or somebody paused it.
"use strict";
(() => {
  const EVERY = 2000, MOST = 15000;
  const main = document.getElementById("content");
  const banner = document.getElementById("banner");
  const light = document.getElementById("live");
  const text = document.getElementById("live-text");
  const button = document.getElementById("pause");
  if (!document.body.hasAttribute("data-live") || !main || !light || !button) return;

  let paused = false, timer = 0, wait = EVERY, asking = null;

  const say = (state, words) => {
    light.className = "live" + (state ? " " + state : "");
    if (text.textContent !== words) text.textContent = words;
  };

  const trouble = (words) => {
    if (banner.textContent !== words) banner.textContent = words;
    banner.hidden = !words;
    main.classList.toggle("stale", Boolean(words));
  };

  // Not `node.id`: in a form with a field of that name, that is the field.
  const name = (node) => (node.nodeType === Node.ELEMENT_NODE && node.getAttribute("id")) || "";
  const same = (one, other) => one.nodeName === other.nodeName && name(one) === name(other);

  function become(old, now) {
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.nodeValue !== now.nodeValue) old.nodeValue = now.nodeValue;
      return;
    }
    if (old.hasAttribute("data-keep")) return;
    for (const each of [...old.attributes]) if (!now.hasAttribute(each.name) && each.name !== "open") old.removeAttribute(each.name);
    for (const each of now.attributes) if (old.getAttribute(each.name) !== each.value) old.setAttribute(each.name, each.value);
    children(old, now);
  }

  const blank = (node) => node.nodeType === Node.TEXT_NODE && !node.nodeValue.trim();

  // What is there and what is wanted, side by side. What has an id is found again wherever it went; of the rest, the next
  // of its kind is taken, and what lies between goes.
  function children(old, now) {
    const named = new Map();
    for (const child of old.children) if (name(child)) named.set(name(child), child);
    let at = old.firstChild;
    const skip = () => { while (at && blank(at)) at = at.nextSibling; };
    for (const wanted of [...now.childNodes]) {
      if (blank(wanted)) continue;
      skip();
      let found = null;
      if (name(wanted)) {
        if (named.has(name(wanted)) && same(named.get(name(wanted)), wanted)) found = named.get(name(wanted));
      } else {
        for (let next = at; next && !found; next = next.nextSibling) if (same(next, wanted)) found = next;
      }
      if (found === null) {
        old.insertBefore(document.importNode(wanted, true), at);
        continue;
      }
      if (name(wanted) && found !== at) old.insertBefore(found, at);
      else while (at !== found) { const next = at.nextSibling; if (!name(at)) at.remove(); at = next; }
      if (found === at) at = at.nextSibling;
      become(found, wanted);
    }
    while (at) { const next = at.nextSibling; if (!blank(at)) at.remove(); at = next; }
  }

  async function look() {
    asking = new AbortController();
    const limit = setTimeout(() => asking && asking.abort(), 20000);
    try {
      const answer = await fetch(location.href, { headers: { "X-Live": "1" }, signal: asking.signal, credentials: "same-origin" });
      const body = await answer.text();
      if (paused || document.hidden) return;
      if (answer.status === 401) { location.reload(); return; }
      if (!answer.ok) throw new Error(body.trim() || `the dashboard answers ${answer.status}`);
      const fresh = new DOMParser().parseFromString(`<main>${body}</main>`, "text/html").querySelector("main");
      trouble("");
      children(main, fresh);
      document.dispatchEvent(new Event("fresh"));
      say("", "live");
      wait = EVERY;
    } catch (error) {
      if (paused || document.hidden) return;
      const words = error instanceof TypeError || error.name === "AbortError" ? "the dashboard does not answer" : error.message;
      trouble(`What you see is old: ${words}. Looking again by itself.`);
      say("stale", "stale");
      wait = Math.min(MOST, wait * 1.5);
    } finally {
      clearTimeout(limit);
      asking = null;
    }
  }

  const next = (soon) => {
    clearTimeout(timer);
    if (paused || document.hidden) return;
    timer = setTimeout(async () => { await look(); next(false); }, soon ? 0 : wait);
  };

  const rest = () => {
    clearTimeout(timer);
    if (asking) asking.abort();
  };

  button.addEventListener("click", () => {
    paused = !paused;
    button.textContent = paused ? "Go on" : "Pause";
    button.setAttribute("aria-pressed", String(paused));
    if (paused) { rest(); say("paused", "paused"); } else { say("", "live"); next(true); }
  });
  document.addEventListener("visibilitychange", () => { if (document.hidden) rest(); else next(true); });
  next(false);
})();
