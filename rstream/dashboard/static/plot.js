// Reads a plot and picks a window on it, by pointer or by keyboard; the window goes into the form, where it can be typed, too.
"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const form = () => document.getElementById("window"); // not there before there is some history

  const iso = (seconds) => new Date(seconds * 1000).toISOString().replace(".000Z", "Z");
  const clock = (seconds) => iso(seconds).replace("T", " ").slice(0, 16);
  const data = (canvas) => JSON.parse(canvas.closest("[data-plot]").dataset.plot);
  const buckets = (plot) => (plot.lines[0] ? plot.lines[0].texts.length : 0);
  const picks = new WeakMap(); // canvas -> {from, at}: where buckets begin, in seconds; from: null while nothing is picked

  function draw(canvas) {
    const plot = data(canvas), count = buckets(plot), pick = picks.get(canvas);
    const over = canvas.querySelector(".over"), reading = canvas.parentElement.querySelector(".reading");
    over.replaceChildren();
    if (!pick || !count) { reading.textContent = ""; return; }
    const percent = (n) => `${(100 * n) / count}%`;
    const number = (seconds) => Math.max(0, Math.min(count - 1, Math.round((seconds - plot.start) / plot.step)));
    if (pick.from !== null) {
      const low = number(Math.min(pick.from, pick.at)), high = number(Math.max(pick.from, pick.at)) + 1;
      const rect = document.createElementNS(SVG, "rect");
      rect.setAttribute("x", percent(low)); rect.setAttribute("width", percent(high - low));
      rect.setAttribute("y", "0"); rect.setAttribute("height", "100%");
      over.append(rect);
      reading.textContent = `picked ${clock(plot.start + low * plot.step)} to ${clock(plot.start + high * plot.step)} UTC`;
      if (form() && !form().contains(document.activeElement)) {
        form().elements.from.value = iso(plot.start + low * plot.step);
        form().elements.to.value = iso(plot.start + high * plot.step);
      }
      return;
    }
    const line = document.createElementNS(SVG, "line"), at = number(pick.at);
    for (const name of ["x1", "x2"]) line.setAttribute(name, percent(at + 0.5));
    line.setAttribute("y1", "0"); line.setAttribute("y2", "100%");
    over.append(line);
    const values = plot.lines.map((each) => `${each.name} ${each.texts[at]}`).join(", ");
    reading.textContent = `${clock(plot.start + at * plot.step)} UTC: ${values}`;
  }

  function timeAt(canvas, event) {
    const box = canvas.getBoundingClientRect(), plot = data(canvas), count = buckets(plot);
    return plot.start + plot.step * Math.max(0, Math.min(count - 1, Math.floor(((event.clientX - box.left) / box.width) * count)));
  }

  const canvasOf = (event) => (event.target instanceof Element ? event.target.closest(".canvas") : null);
  let dragging = null;

  document.addEventListener("pointerdown", (event) => {
    const canvas = canvasOf(event);
    if (!canvas || event.button) return;
    dragging = { canvas, from: timeAt(canvas, event), moved: false };
    if (event.pointerType !== "touch") canvas.setPointerCapture(event.pointerId);
  });
  document.addEventListener("pointermove", (event) => {
    const canvas = dragging ? dragging.canvas : canvasOf(event);
    if (!canvas) return;
    const at = timeAt(canvas, event), pick = picks.get(canvas);
    if (dragging) {
      dragging.moved ||= at !== dragging.from;
      picks.set(canvas, { from: dragging.moved ? dragging.from : null, at });
    } else if (!pick || pick.from === null) {
      picks.set(canvas, { from: null, at });
    } else return;
    draw(canvas);
  });
  document.addEventListener("pointerup", () => {
    if (dragging && !dragging.moved) { picks.delete(dragging.canvas); draw(dragging.canvas); }
    dragging = null;
  });
  document.addEventListener("pointercancel", () => { dragging = null; });
  document.addEventListener("pointerout", (event) => {
    const canvas = canvasOf(event);
    if (!canvas || dragging || canvas.contains(event.relatedTarget)) return;
    const pick = picks.get(canvas);
    if (pick && pick.from === null) { picks.delete(canvas); draw(canvas); }
  });

  document.addEventListener("keydown", (event) => {
    const canvas = canvasOf(event);
    if (!canvas || event.target !== canvas) return;
    const plot = data(canvas), count = buckets(plot), last = plot.start + plot.step * (count - 1);
    const pick = picks.get(canvas) || { from: null, at: last };
    const step = plot.step * (event.ctrlKey ? Math.ceil(count / 12) : 1);
    const moves = { ArrowLeft: -step, ArrowRight: step, Home: -Infinity, End: Infinity };
    if (event.key === "Escape") { picks.delete(canvas); draw(canvas); return; }
    if (event.key === "Enter" && pick.from !== null && form()) { form().elements.from.select(); event.preventDefault(); return; }
    if (!(event.key in moves)) return;
    event.preventDefault();
    const at = Math.max(plot.start, Math.min(last, pick.at + (picks.has(canvas) ? moves[event.key] : 0)));
    picks.set(canvas, { from: event.shiftKey ? (pick.from === null ? pick.at : pick.from) : null, at });
    draw(canvas);
  });

  // The picture moved on, and what is picked stays at its time.
  document.addEventListener("fresh", () => {
    for (const canvas of document.querySelectorAll(".canvas")) if (picks.has(canvas)) draw(canvas);
  });
})();
