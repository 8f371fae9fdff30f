"use strict";
// The curves of a page: no library, nothing loaded. `data` is what page.py wrote.
const data = JSON.parse(document.getElementById("data").textContent);
const by = (id) => document.getElementById(id);
const NS = "http://www.w3.org/2000/svg";
const EDGE = { left: 52, right: 16, top: 8, bottom: 26 };
const SPLITS = [...new Set(data.metrics.flatMap((m) => m.series.map((s) => s.split)))]
  .sort((a, b) => (b === "train") - (a === "train") || a.localeCompare(b));
const ONE = data.runs.length === 1;
const view = { x: "step", smooth: 0, log: false, zoom: null, reach: null, hiddenRuns: new Set(), hiddenSplits: new Set() };
if (SPLITS.includes("train") && SPLITS.includes("train_epoch")) view.hiddenSplits.add("train_epoch");
const charts = [];
const HUES = 24;

function el(name, attributes = {}, text) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function svg(name, attributes = {}, text) {
  const made = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// How things look: a colour a run; where there is one run, a colour a split.
const colour = (s) => `var(--s${(ONE ? SPLITS.indexOf(s.split) : s.run) % HUES})`;
const dashed = (s) => !ONE && s.split !== "train";
const dotted = (s) => s.split !== "train";
const said = (split) => (split === "train_epoch" ? "train (epoch mean)" : split);
// Runs differ at the end of their names more often than in the middle.
const shortened = (text) => (text.length <= 32 ? text : `${text.slice(0, 12)}…${text.slice(-19)}`);
const name = (s) => (ONE ? said(s.split) : `${shortened(data.runs[s.run])}${SPLITS.length > 1 ? ` · ${said(s.split)}` : ""}`);

function number(v) {
  if (v === null || v === undefined) return "not finite";
  if (v === 0) return "0";
  const size = Math.abs(v);
  for (const [unit, by] of [["G", 1e9], ["M", 1e6]]) if (size >= by && size < 1e12) return `${+(v / by).toPrecision(4)}${unit}`;
  if (size >= 1e12 || size < 1e-3) return v.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  return size >= 1000 ? v.toLocaleString("en", { maximumFractionDigits: 1 }) : String(+v.toPrecision(4));
}

function clock(seconds) {
  if (seconds < 60) return `${+seconds.toPrecision(3)} s`;
  const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, Math.round(seconds % 60)];
  return h ? `${h} h${m ? ` ${m} min` : ""}` : s ? `${m} min ${s} s` : `${m} min`;
}

const place = (v) => (view.x === "time" ? clock(v) : `${view.x} ${number(v)}`);

// Ticks at round numbers.
function ticks(low, high, count, whole) {
  if (!(high > low)) return [low];
  const rough = (high - low) / count;
  let step = 10 ** Math.floor(Math.log10(rough));
  step *= [1, 2, 5, 10].find((k) => k * step >= rough);
  if (whole) step = Math.max(1, step);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) found.push(+(k * step).toPrecision(12));
  return found;
}

const CLOCK = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 43200, 86400];
function clockTicks(low, high, count) {
  const step = CLOCK.find((k) => k >= (high - low) / count);
  if (!step || high - low < 4) return ticks(low, high, count);
  const found = [];
  for (let v = Math.ceil(low / step) * step; v <= high; v += step) found.push(v);
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
    for (const k of [1, 2, 5]) if (k * 10 ** e >= low && k * 10 ** e <= high) found.push(+(k * 10 ** e).toPrecision(3));
  const decades = found.filter((v) => Number.isInteger(+Math.log10(v).toFixed(9)));
  if (found.length < 3) return ticks(low, high, 5).filter((v) => v > 0);
  const chosen = found.length > 7 && decades.length > 1 ? decades : found;
  return chosen.filter((_, i) => i % Math.ceil(chosen.length / 6) === 0);
}

function smoothed(values, weight) {
  let [total, mass] = [0, 0];
  return values.map((v) => {
    if (v !== null) { total = weight * total + v; mass = weight * mass + 1; }
    return v === null ? null : total / mass;
  });
}

function visible(metric) {
  return metric.series.filter((s) => !view.hiddenRuns.has(s.run) && !view.hiddenSplits.has(s.split))
    .filter((s) => s[view.x].some((v) => v !== null))
    .map((s) => ({ s, x: s[view.x], y: view.smooth && s.split === "train" && metric.name !== "learning_rate" ? smoothed(s.y, view.smooth) : s.y }));
}

// One range for all charts, so that what is above one another happened together.
function reach() {
  const shown = data.metrics.flatMap((m) => m.series).filter((s) => !view.hiddenRuns.has(s.run) && !view.hiddenSplits.has(s.split));
  const [low, high] = range(shown.flatMap((s) => s[view.x]));
  return [low > 0 && low < 0.2 * high ? 0 : low, high];
}

function range(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const v of values) if (v !== null) { if (v < low) low = v; if (v > high) high = v; }
  return [low, high];
}

function line(curve, X, Y, log) {
  let [path, pen] = ["", "M"];
  curve.x.forEach((x, i) => {
    const y = curve.y[i];
    if (x === null || y === null || (log && y <= 0)) { pen = "M"; return; }
    path += `${pen}${X(x).toFixed(1)} ${Y(y).toFixed(1)}`;
    pen = "L";
  });
  return path;
}

function draw(chart) {
  const { box, metric } = chart;
  const [W, H] = [box.clientWidth || 400, box.clientHeight || 232];
  box.setAttribute("viewBox", `0 0 ${W} ${H}`);
  box.replaceChildren();
  const curves = visible(metric);
  let [x0, x1] = view.zoom || view.reach;
  const inside = curves.flatMap((c) => c.y.filter((_, i) => c.x[i] !== null && c.x[i] >= x0 && c.x[i] <= x1));
  const raw = curves.flatMap((c) => (c.y === c.s.y ? [] : c.s.y.filter((_, i) => c.x[i] >= x0 && c.x[i] <= x1)));
  const log = view.log && inside.some((v) => v > 0);
  let [y0, y1] = range([...inside, ...raw].filter((v) => v !== null && (!log || v > 0)));
  chart.scale = null;
  if (!(y1 >= y0)) {
    box.append(svg("text", { x: W / 2, y: H / 2, class: "none" }, curves.length ? "no finite value here" : "hidden, or not logged against this axis"));
    return;
  }
  if (x1 <= x0) [x0, x1] = [x0 - 0.5, x1 + 0.5];
  if (y1 === y0) [y0, y1] = log ? [y0 / 2, y1 * 2] : [y0 - (Math.abs(y0) / 10 || 0.5), y1 + (Math.abs(y1) / 10 || 0.5)];
  const margin = (log ? Math.log(y1 / y0) : y1 - y0) * 0.05;
  if (log) [y0, y1] = [y0 / Math.exp(margin), y1 * Math.exp(margin)];
  else [y0, y1] = [y0 >= 0 && y0 - margin < 0 ? 0 : y0 - margin, y1 + margin];
  const X = (v) => EDGE.left + ((v - x0) / (x1 - x0)) * (W - EDGE.left - EDGE.right);
  const f = log ? Math.log : (v) => v;
  const Y = (v) => H - EDGE.bottom - ((f(v) - f(y0)) / (f(y1) - f(y0))) * (H - EDGE.top - EDGE.bottom);
  const grid = svg("path", { class: "lines" });
  let d = "";
  for (const v of log ? logTicks(y0, y1) : ticks(y0, y1, 5)) {
    d += `M${EDGE.left} ${Math.round(Y(v)) + 0.5}H${W - EDGE.right}`;
    box.append(svg("text", { x: EDGE.left - 8, y: Y(v) + 4, "text-anchor": "end" }, number(v)));
  }
  const across = Math.max(2, Math.floor(W / 90));
  const xs = view.x === "time" ? clockTicks(x0, x1, across) : ticks(x0, x1, across, view.x === "step");
  for (const v of xs) {
    const text = view.x === "time" ? clock(v) : number(v);
    const half = 3.3 * text.length; // about, at 11 px
    box.append(svg("text", { x: Math.min(X(v), W - half), y: H - 8, "text-anchor": "middle" }, text));
  }
  grid.setAttribute("d", d);
  box.append(grid);
  const id = `clip${charts.indexOf(chart)}`;
  const clip = svg("clipPath", { id });
  clip.append(svg("rect", { x: EDGE.left - 4, y: 0, width: W - EDGE.left - EDGE.right + 8, height: H - EDGE.bottom + 4 }));
  const layer = svg("g", { "clip-path": `url(#${id})` });
  for (const c of curves) {
    const style = `stroke:${colour(c.s)}`;
    if (c.y !== c.s.y) layer.append(svg("path", { class: "raw", style, d: line({ x: c.x, y: c.s.y }, X, Y, log) }));
    layer.append(svg("path", { style: style + (dashed(c.s) ? ";stroke-dasharray:5 4" : ""), d: line(c, X, Y, log) }));
    const points = c.x.map((x, i) => [x, c.y[i]]).filter(([x, y]) => x !== null && y !== null && x >= x0 && x <= x1 && (!log || y > 0));
    if ((dotted(c.s) && points.length <= W / 9) || points.length === 1)
      for (const [x, y] of points) layer.append(svg("circle", { cx: X(x), cy: Y(y), r: 2.6, style: `fill:${colour(c.s)}` }));
  }
  chart.hover = svg("g");
  box.append(clip, layer, chart.hover);
  chart.scale = { X, Y, x0, x1, W, H, log, curves, value: (px) => x0 + ((px - EDGE.left) / (W - EDGE.left - EDGE.right)) * (x1 - x0) };
}

function nearest(curve, at, log) {
  let [best, distance] = [-1, Infinity];
  curve.x.forEach((x, i) => {
    if (x === null || curve.y[i] === null || (log && curve.y[i] <= 0)) return;
    const d = Math.abs(x - at);
    if (d < distance) [best, distance] = [i, d];
  });
  return best;
}

function hover(at, source, event) {
  for (const chart of charts) {
    if (!chart.scale) continue;
    chart.hover.replaceChildren();
    const { X, Y, x0, x1, H, log, curves } = chart.scale;
    if (at === null || at < x0 || at > x1) continue;
    chart.hover.append(svg("line", { class: "cross", x1: X(at), x2: X(at), y1: EDGE.top, y2: H - EDGE.bottom }));
    if (chart !== source) continue;
    for (const c of curves) {
      const i = nearest(c, at, log);
      if (i < 0 || c.x[i] < x0 || c.x[i] > x1) continue;
      chart.hover.append(svg("circle", { cx: X(c.x[i]), cy: Y(c.y[i]), r: 4.2, style: `fill:${colour(c.s)};stroke:var(--panel);stroke-width:1.5` }));
    }
  }
  const tip = by("tip");
  tip.hidden = at === null || !source || !source.scale;
  if (tip.hidden) return;
  const found = source.scale.curves
    .map((c) => ({ c, i: nearest(c, at, source.scale.log) }))
    .filter(({ i }) => i >= 0)
    .sort((a, b) => b.c.y[b.i] - a.c.y[a.i]);
  const list = el("div");
  for (const { c, i } of found.slice(0, 12)) {
    const hue = colour(c.s);
    list.append(el("i", { style: `background:${hue};border-color:${hue}`, class: dashed(c.s) ? "hollow" : "" }));
    list.append(el("span", {}, name(c.s)), el("em", {}, number(c.y[i])));
  }
  if (found.length > 12) list.append(el("i"), el("span", {}, `${found.length - 12} more`), el("em"));
  tip.replaceChildren(el("b", {}, place(view.x === "step" ? Math.round(at) : at)), list);
  const { width, height } = tip.getBoundingClientRect();
  const left = event.clientX + 16 + width > innerWidth ? event.clientX - 16 - width : event.clientX + 16;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, Math.min(event.clientY + 12, innerHeight - height - 8))}px`;
}

function redraw() {
  hover(null);
  by("reset").hidden = !view.zoom;
  view.reach = reach();
  for (const chart of charts) if (chart.box.clientWidth) draw(chart);
}

function zoom(to) { view.zoom = to; redraw(); }

function pointer(chart) {
  const { box } = chart;
  const px = (event) => event.clientX - box.getBoundingClientRect().left;
  let start = null;
  box.addEventListener("pointerdown", (event) => { if (event.button === 0 && chart.scale) { start = px(event); box.setPointerCapture(event.pointerId); } });
  box.addEventListener("pointermove", (event) => {
    if (!chart.scale) return;
    const { scale } = chart;
    const at = Math.min(scale.x1, Math.max(scale.x0, scale.value(px(event))));
    hover(at, chart, event);
    if (start === null) return;
    const [a, b] = [start, px(event)].sort((p, q) => p - q).map((p) => Math.min(scale.W - EDGE.right, Math.max(EDGE.left, p)));
    chart.hover.append(svg("rect", { class: "brush", x: a, width: b - a, y: EDGE.top, height: scale.H - EDGE.top - EDGE.bottom }));
  });
  box.addEventListener("pointerup", (event) => {
    if (start === null || !chart.scale) return;
    const [a, b] = [start, px(event)].sort((p, q) => p - q);
    start = null;
    if (b - a > 6) zoom([a, b].map((p) => Math.min(chart.scale.x1, Math.max(chart.scale.x0, chart.scale.value(p)))));
  });
  box.addEventListener("pointercancel", () => { start = null; });
  box.addEventListener("pointerleave", () => hover(null));
  box.addEventListener("dblclick", () => zoom(null));
}

function key(hue, split) {
  const made = svg("svg", { width: 22, height: 10, viewBox: "0 0 22 10", "aria-hidden": "true" });
  const dash = split && split !== "train" && !ONE ? ";stroke-dasharray:5 4" : "";
  made.append(svg("line", { x1: 1, x2: 21, y1: 5, y2: 5, style: `stroke:${hue};stroke-width:2.4${dash}` }));
  if (split && split !== "train") made.append(svg("circle", { cx: 11, cy: 5, r: 3, style: `fill:${hue}` }));
  return made;
}

function toggle(hidden, item, hue, text, split) {
  const made = el("button", { type: "button", "aria-pressed": String(!hidden.has(item)) });
  made.append(key(hue, split), shortened(text));
  made.title = text;
  made.addEventListener("click", () => {
    if (!hidden.delete(item)) hidden.add(item);
    made.setAttribute("aria-pressed", String(!hidden.has(item)));
    redraw();
  });
  return made;
}

function controls() {
  const legend = by("legend");
  if (!ONE) data.runs.forEach((run, i) => legend.append(toggle(view.hiddenRuns, i, `var(--s${i % HUES})`, run)));
  if (!ONE && SPLITS.length > 1) legend.append(el("span", { class: "gap" }));
  if (SPLITS.length > 1)
    SPLITS.forEach((split, i) => legend.append(toggle(view.hiddenSplits, split, ONE ? `var(--s${i % HUES})` : "var(--quiet)", said(split), split)));
  for (const x of ["step", "epoch", "time"]) {
    if (!data.metrics.some((m) => m.series.some((s) => s[x].some((v) => v !== null)))) continue;
    const made = el("button", { type: "button", "aria-pressed": String(x === view.x) }, x);
    made.addEventListener("click", () => {
      view.x = x;
      view.zoom = null;
      for (const other of by("axis").querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === made));
      redraw();
    });
    by("axis").append(made);
  }
  by("smooth").addEventListener("input", (event) => { view.smooth = +event.target.value; event.target.nextElementSibling.value = view.smooth; redraw(); });
  by("log").addEventListener("change", (event) => { view.log = event.target.checked; redraw(); });
  by("reset").addEventListener("click", () => zoom(null));
}

function sections() {
  for (const group of [...new Set(data.metrics.map((m) => m.group))]) {
    const metrics = data.metrics.filter((m) => m.group === group);
    const grid = el("div", { class: "grid" });
    for (const metric of metrics) {
      const card = el("figure", { class: "card" });
      const box = svg("svg", { role: "img", "aria-label": `${metric.label} over training` });
      card.append(el("figcaption", {}, group && group !== "more" ? metric.label.slice(group.length).replace(/^ \/ /, "") : metric.label), box);
      grid.append(card);
      const chart = { box, metric, scale: null, hover: null };
      charts.push(chart);
      pointer(chart);
    }
    if (!group) { document.querySelector("main").append(grid); continue; }
    const details = el("details");
    const summary = el("summary", {}, group.replaceAll("_", " "));
    summary.append(el("small", {}, String(metrics.length)));
    details.append(summary, grid);
    details.open = !data.metrics.some((m) => !m.group);
    details.addEventListener("toggle", redraw);
    document.querySelector("main").append(details);
  }
}

function table() {
  const body = el("tbody");
  const words = data.columns.map((_, j) => data.rows.some((row) => typeof row[j] === "string"));
  const best = data.columns.map(({ better }, j) => {
    const [low, high] = range(data.rows.map((row) => (typeof row[j] === "number" ? row[j] : null)));
    return better && data.rows.length > 1 ? (better > 0 ? high : low) : null;
  });
  const order = data.rows.map((_, i) => i);
  const fill = () => body.replaceChildren(...order.map((i) => {
    const tr = el("tr");
    data.rows[i].forEach((value, j) => {
      const column = data.columns[j].name;
      const text = value === null ? "" : value === false ? "NaN" : column === "seconds" ? clock(value) : typeof value === "number" ? number(value) : value;
      const td = el("td", { class: `${words[j] ? "word" : ""} ${value === best[j] && value !== null ? "best" : ""}`.trim() }, text);
      if (j === 0 && !ONE) td.prepend(el("i", { style: `background:var(--s${i % HUES})` }));
      tr.append(td);
    });
    return tr;
  }));
  const head = el("tr");
  data.columns.forEach(({ name: column }, j) => {
    const th = el("th", { tabindex: "0", class: words[j] ? "word" : "" }, column === "seconds" ? "time" : column);
    const sort = () => {
      const down = th.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of head.children) other.removeAttribute("aria-sort");
      th.setAttribute("aria-sort", down > 0 ? "ascending" : "descending");
      const [a, b] = [(i) => data.rows[i][j], (v) => v === null || v === false || v === ""];
      order.sort((p, q) => b(a(p)) - b(a(q)) || down * (typeof a(p) === "number" ? a(p) - a(q) : String(a(p)).localeCompare(a(q), "en", { numeric: true })));
      fill();
    };
    th.addEventListener("click", sort);
    th.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
    head.append(th);
  });
  const thead = el("thead");
  thead.append(head);
  fill();
  document.querySelector("table").append(thead, body);
}

function theme() {
  const root = document.documentElement;
  const wish = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : wish.matches);
  by("theme").addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; });
}

theme();
document.querySelector("h1").textContent = data.title;
by("about").textContent = `${ONE ? "one run" : `${data.runs.length} runs`} · ${data.last.toLocaleString("en")} steps`;
controls();
sections();
table();
redraw();
addEventListener("resize", redraw);
