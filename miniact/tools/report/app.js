"use strict";
/* Draws the whole page from the JSON in #data. No library, no network, no innerHTML: every piece of
   text becomes a text node, so what a model or an environment wrote is shown and never run. */

const data = JSON.parse(document.getElementById("data").textContent);
const recipes = data.recipes;
const hidden = new Set(); // indices of recipes that the reader switched off
const redraws = []; // called when `hidden` changes

// ---- small helpers ---------------------------------------------------------------------------

const byId = (id) => document.getElementById(id);

function fill(node, properties, children) {
  for (const [name, value] of Object.entries(properties || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat(3).filter((child) => child != null && child !== false));
  return node;
}
const el = (tag, properties, ...children) => fill(document.createElement(tag), properties, children);
const svg = (tag, properties, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);

const colour = (i) => `var(--s${i % 6})`;
const dash = (i) => ["", "6 3", "2 3", "8 3 2 3"][Math.floor(i / 6) % 4];
const painted = (node, properties) => { Object.assign(node.style, properties); return node; };
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const kindOf = (key) => key.replace(/^\d+-/, "");
const twice = recipes.some((r) => new Set(r.evaluations.map((e) => kindOf(e.stage))).size < r.evaluations.length);
const stageName = (key) => (twice && kindOf(key) !== key ? `${kindOf(key)} (stage ${parseInt(key, 10)})` : kindOf(key));
/* Before any training a stage has no number: base, or the adapter that the run began with. */
const after = (stage) => (stage === "base" ? data.start : /^\d/.test(stage) ? `after ${stageName(stage)}` : stage);
const last = (list) => list[list.length - 1];
const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
const unique = (list) => [...new Set(list)];
const announce = (text) => { byId("announce").textContent = text; };

function number(value) {
  if (!isNumber(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(1);
  return Number(value.toPrecision(size >= 1000 ? 6 : 3)).toLocaleString("en");
}
/* As in the terminal: one digit, the ends of an interval none; halves go up. */
const percent = (value, digits = 1) => (isNumber(value) ? (100 * value + Math.sign(value) * 1e-9).toFixed(digits).replace(/^-(0(\.0)?)$/, "$1") : "–");
const show = (value, share) => (share ? percent(value) : number(value));
const end = (value, share) => (share ? percent(value, 0) : number(value));

function duration(seconds) {
  if (!isNumber(seconds)) return "–";
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (seconds < 600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/* Steps of 1, 2 or 5 × 10^k from low to high, about `count` of them. */
function ticks(low, high, count = 4) {
  const raw = (high - low || 1) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

/* A closed table of a chart's numbers: its text alternative. Filled when it is first opened. */
function dataTable(build) {
  const body = el("div", { class: "scroll" });
  return el("details", { class: "data", ontoggle: () => {
    const [head, rows] = build();
    body.replaceChildren(el("table", {},
      el("thead", {}, el("tr", {}, head.map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell) => el("td", {}, String(cell))))))));
  } }, el("summary", {}, "Numbers"), body);
}

/* What labels mean, those of one meaning together, in the list with this id. */
function explain(id, labels) {
  const together = new Map();
  for (const label of labels.filter((name) => data.meanings[name])) {
    const meaning = data.meanings[label];
    together.set(meaning, [...(together.get(meaning) || []), label]);
  }
  byId(id).replaceChildren(...[...together].flatMap(([meaning, names]) => [el("dt", {}, names.join("; ")), el("dd", {}, meaning)]));
}

/* A series' mark: one shape per recipe, so that colour is never the only difference. */
function mark(shape, x, y, size, ink, hollow) {
  const shapes = [
    () => svg("circle", { cx: x, cy: y, r: size }),
    () => svg("rect", { x: x - size * 0.9, y: y - size * 0.9, width: size * 1.8, height: size * 1.8 }),
    () => svg("path", { d: `M${x} ${y - size * 1.25}l${size * 1.2} ${size * 2.1}h${-size * 2.4}z` }),
    () => svg("path", { d: `M${x} ${y - size * 1.35}l${size * 1.35} ${size * 1.35}l${-size * 1.35} ${size * 1.35}l${-size * 1.35} ${-size * 1.35}z` }),
    () => svg("path", { d: `M${x} ${y + size * 1.25}l${size * 1.2} ${-size * 2.1}h${-size * 2.4}z` }),
  ];
  const node = shapes[shape % shapes.length]();
  if (hollow) node.setAttribute("class", "hollow");
  return painted(node, hollow ? { stroke: ink } : { fill: ink });
}
const key = (i) => svg("svg", { viewBox: "0 0 26 10", "aria-hidden": "true" },
  painted(svg("line", { x1: 0, x2: 26, y1: 5, y2: 5, "stroke-width": 2, "stroke-dasharray": dash(i) }), { stroke: colour(i) }),
  mark(i, 13, 5, 3.4, colour(i)));

// ---- charts ----------------------------------------------------------------------------------

const PAD = { left: 40, right: 12, top: 10, bottom: 26 };
let printing = false;
for (const name of ["beforeprint", "afterprint"]) {
  addEventListener(name, () => { printing = name === "beforeprint"; redraws.forEach((redraw) => redraw()); });
}

/* A figure drawn at its true width, so that type keeps its size, and again whenever that width or
   the recipes shown change. draw(width) returns its children; paper: its width when printed. */
function drawnFigure(draw, paper = 330) {
  const figure = el("figure");
  let width = 0;
  const again = () => { if (width) figure.replaceChildren(...draw(printing ? paper : width).flat().filter(Boolean)); };
  new ResizeObserver(([entry]) => requestAnimationFrame(() => {
    const now = Math.round(entry.contentRect.width);
    if (now > 0 && now !== width) { width = now; again(); }
  })).observe(figure);
  redraws.push(again);
  return figure;
}

const caption = (title, sub, about) => el("figcaption", { title: about }, title, sub && el("span", {}, ` · ${sub}`));
const nothing = (title, sub) => [caption(title, sub), el("p", { class: "empty" }, "No recipe that is shown has this measure.")];

/* Walk a chart with pointer and keys. count: places; near(event): the place under the pointer;
   back and forth: the keys; visit(place, aloud): show it, null: none. */
function walk(chart, { count, near, back, forth, visit }) {
  let now = null;
  const go = (to, aloud) => { now = Math.max(0, Math.min(count - 1, to)); visit(now, aloud); };
  const leave = () => { now = null; visit(null, false); };
  chart.addEventListener("pointermove", (event) => go(near(event), false));
  chart.addEventListener("pointerdown", (event) => go(near(event), false));
  chart.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") leave(); });
  chart.addEventListener("blur", leave);
  chart.addEventListener("keydown", (event) => {
    const from = now === null ? (event.key === back ? count : -1) : now;
    const to = { [back]: from - 1, [forth]: from + 1, Home: 0, End: count - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    go(to, true);
  });
}

/* Lines over steps or, with `names`, over stages. series: [{recipe, who, x, y, low, high, n, count}];
   share: 0…1 shown as %; full: the axis ends at 1 though it is no share. The legend is the readout. */
function lineChart({ title, sub, about, series, share, full, names }) {
  return drawnFigure((width) => {
    const seen = series.filter((s) => !hidden.has(s.recipe));
    if (!seen.length) return nothing(title, sub);
    const height = 190;
    const xs = unique(seen.flatMap((s) => s.x)).sort((a, b) => a - b);
    const values = seen.flatMap((s) => [...s.low, ...s.high]).filter(isNumber);
    const bottom = share ? 0 : Math.min(0, ...values);
    const top = Math.max(...values, share || full ? 1 : bottom + 1e-9);
    const span = names ? [-0.4, names.length - 0.6] : [xs[0], Math.max(last(xs), xs[0] + 1)];
    const px = (x) => PAD.left + ((x - span[0]) / (span[1] - span[0])) * (width - PAD.left - PAD.right);
    const py = (y) => height - PAD.bottom - ((y - bottom) / (top - bottom)) * (height - PAD.top - PAD.bottom);
    const text = (x, y, content, anchor) => svg("text", { x, y, "text-anchor": anchor }, content);
    const spoken = seen.map((s) => `${s.who}: from ${show(s.y[0], share)} to ${show(last(s.y), share)}`);
    const chart = svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0, "aria-label": `${title}${share ? ", percent" : ""}. ${spoken.join("; ")}. Left and right arrow keys read the points.` });

    for (const tick of ticks(bottom, top)) {
      chart.append(svg("line", { class: tick === 0 ? "axis" : "rule", x1: PAD.left, x2: width - PAD.right, y1: py(tick), y2: py(tick) }),
        text(PAD.left - 7, py(tick) + 4, share ? String(Math.round(100 * tick)) : number(tick), "end"));
    }
    if (names) names.forEach((name, i) => chart.append(text(px(i), height - 8, name, "middle")));
    else ticks(...span, width / 80).forEach((tick) => chart.append(text(px(tick), height - 8, number(tick), "middle")));
    const guide = svg("line", { class: "guide", x1: 0, x2: 0, y1: PAD.top, y2: height - PAD.bottom });
    chart.append(guide);
    seen.forEach((s, j) => {
      const ink = colour(s.recipe);
      const shift = names ? (j - (seen.length - 1) / 2) * Math.min(7, 40 / seen.length) : 0;
      const at = (i, y) => `${(px(s.x[i]) + shift).toFixed(1)},${py(y).toFixed(1)}`;
      if (names) {
        s.x.forEach((x, i) => chart.append(painted(svg("line", { x1: px(x) + shift, x2: px(x) + shift, y1: py(s.low[i]), y2: py(s.high[i]), "stroke-width": 2 }), { stroke: ink, opacity: 0.5 })));
      } else if (s.n > 1) {
        const edge = [...s.x.map((_, i) => at(i, s.high[i])), ...s.x.map((_, i) => at(i, s.low[i])).reverse()];
        chart.append(painted(svg("polygon", { points: edge.join(" ") }), { fill: ink, opacity: Math.min(0.16, 0.5 / seen.length) }));
      }
      chart.append(painted(svg("polyline", { class: "path", "stroke-dasharray": dash(s.recipe), points: s.x.map((_, i) => at(i, s.y[i])).join(" ") }), { stroke: ink }));
      (names ? s.x.map((_, i) => i) : [s.x.length - 1]).forEach((i) => chart.append(mark(s.recipe, px(s.x[i]) + shift, py(s.y[i]), 3.6, ink)));
    });

    const place = el("p", { class: "at" });
    const outputs = seen.map(() => el("span", { class: "num" }));
    const legend = el("ul", { class: "legend" }, seen.map((s, i) => el("li", {}, key(s.recipe), el("span", { class: "who" }, s.who), outputs[i])));
    const gap = xs.length > 1 ? xs[1] - xs[0] : 1;
    /* The point of a series at x; none where it has no point nearby. */
    const pointAt = (s, x) => {
      const i = s.x.reduce((best, v, k) => (Math.abs(v - x) < Math.abs(s.x[best] - x) ? k : best), 0);
      return Math.abs(s.x[i] - x) <= (names ? 0 : gap) ? i : -1;
    };
    const called = (x) => (names ? (x === 0 ? names[0] : `after ${names[x]}`) : `step ${number(x)}`);
    const visit = (now, aloud) => {
      const where = now === null ? (names ? "after the last stage" : "at the last step") : called(xs[now]);
      place.textContent = share ? `%, ${where}` : where;
      guide.style.visibility = now === null ? "hidden" : "visible";
      if (now !== null) guide.style.transform = `translateX(${px(xs[now])}px)`;
      const points = seen.map((s) => (now === null ? s.x.length - 1 : pointAt(s, xs[now])));
      seen.forEach((s, k) => {
        const i = points[k];
        const range = i >= 0 && (names || s.n > 1) && ` [${end(s.low[i], share)}–${end(s.high[i], share)}]`;
        outputs[k].replaceChildren(i >= 0 ? show(s.y[i], share) : "–", el("small", {}, range || ""));
      });
      if (aloud) announce(`${where}: ${seen.map((s, k) => `${s.who} ${points[k] >= 0 ? show(s.y[points[k]], share) : "none"}`).join(", ")}`);
    };
    walk(chart, { count: xs.length, back: "ArrowLeft", forth: "ArrowRight", visit, near: (event) => {
      const box = chart.getBoundingClientRect(), x = ((event.clientX - box.left) / box.width) * width;
      return xs.reduce((best, v, i) => (Math.abs(px(v) - x) < Math.abs(px(xs[best]) - x) ? i : best), 0);
    } });
    visit(null, false);
    const table = () => [[names ? "after" : "step", ...seen.flatMap((s) => [s.who, "low", "high", "n"])],
      xs.map((x) => [names ? names[x] : number(x), ...seen.flatMap((s) => {
        const i = s.x.indexOf(x);
        return i < 0 ? ["–", "–", "–", "–"] : [show(s.y[i], share), show(s.low[i], share), show(s.high[i], share), s.count ? s.count[i] : plural(s.n, "seed")];
      })])];
    return [caption(title, sub, about), chart, place, legend, dataTable(table)];
  });
}

/* Marks with intervals, a row per recipe: [{recipe, label, note, said, marks: [{value, low, high,
   seeds, shape, ink, hollow}]}]. whole: the axis is 0…1; resting: what is said
   while no row is pointed at. */
function dotChart({ title, sub, about, rows, share, reference, whole, legend, resting }) {
  return drawnFigure((width) => {
    const seen = rows.filter((row) => !hidden.has(row.recipe));
    if (!seen.length) return nothing(title, sub);
    const each = 34 + 8 * Math.max(...seen.map((row) => row.marks.length)), height = seen.length * each + 26;
    const values = rows.flatMap((row) => row.marks.flatMap((m) => [m.value, m.low, m.high, ...(m.seeds || [])])).filter(isNumber);
    const room = 0.06 * (Math.max(...values) - Math.min(...values) || 0.1);
    const low = whole ? 0 : Math.max(share ? 0 : -Infinity, Math.min(...values) - room);
    const high = whole ? 1 : Math.min(share ? 1 : Infinity, Math.max(...values) + room);
    const px = (x) => 8 + ((x - low) / (high - low)) * (width - 16);
    const chart = svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0, "aria-label": `${title}${share ? ", percent" : ""}. ${seen.map((row) => `${row.label}: ${row.said}`).join(". ")}. Up and down arrow keys read the rows.` });
    const backs = seen.map((_, i) => svg("rect", { class: "row", x: 0, y: i * each, width, height: each, rx: 4 }));
    chart.append(...backs);
    for (const tick of ticks(low, high, width / 90)) {
      chart.append(svg("line", { class: "rule", x1: px(tick), x2: px(tick), y1: 0, y2: height - 20 }),
        svg("text", { x: px(tick), y: height - 5, "text-anchor": "middle" }, share ? String(Math.round(1000 * tick) / 10) : number(tick)));
    }
    if (isNumber(reference)) chart.append(svg("line", { class: "guide on", x1: px(reference), x2: px(reference), y1: 0, y2: height - 20, "stroke-dasharray": whole ? "1 4" : "5 3" }));
    const fits = Math.floor((width - 24 - 6.6 * Math.max(...seen.map((row) => row.note.length))) / 6.6);
    seen.forEach((row, i) => {
      chart.append(svg("text", { class: "name", x: 8, y: i * each + 15 }, short(row.label, Math.max(fits, 10))),
        svg("text", { class: "note", x: width - 8, y: i * each + 15, "text-anchor": "end" }, row.note));
      row.marks.forEach((m, j) => {
        if (!isNumber(m.value)) return;
        const y = i * each + (each + 18) / 2 + (j - (row.marks.length - 1) / 2) * 8;
        if (isNumber(m.low)) chart.append(painted(svg("line", { x1: px(m.low), x2: px(m.high), y1: y, y2: y, "stroke-width": 2 }), { stroke: m.ink, opacity: 0.6 }));
        (m.seeds || []).forEach((v) => chart.append(painted(svg("line", { x1: px(v), x2: px(v), y1: y - 5, y2: y + 5, "stroke-width": 1 }), { stroke: m.ink })));
        chart.append(mark(m.shape, px(m.value), y, 4.4, m.ink, m.hollow));
      });
    });
    const place = el("p", { class: "at" }, resting);
    walk(chart, { count: seen.length, back: "ArrowUp", forth: "ArrowDown", visit: (now, aloud) => {
      backs.forEach((back, i) => back.classList.toggle("on", i === now));
      place.textContent = now === null ? resting : `${seen[now].label}: ${seen[now].said}`;
      if (aloud) announce(place.textContent);
    }, near: (event) => {
      const box = chart.getBoundingClientRect();
      return Math.floor((((event.clientY - box.top) / box.height) * height) / each);
    } });
    return [caption(title, sub, about), legend, chart, place, dataTable(() => [["", share ? "%" : ""], seen.map((row) => [row.label, row.said])])];
  }, whole ? 680 : 330);
}
const swatches = (items) => el("ul", { class: "legend inline" }, items.map(([name, ...nodes]) => el("li", {}, svg("svg", { viewBox: "0 0 26 10", "aria-hidden": "true" }, nodes), name)));

// ---- header ----------------------------------------------------------------------------------

const seeds = unique(recipes.flatMap((r) => r.seeds));
const one = recipes.length === 1;
const many = seeds.length > 1;

function header() {
  const of = (pick) => unique(data.runs.map(pick).filter(Boolean).map(String)).join(", ") || "–";
  const total = data.runs.reduce((sum, run) => sum + Object.values(run.seconds).reduce((a, b) => a + b, 0), 0);
  const steps = recipes.map((r) => r.steps);
  const range = (list) => unique([Math.min(...list), Math.max(...list)]).map((v) => Math.round(v).toLocaleString("en")).join("–");
  byId("headline").textContent = one ? recipes[0].label || "base model" : `${recipes.length} recipes compared`;
  byId("lede").textContent = one
    ? `What one recipe of training did, in ${plural(data.runs.length, "run")}: how well the agent acts and judges after each stage, how it learned, what it cost, and what it wrote.`
    : `${recipes.length > 4 ? "" : `${recipes.map((r) => r.label).join(" · ")}. `}How well each agent acts and judges in the end, how it learned, what it cost, and what it wrote.`;
  const facts = {
    Folder: data.folder,
    Model: of((run) => run.model),
    World: of((run) => run.world),
    Seeds: seeds.join(", "),
    "Optimizer steps": `${range(steps)}${one ? "" : " a recipe"}`,
    "Computing time": `${duration(total)}${data.runs.length > 1 ? `, ${data.runs.length} runs` : ""}`,
    Backend: of((run) => run.environment.backend),
  };
  byId("facts").append(...Object.entries(facts).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
  byId("footer").textContent = `Written by miniact ${data.version}. This file is complete in itself: it loads nothing and sends nothing.`;
  if (data.notes.length) {
    byId("notes").hidden = false;
    byId("notes").append(`${plural(data.notes.length, "file")} could not be read in full:`, el("ul", {}, data.notes.map((note) => el("li", {}, note))));
  }
  if (!one) {
    byId("recipes").hidden = false;
    byId("recipes").append(...recipes.map((r, i) => el("label", { class: "check" },
      el("input", { type: "checkbox", checked: true, "data-recipe": i, onchange: (event) => {
        if (event.target.checked) hidden.delete(i); else hidden.add(i);
        redraws.forEach((redraw) => redraw());
      } }), legendKey(i), r.label)));
  }
}
const legendKey = (i) => { const node = key(i); node.setAttribute("width", 26); node.setAttribute("height", 10); return node; };

function theme() {
  const root = document.documentElement, button = byId("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try { chosen = localStorage.getItem("miniact-theme"); } catch { /* not allowed for this file */ }
  const dark = () => (chosen ? chosen === "dark" : system.matches);
  const apply = () => {
    if (chosen === "dark" || chosen === "light") root.dataset.theme = chosen;
    button.textContent = dark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to ${dark() ? "light" : "dark"} colours`);
  };
  button.addEventListener("click", () => {
    chosen = dark() ? "light" : "dark";
    try { localStorage.setItem("miniact-theme", chosen); } catch { /* this visit only */ }
    apply();
  });
  system.addEventListener("change", apply);
  apply();
}

// ---- results ---------------------------------------------------------------------------------

const LOWER_IS_BETTER = /stuck|fail|unpars|repeat/;
const lastOf = (r) => last(r.evaluations);

/* Rows of the table: recipes as compared, or the stages of the one recipe. */
function resultRows() {
  if (data.compared) {
    return recipes.map((r, i) => ({ recipe: i, label: r.label, baseline: r.name === data.baseline, steps: r.steps, cells: r.compared, difference: r.difference }));
  }
  return recipes[0].evaluations.map((e) => ({ recipe: 0, label: after(e.stage), cells: e.rates, difference: {} }));
}
const columns = data.metrics.concat(unique(recipes.flatMap((r) => Object.keys(r.compared)))
  .filter((label) => !data.metrics.some((m) => m.label === label)).map((label) => ({ label, main: true })));
const isShare = (label) => !recipes.some((r) => r.compared[label] && Math.abs(r.compared[label].mean) > 1);

function countOf(cell) {
  if (!cell) return "";
  return cell.counts ? unique(cell.counts).join(", ") : isNumber(cell.n) ? plural(cell.n, "seed") : "";
}

function resultsTable() {
  const rows = resultRows();
  let sorted = null, upward = false;
  const draw = () => {
    const shown = columns.filter((c) => (c.main || byId("all-metrics").checked) && rows.some((row) => row.cells[c.label]));
    const body = rows.filter((row) => !hidden.has(row.recipe));
    if (sorted) {
      const value = (row) => (row.cells[sorted] ? row.cells[sorted].mean : -Infinity);
      body.sort((a, b) => (upward ? 1 : -1) * (value(a) - value(b)));
    }
    const counts = shown.map((c) => unique(rows.map((row) => countOf(row.cells[c.label])).filter(Boolean)));
    const sort = (label) => { upward = sorted === label && !upward; sorted = label; draw(); byId("results-table").querySelector("th[aria-sort] button").focus(); };
    byId("results-table").replaceChildren(el("table", {},
      el("caption", { class: "unseen" }, "Results, held out"),
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, data.compared ? "recipe" : "stage"),
        shown.map((c, i) => el("th", { scope: "col", title: data.meanings[c.label], "aria-sort": sorted === c.label && (upward ? "ascending" : "descending") },
          el("button", { type: "button", onclick: () => sort(c.label) }, c.label, isShare(c.label) ? ", %" : ""),
          counts[i].length === 1 && el("span", { class: "count" }, data.compared ? counts[i][0] : `n = ${counts[i][0]}`))))),
      el("tbody", {}, body.map((row) => el("tr", {}, el("th", { scope: "row" }, row.label, row.baseline && el("span", { class: "baseline" }, "baseline")),
        shown.map((c, i) => resultCell(row.cells[c.label], row.difference[c.label], c.label, counts[i].length > 1)))))));
    explain("words-of-table", shown.map((c) => c.label));
  };
  byId("all-metrics").addEventListener("change", draw);
  byId("csv").addEventListener("click", () => {
    const cells = (text) => (/[",\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text);
    const lines = rows.flatMap((row) => columns.filter((c) => row.cells[c.label]).map((c) => {
      const { mean, low, high } = row.cells[c.label], change = row.difference[c.label] || {};
      return [row.label, c.label, mean, low, high, change.mean, change.low, change.high].map((v) => cells(v == null ? "" : String(v))).join(",");
    }));
    const text = [`${data.compared ? "recipe" : "stage"},measure,value,low,high,difference,difference_low,difference_high`, ...lines].join("\n");
    const link = el("a", { href: URL.createObjectURL(new Blob([`${text}\n`], { type: "text/csv" })), download: `${data.folder}.csv` });
    link.click();
  });
  redraws.push(draw);
  draw();
}

function resultCell(cell, difference, label, withCount) {
  if (!cell || !isNumber(cell.mean)) return el("td", { class: "soft", "data-label": label }, "–");
  const share = isShare(label);
  const each = (cell.seeds || []).map((v) => show(v, share)).join(" / ");
  let delta = null;
  if (difference && isNumber(difference.mean)) {
    const clear = difference.low > 0 ? 1 : difference.high < 0 ? -1 : 0;
    const better = clear * (LOWER_IS_BETTER.test(label) ? -1 : 1);
    const signed = (v, plus = "") => {
      const size = show(Math.abs(v), share);
      return (/[1-9]/.test(size) ? (v < 0 ? "−" : plus) : "") + size;
    };
    const signedEnd = (v) => (isNumber(v) ? `${v < 0 && /[1-9]/.test(end(-v, share)) ? "−" : ""}${end(Math.abs(v), share)}` : "–");
    delta = el("span", { class: `delta${better > 0 ? " up" : better < 0 ? " down" : ""}` },
      `${clear > 0 ? "▲ " : clear < 0 ? "▼ " : ""}${signed(difference.mean, "+")} [${signedEnd(difference.low)}, ${signedEnd(difference.high)}]`);
  }
  return el("td", { "data-label": isShare(label) ? `${label}, %` : label, title: [each && cell.seeds.length > 1 && `seeds: ${each}`, isNumber(cell.std) && `std ${show(cell.std, share)}`].filter(Boolean).join("; ") },
    el("span", { class: "value" }, show(cell.mean, share)),
    isNumber(cell.low) && el("span", { class: "interval" }, `${end(cell.low, share)}–${end(cell.high, share)}`),
    delta, withCount && el("span", { class: "count" }, `n = ${countOf(cell)}`));
}

/* Charts into a grid of their own, so that what belongs together stands in one row. */
function addCharts(id, charts) {
  const found = charts.filter(Boolean);
  if (found.length) byId(id).append(el("div", { class: `grid${found.length % 3 === 1 ? " even" : ""}` }, found));
}

function results() {
  byId("results-about").textContent = data.compared
    ? `Held-out measures after the last stage of each recipe, in percent: mean over ${plural(seeds.length, "seed")}, below it its interval, and below that the paired difference from the baseline with its interval. ▲ and ▼ mark differences whose interval leaves out zero. Press a heading to sort; pointing at a cell shows the single seeds.`
    : "Held-out measures after each stage, in percent, with 95 % Wilson intervals. One seed: read directions, not single points.";
  byId("stages-about").textContent = many
    ? "Marks are means over seeds, lines reach from the lowest to the highest seed."
    : "Lines are 95 % Wilson intervals.";
  resultsTable();
  if (data.compared) {
    addCharts("forest", columns.filter((c) => c.main).map((c) => {
      const share = isShare(c.label), base = recipes.find((r) => r.name === data.baseline);
      const rows = recipes.map((r, i) => [r.compared[c.label], r, i]).filter(([cell]) => cell && isNumber(cell.mean)).map(([cell, r, i]) => ({
        recipe: i, label: r.label, note: show(cell.mean, share),
        said: `${show(cell.mean, share)} [${end(cell.low, share)}–${end(cell.high, share)}], ${countOf(cell)}: ${(cell.seeds || []).map((v) => show(v, share)).join(" / ")}`,
        marks: [{ value: cell.mean, low: cell.low, high: cell.high, seeds: cell.seeds, shape: i, ink: colour(i) }],
      }));
      return rows.length ? dotChart({ title: c.label, sub: share ? "%" : "", about: data.meanings[c.label], rows, share, reference: base && base.compared[c.label] && base.compared[c.label].mean, resting: unique(rows.map((row) => countOf(recipes[row.recipe].compared[c.label]))).join(", ") }) : null;
    }));
  } else byId("forest-block").remove();
  const longest = recipes.reduce((a, b) => (b.evaluations.length > a.evaluations.length ? b : a)).evaluations;
  const names = one ? longest.map((e) => kindOf(e.stage)) : longest.map((_, i) => (i ? `stage ${i}` : "base"));
  addCharts("stages", data.metrics.filter((m) => m.main || m.label === "right, given valid" || m.label === "implicit").map((m) => {
    const series = recipes.map((r, i) => {
      const points = r.evaluations.map((e, x) => [x, e.rates[m.label]]).filter(([, rate]) => rate);
      return { recipe: i, who: r.label || "base model", n: r.seeds.length, x: points.map(([x]) => x), y: points.map(([, p]) => p.mean), low: points.map(([, p]) => p.low), high: points.map(([, p]) => p.high), count: points.map(([, p]) => p.counts.join(" + ")) };
    }).filter((s) => s.x.length);
    return series.length ? lineChart({ title: m.label, sub: "%, held out", about: data.meanings[m.label], series, share: true, names }) : null;
  }));
  if (!byId("stages").children.length) byId("stages").append(el("p", { class: "empty" }, "Nothing was evaluated."));
}

// ---- curves ----------------------------------------------------------------------------------

/* metric → where it is drawn, its name, whether it is a share. What is not listed goes to "other". */
const MEASURES = {
  loss: ["learning", "loss"], correct: ["learning", "right answers", true], accuracy: ["learning", "accuracy", true],
  valid: ["learning", "answers in the asked form", true],
  reward: ["reward", "mean reward"], zero_variance: ["reward", "groups with zero variance", true],
  all_correct: ["reward", "groups all right", true], all_wrong: ["reward", "groups all wrong", true],
  reply_tokens: ["length", "tokens in a reply"], cut_off: ["length", "replies cut off", true],
};
const SHARES = new Set(["clip_fraction", "live_groups"]);

function curves() {
  const panels = new Map();
  recipes.forEach((r, i) => r.curves.forEach((c) => {
    const id = `${kindOf(c.stage)}/${c.metric}`;
    if (!panels.has(id)) panels.set(id, { kind: kindOf(c.stage), metric: c.metric, series: [] });
    const again = r.curves.some((o) => o.metric === c.metric && o.stage !== c.stage && kindOf(o.stage) === kindOf(c.stage));
    const who = one ? stageName(c.stage) : again ? `${r.label} (stage ${parseInt(c.stage, 10)})` : r.label;
    panels.get(id).series.push({ recipe: i, who, x: c.x, y: c.y, low: c.low, high: c.high, n: c.n });
  }));
  const rewarded = new Set([...panels.values()].filter((p) => p.metric === "reward").map((p) => p.kind));
  const measures = [...Object.keys(MEASURES), ...[...panels.values()].map((p) => p.metric).filter((m) => !(m in MEASURES))];
  const later = [];
  for (const metric of unique(measures)) {
    const [place, name, share] = MEASURES[metric] || ["more", metric.replace(/_/g, " "), SHARES.has(metric)];
    const chart = (p) => lineChart({ title: `${p.kind}: ${name}`, sub: share ? "%" : "", about: data.meanings[`${p.kind}/${p.metric}`] || data.meanings[`all/${p.metric}`], series: p.series, share, full: metric === "reward" });
    const found = [...panels.values()].filter((p) => p.metric === metric);
    const dull = (p) => place === "more" || (metric === "loss" && rewarded.has(p.kind)); // GRPO's is near 0 by construction
    if (found.some(dull)) later.push(() => addCharts("more-charts", found.filter(dull).map(chart)));
    addCharts(`${place}-charts`, found.filter((p) => !dull(p)).map(chart));
  }
  const every = (recipes[0].curves.find((c) => c.x.length > 1) || { x: [0, 1] }).x;
  byId("learning-about").textContent = `${every[1] - every[0] > 1 ? `Each point is the mean over ${every[1] - every[0]} steps. ` : ""}${many ? "Lines are means over seeds, bands reach from the lowest to the highest seed. " : "One seed, so there is no band. "}Point at a chart, or use the arrow keys in it, to read its numbers.`;
  for (const [id, text] of [["learning-charts", "No training steps were recorded."], ["reward-charts", "No stage with rewards was run."], ["length-charts", "No stage that samples replies was run."]]) {
    if (!byId(id).children.length) byId(id).append(el("p", { class: "empty" }, text));
  }
  if (!later.length) byId("more").hidden = true;
  byId("more").addEventListener("toggle", () => later.splice(0).forEach((draw) => draw()));
}

function position() {
  const places = unique(recipes.flatMap((r) => r.evaluations.flatMap((e) => Object.keys(e.positions))));
  const rows = [];
  const add = (recipe, label, positions) => {
    const marks = places.map((place, i) => {
      const rate = positions[place];
      const said = rate ? `${place} ${percent(rate.mean)} [${percent(rate.low, 0)}–${percent(rate.high, 0)}], n = ${rate.counts.join(" + ")}` : `${place} –`;
      return { ...rate, value: rate && rate.mean, seeds: many && rate ? rate.seeds : [], shape: i, ink: colour(i), hollow: i % 2 === 1, said };
    });
    if (marks.some((m) => isNumber(m.value))) rows.push({ recipe, label, marks, note: marks.map((m) => percent(m.value)).join(" | "), said: marks.map((m) => m.said).join("; ") });
  };
  recipes.forEach((r, i) => r.evaluations.forEach((e, k) => {
    if (one || k === r.evaluations.length - 1) add(i, one ? stageName(e.stage) : r.label, e.positions);
    else if (i === 0 && k === 0) add(-1, "base model", e.positions);
  }));
  if (!rows.length) return byId("position").append(el("p", { class: "empty" }, "Judgement was not measured."));
  const counts = unique(recipes.flatMap((r) => r.evaluations.flatMap((e) => Object.values(e.positions))).filter(Boolean).map((rate) => rate.counts.join(" + ")));
  byId("position").append(dotChart({
    title: "Judged right", sub: `%, ${many ? "mean and range over seeds" : "95 % Wilson intervals"}${one ? "" : ", after the last stage"}`,
    rows, share: true, reference: 1 / places.length, whole: true, resting: `n = ${counts.join(", ")} answers a mark`,
    legend: swatches(places.map((place, i) => [`right answer ${place}`, mark(i, 13, 5, 3.6, colour(i), i % 2 === 1)])),
  }));
}

// ---- in words, and be the critic -------------------------------------------------------------

function verdict() {
  byId("verdict").append(...data.verdict.map((sentence) => el("p", {}, sentence)));
  const said = data.verdict.join(" ");
  explain("verdict-words", Object.keys(data.meanings).filter((label) => !label.includes("/") && said.includes(`${label} `)));
}

/* Held-out questions, one at a time: choose, then see what the model chose after each stage. */
function quiz() {
  if (!data.quiz.length) {
    byId("quiz").remove();
    document.querySelector("nav a[href='#quiz']").remove();
    return;
  }
  const stages = unique(data.quiz.flatMap((q) => q.answers.map((a) => a.stage)));
  const right = Object.fromEntries(["you", ...stages].map((who) => [who, 0]));
  let at = 0, answered = 0;
  const score = el("p", { class: "meta", role: "status", id: "quiz-score" });
  const card = el("div", { class: "quiz", id: "quiz-card" });
  const tell = () => {
    score.textContent = answered
      ? `Right so far: you ${right.you} of ${answered}; the model: ${stages.map((s) => `${after(s)} ${right[s]}`).join(", ")}.`
      : `${plural(data.quiz.length, "question")}, drawn evenly from those that no stage was trained on.`;
  };
  const draw = () => {
    const q = data.quiz[at];
    const buttons = q.actions.map((text, i) => el("button", { type: "button", class: "option", onclick: () => answer(i) }, el("b", {}, `Action ${i + 1}`), el("span", { class: "foreign" }, text)));
    const told = el("div", { class: "after" });
    const answer = (mine) => {
      answered += 1;
      right.you += mine === q.right;
      q.answers.forEach((a) => { right[a.stage] += a.choice === q.right; });
      buttons.forEach((button, i) => {
        button.disabled = true;
        if (i === q.right) button.classList.add("right");
        button.firstChild.append(i === q.right ? " ✓ the expert’s" : "", i === mine ? " · your choice" : "");
      });
      told.append(el("p", {}, tag(mine === q.right ? "✓ right" : "✗ wrong", mine === q.right ? "good" : "bad"), mine === q.right ? "You chose as the expert did." : "The expert took the other action."),
        el("ol", { class: "answers" }, q.answers.map((a) => el("li", {},
          el("div", { class: "score" }, el("b", { class: a.choice === q.right ? "good" : "bad" }, after(a.stage)),
            el("div", {}, a.choice == null ? "✗ no valid choice" : `${a.choice === q.right ? "✓" : "✗"} chose ${a.choice + 1}`)),
          el("div", { class: "foreign" }, replyNodes(a.reply))))),
        at + 1 < data.quiz.length
          ? el("button", { type: "button", id: "quiz-next", onclick: () => { at += 1; draw(); card.querySelector("button.option").focus(); } }, "Next question")
          : el("p", {}, "That was the last one."));
      tell();
      (told.querySelector("#quiz-next") || buttons[0]).focus();
    };
    card.replaceChildren(el("h3", {}, `${at + 1} of ${data.quiz.length}: `, el("span", {}, q.task)),
      q.history.length > 0 && el("details", { class: "history" }, el("summary", {}, plural(q.history.length, "earlier turn")),
        el("div", { class: "box prompt foreign", tabindex: 0 }, q.history.map(([seen, done]) => [`${seen}\n`, el("span", { class: "answer" }, `> ${done}\n`)]))) || "",
      el("div", { class: "box foreign" }, q.observation), el("h4", {}, "Which action is better here?"),
      el("div", { class: "sides" }, buttons), told);
  };
  byId("quiz-place").append(score, card);
  tell();
  draw();
}

// ---- cost ------------------------------------------------------------------------------------

function cost() {
  const parts = unique(recipes.flatMap((r) => Object.keys(r.seconds)));
  const sum = (r) => Object.values(r.seconds).reduce((a, b) => a + b, 0);
  const shades = (i) => ({ fill: colour(i), opacity: i >= 6 ? 0.55 : 1 });
  byId("cost-about").textContent = `Seconds of computing per part, parts shared with other recipes included${many ? ", mean over seeds" : ""}. Steps are optimizer steps; tokens are those that passed the model in training: prompts once, answers each, in sampling and in training. Times depend on what else the machine did.`;
  if (parts.length) byId("cost-chart").append(drawnFigure((width) => {
    const seen = recipes.filter((_, i) => !hidden.has(i));
    const most = Math.max(...recipes.map(sum), 1e-9), each = 44;
    const chart = svg("svg", { class: "chart", viewBox: `0 0 ${width} ${seen.length * each + 4}`, role: "img",
      "aria-label": `Time by part. ${seen.map((r) => `${r.label}: ${Object.entries(r.seconds).map(([p, s]) => `${p} ${duration(s)}`).join(", ")}`).join(". ")}` });
    seen.forEach((r, row) => {
      chart.append(svg("text", { class: "name", x: 0, y: row * each + 13 }, r.label || "base model"),
        svg("text", { class: "note", x: width, y: row * each + 13, "text-anchor": "end" }, duration(sum(r))));
      let x = 0;
      parts.forEach((part, i) => {
        const long = ((r.seconds[part] || 0) / most) * width;
        if (long > 0) chart.append(painted(svg("rect", { x, y: row * each + 20, width: Math.max(long - 1, 0.5), height: 14 }, svg("title", {}, `${stageName(part)}: ${duration(r.seconds[part])}`)), shades(i)));
        x += long;
      });
    });
    return [caption("Time by part"), swatches(parts.map((part, i) => [stageName(part), painted(svg("rect", { x: 6, width: 14, height: 10 }), shades(i))])), chart];
  }, 680));
  byId("cost-table").append(el("table", {}, el("caption", { class: "unseen" }, "Cost"),
    el("thead", {}, el("tr", {}, ["recipe", "steps", "tokens", ...parts.map((p) => `${stageName(p)}, s`), "all, s"].map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, recipes.map((r) => el("tr", {}, el("th", { scope: "row" }, r.label || "base model"),
      [r.steps, r.tokens].map((v) => el("td", {}, isNumber(v) ? Math.round(v).toLocaleString("en") : "–")),
      parts.map((p) => el("td", {}, p in r.seconds ? r.seconds[p].toFixed(1) : "–")), el("td", {}, sum(r).toFixed(1)))))));
  byId("runs").append(...machines().map(([names, facts]) => {
    const shown = names.length > 3 ? `${names.slice(0, 2).join("; ")} and ${names.length - 2} more` : names.join("; ");
    return el("details", { class: "run", open: data.runs.length === 1 },
      el("summary", {}, names.length === data.runs.length && names.length > 3 ? `all ${names.length} runs` : shown),
      el("dl", {}, Object.entries(facts).filter(([, v]) => v).map(([name, value]) => [el("dt", {}, name), el("dd", { class: name === "Command" ? "mono" : null }, String(value))])));
  }));
}

/* Runs that were made alike, by what is known of how: [[names of runs, facts], …]. */
function machines() {
  const alike = new Map();
  for (const run of data.runs) {
    const e = run.environment;
    const facts = {
      Command: Array.isArray(e.command) ? `miniact ${e.command.join(" ")}` : null,
      Machine: [e.machine, e.platform, isNumber(e.cpus) && plural(e.cpus, "CPU")].filter(Boolean).join(", "),
      Versions: [e.python && `python ${e.python}`, ...Object.entries(e.versions || {}).map(([n, v]) => `${n} ${v}`)].filter(Boolean).join(", "),
      Model: run.model, World: run.world, Backend: e.backend,
    };
    const key = JSON.stringify(facts);
    if (!alike.has(key)) alike.set(key, [[], facts]);
    alike.get(key)[0].push(`${recipes[run.recipe].label || "base model"}, seed ${run.seed}`);
  }
  return [...alike.values()];
}

// ---- samples ---------------------------------------------------------------------------------

const PAGE = 200; // entries of a list that are drawn at once
let words = []; // what the reader searches for, lower case

/* Foreign text, with the searched words marked. */
function foreign(text, properties) {
  const node = el("span", properties);
  if (!words.length) return fill(node, {}, [text]);
  const pattern = new RegExp(`(${words.map((w) => w.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|")})`, "gi");
  return fill(node, {}, text.split(pattern).map((part, i) => (i % 2 ? el("mark", {}, part) : part)));
}
const tag = (text, tone) => el("span", { class: `tag ${tone}` }, text);
const runName = (i) => {
  const run = data.runs[i];
  return [recipes[run.recipe].label || "base model", many ? `seed ${run.seed}` : ""].filter(Boolean).join(", ");
};
const short = (text, n = 90) => (text.length > n ? `${text.slice(0, n)}…` : text);

/* A reply: its reasoning in a soft voice, what it answers in a firm one. */
function replyNodes(reply) {
  if (!reply.trim()) return el("span", { class: "soft" }, "(empty reply)");
  const found = /^([\s\S]*?)(<(choice|action)>[\s\S]*<\/\3>)(\s*)$/.exec(reply);
  return found ? [found[1] && foreign(found[1], { class: "reasoning" }), foreign(found[2], { class: "answer" })] : foreign(reply, { class: "answer" });
}

function answerRow(answer, item, withChoice) {
  const strong = Math.min(1, Math.abs(answer.advantage || 0) / 2.5) * 50;
  const bar = svg("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
    painted(svg("rect", { x: 0, y: 3.5, width: 100, height: 1 }), { fill: "var(--line)" }),
    painted(svg("rect", { x: answer.advantage < 0 ? 50 - strong : 50, y: 0, width: strong, height: 8 }), { fill: answer.advantage < 0 ? "var(--bad)" : "var(--good)" }));
  const chose = answer.choice == null ? "no valid choice" : `chose ${answer.choice + 1}`;
  const right = item.right != null && answer.choice != null && (answer.choice === item.right ? "✓ right" : "✗ wrong");
  const score = withChoice
    ? [el("b", { class: answer.choice === item.right && answer.choice != null ? "good" : "bad" }, chose), right && el("div", {}, right)]
    : [`reward ${number(answer.reward)}`, bar, `advantage ${answer.advantage > 0 ? "+" : ""}${number(answer.advantage)}`];
  return el("li", {}, el("div", { class: "score" }, score,
    el("div", { class: "soft" }, [!withChoice && !answer.valid && "✗ not in the asked form", answer.stop === "length" && "cut off"].filter(Boolean).join(", "))),
  el("div", { class: "foreign" }, replyNodes(answer.reply)));
}

const equalRewards = (group) => group.answers.every((a) => a.reward === group.answers[0].reward);
const promptBox = (text, open) => el("details", { class: "history", open }, el("summary", {}, "Prompt as the model saw it"), el("div", { class: "box prompt foreign", tabindex: 0 }, foreign(text)));

function twoActions(first, second, names, right) {
  return el("div", { class: "sides" }, [first, second].map((text, i) => el("div", { class: `choice${right === i ? " right" : ""}` },
    el("b", {}, `${names[i]}${right === i ? " ✓" : ""}`), foreign(text, { class: "foreign" }))));
}

function groupDetail(g) {
  return [el("h3", {}, `${stageName(g.stage)}, step ${g.step}`),
    el("p", { class: "meta" }, equalRewards(g) ? tag("zero variance", "soft") : tag("has a gradient", "good"), `${runName(g.run)}; ${plural(g.answers.length, "answer")}`),
    g.expert && el("p", {}, "The expert’s action: ", foreign(g.expert, { class: "did foreign" })),
    promptBox(g.prompt, true), el("h4", {}, "Answers, their rewards and advantages"),
    el("ol", { class: "answers" }, g.answers.map((a) => answerRow(a, g, false)))];
}

function askedDetail(g) {
  const good = g.answers.filter((a) => a.choice != null && a.choice === g.right).length;
  return [el("h3", {}, `Asked in ${stageName(g.stage)}, step ${g.step}`),
    el("p", { class: "meta" }, `${runName(g.run)}; ${good} of ${g.answers.length} answers chose right${g.right == null ? " (which action was right is not known: no answer was valid)" : ""}`),
    el("div", { class: "sides" }, g.actions.map((text, i) => el("div", { class: `choice${g.right === i ? " right" : ""}` }, el("b", {}, `Action ${i + 1}${g.right === i ? " ✓ the expert’s" : ""}`), foreign(text, { class: "foreign" })))),
    promptBox(g.prompt, false), el("h4", {}, "Reasoning and choices"),
    el("ol", { class: "answers" }, g.answers.map((a) => answerRow(a, g, true)))];
}

function pairDetail(p) {
  return [el("h3", {}, foreign(p.task)), el("p", { class: "meta" }, `${p.id} · split ${p.split}${p.from ? ` · alternative sampled from ${p.from}` : ""}`),
    p.history.length + p.earlier > 0 && el("details", { class: "history" }, el("summary", {}, `${plural(p.history.length + p.earlier, "earlier turn")}`),
      el("div", { class: "box prompt foreign", tabindex: 0 }, p.earlier ? `[${p.earlier} turns before these are not stored]\n` : "", p.history.map(([seen, done]) => [foreign(`${seen}\n`), foreign(`> ${done}\n`, { class: "answer" })]))),
    el("h4", {}, "What the agent sees"), el("div", { class: "box foreign" }, foreign(p.observation)),
    twoActions(p.expert, p.alternative, ["Expert", "Alternative"], 0),
    p.admissible.length > 0 && el("details", { class: "history" }, el("summary", {}, plural(p.admissible.length, "admissible action")), el("div", { class: "box foreign" }, foreign(p.admissible.join("\n"))))];
}

/* Moves: [observation, reply where it says more than the action, action, applied, times it failed running]. */
function movesOf(episode, fork) {
  const stuck = episode.moves.map(() => false);
  episode.moves.forEach((move, i) => { if (move[4] >= 3) for (let k = 0; k < move[4]; k++) stuck[i - k] = true; });
  return el("ol", { class: "moves" }, episode.moves.map(([seen, reply, action, applied, failed], i) => el("li", { class: `${applied ? "" : "failed"}${stuck[i] ? " stuck" : ""}` },
    i === fork && el("div", { class: "fork" }, "From here on the two differ"),
    foreign(seen, { class: "seen" }),
    el("div", { class: "did" }, `${i + 1} > `, action ? foreign(action) : el("span", { class: "bad" }, "(no action in the reply)")),
    !applied && el("div", { class: "why" }, failed > 1 ? `✗ failed again: ${failed} times running` : "✗ did not apply"),
    reply && el("details", {}, el("summary", {}, "whole reply"), el("div", { class: "foreign" }, replyNodes(reply))))));
}

function episodeSide(name, episode, fork) {
  if (!episode) return el("div", {}, el("h4", {}, name), el("p", { class: "empty" }, "This task is not among the episodes kept for this side."));
  const again = isStuck(episode);
  return el("div", {}, el("h4", {}, name), el("p", { class: "meta" },
    episode.success ? tag("✓ solved", "good") : tag(`✗ not solved: ${episode.stop}`, "bad"), again && tag("stuck", "bad"),
    `${plural(episode.moves.length, "action")}, score ${number(episode.score)}`),
    movesOf(episode, fork), episode.last && el("div", { class: "box foreign" }, foreign(episode.last)));
}
const isStuck = (episode) => episode.moves.some((move) => move[4] >= 3);

// Each kind of sample: its entries, its filters [label, name, choices, test(entry, choice)], its views.

function stageChoices(items) {
  return unique(items.map((x) => x.stage)).sort().map((s) => [s, stageName(s)]);
}
const recipeFilter = ["Recipe", "recipe", () => (one ? [] : recipes.map((r, i) => [String(i), r.label])), (x, v) => "stage" in x && data.runs[x.run].recipe === Number(v)];
const seedFilter = ["Seed", "seed", () => (many ? seeds.map((s) => [String(s), String(s)]) : []), (x, v) => data.runs[x.run].seed === Number(v)];

function pairsTab() {
  const asked = data.samples.groups.items.filter((g) => g.actions.length);
  const items = [...asked.map((g) => ({ ...g, asked: true })), ...data.samples.pairs.items];
  const half = (g) => g.answers.filter((a) => a.choice != null && a.choice === g.right).length / g.answers.length;
  return {
    items,
    about: `${plural(asked.length, "pair")} as asked in training, with the model’s answers, and ${data.samples.pairs.items.length.toLocaleString("en")} of ${plural(data.samples.pairs.of, "pair")} from pairs.jsonl (one file a seed).`,
    filters: [
      ["Show", "asked", () => [["yes", "asked in training, with answers"], ["no", "from pairs.jsonl"]], (x, v) => Boolean(x.asked) === (v === "yes")],
      ["Judged", "judged", () => (asked.length ? [["right", "mostly right"], ["wrong", "mostly wrong"]] : []), (x, v) => x.asked && (half(x) > 0.5) === (v === "right")],
      ["Split", "split", () => unique(data.samples.pairs.items.map((p) => p.split)).map((s) => [s, s]), (x, v) => !x.asked && x.split === v],
      recipeFilter, seedFilter,
    ],
    name: (x) => (x.asked ? [x.actions.join("  |  "), `${stageName(x.stage)}, step ${x.step} · ${x.answers.filter((a) => a.choice != null && a.choice === x.right).length} of ${x.answers.length} right · ${runName(x.run)}`] : [x.task, `${x.expert}  |  ${x.alternative} · ${x.split}`]),
    detail: (x) => (x.asked ? askedDetail(x) : pairDetail(x)),
  };
}

function groupsTab() {
  const { items, of } = data.samples.groups;
  return {
    items,
    about: `${items.length.toLocaleString("en")} of ${plural(of, "group")} in the samples folder, evenly from the first to the last of each stage; a run writes two every ten steps.`,
    filters: [recipeFilter, seedFilter, ["Stage", "stage", () => stageChoices(items), (x, v) => x.stage === v],
      ["Rewards", "rewards", () => [["mixed", "mixed: has a gradient"], ["equal", "all equal: zero variance"]], (x, v) => equalRewards(x) === (v === "equal")],
      ["Answers", "form", () => [["invalid", "some not in the asked form"], ["cut", "some cut off"]], (x, v) => x.answers.some((a) => (v === "cut" ? a.stop === "length" : !a.valid))]],
    name: (x) => [`${stageName(x.stage)}, step ${x.step}`, `mean reward ${number(x.answers.reduce((s, a) => s + a.reward, 0) / Math.max(x.answers.length, 1))} · ${runName(x.run)}`],
    detail: groupDetail,
  };
}

function episodesTab() {
  const { items: all, of } = data.samples.episodes;
  const tasks = new Map(); // "seed / split / id" → the episodes of that task, by "recipe/stage"
  for (const e of all) {
    const run = data.runs[e.run], id = JSON.stringify([run.seed, e.split, e.id]);
    if (!tasks.has(id)) tasks.set(id, { seed: run.seed, run: e.run, split: e.split, id: e.id, task: e.task, by: {} });
    tasks.get(id).by[`${run.recipe}/${e.stage}`] = e;
  }
  const sides = recipes.flatMap((r, i) => r.evaluations.map((e) => [`${i}/${/^\d/.test(e.stage) ? e.stage : `0-${e.stage}`}`, one ? (e.stage === "base" ? data.start : stageName(e.stage)) : `${r.label}, ${after(e.stage)}`]))
    .filter(([id]) => [...tasks.values()].some((t) => id in t.by));
  const final = (i) => `${i}/${lastOf(recipes[i]).stage}`;
  const base = Math.max(0, recipes.findIndex((r) => r.name === data.baseline));
  const other = base === recipes.length - 1 ? 0 : recipes.length - 1;
  const side = one ? [(sides[1] || sides[0] || [""])[0], (last(sides) || [""])[0]] : [final(base), final(other)];
  const label = (id) => (sides.find((s) => s[0] === id) || [0, "–"])[1];
  const ep = (t, k) => t.by[side[k]];
  const won = (t, k) => Boolean(ep(t, k) && ep(t, k).success);
  const outcomes = { a: (t) => won(t, 0) && !won(t, 1), b: (t) => !won(t, 0) && won(t, 1), both: (t) => won(t, 0) && won(t, 1), neither: (t) => !won(t, 0) && !won(t, 1) };
  const stuck = (t, k) => Boolean(ep(t, k)) && isStuck(ep(t, k));
  const behaviour = { a: (t) => stuck(t, 0), b: (t) => stuck(t, 1), none: (t) => !stuck(t, 0) && !stuck(t, 1) };
  return {
    items: [...tasks.values()],
    sides, side,
    about: `${all.length.toLocaleString("en")} of ${plural(of, "episode")}, evenly from the first to the last of each evaluation and split. Stuck: the same action failed three times running.`,
    filters: [seedFilter, ["Split", "split", () => unique(all.map((e) => e.split)).filter(Boolean).map((s) => [s, s]), (x, v) => x.split === v],
      ["Solved by", "solved", () => [["a", "left only"], ["b", "right only"], ["both", "both"], ["neither", "neither"]], (x, v) => outcomes[v](x)],
      ["Repeated failures", "stuck", () => [["a", "left is stuck"], ["b", "right is stuck"], ["none", "none"]], (x, v) => behaviour[v](x)]],
    present: (t) => Boolean(ep(t, 0) || ep(t, 1)),
    link: (t) => `episode/${encodeURIComponent(JSON.stringify([t.seed, t.split, t.id]))}`,
    name: (t) => [t.task, `${[0, 1].map((k) => (ep(t, k) ? (won(t, k) ? "✓" : stuck(t, k) ? "✗ stuck" : "✗") : "–")).join(" | ")} · ${[t.split, many ? `seed ${t.seed}` : ""].filter(Boolean).join(", ")}`],
    detail: (t) => {
      const [a, b] = [ep(t, 0), ep(t, 1)];
      const action = (m) => (m ? m[2].toLowerCase() : null);
      let fork = a && b && side[0] !== side[1] ? 0 : -1;
      while (fork >= 0 && fork < Math.max(a.moves.length, b.moves.length) && action(a.moves[fork]) === action(b.moves[fork])) fork += 1;
      return [el("h3", {}, foreign(t.task)), el("p", { class: "meta" }, [t.id, t.split, many && `seed ${t.seed}`].filter(Boolean).join(" · "), " · ",
        el("a", { href: `#episode/${encodeURIComponent(JSON.stringify([t.seed, t.split, t.id]))}` }, "link to this episode")),
        el("div", { class: "episodes" }, episodeSide(label(side[0]), a, fork), episodeSide(label(side[1]), b, fork))];
    },
  };
}

/* One tab: filters, a list to walk with the arrow keys, and the chosen entry; `at`: its link. */
function browse(panel, tab, at) {
  const state = {}, texts = new Map();
  const strings = (x) => (typeof x === "string" ? x : x && typeof x === "object" ? Object.values(x).map(strings).join("\n") : "");
  let limit = PAGE, entries = [], current = null;
  const text = (x) => { if (!texts.has(x)) texts.set(x, strings(x).toLowerCase()); return texts.get(x); };
  const shown = el("p", { class: "shown", role: "status" });
  const list = el("ul", { class: "list", "aria-label": "Entries" });
  const detail = el("div", { class: "detail", role: "region", "aria-label": "Chosen entry", tabindex: 0 });
  const select = (label, name, choices, change, value) => el("label", {}, label, el("select", { name, onchange: (event) => change(event.target.value) },
    choices.map(([v, n]) => el("option", { value: v, selected: v === value }, n))));

  const filters = el("div", { class: "filters", role: "group", "aria-label": "Filters" },
    (tab.sides || []).length > 0 && ["Left", "Right"].map((label, k) => select(label, label.toLowerCase(), tab.sides, (v) => { tab.side[k] = v; update(true); }, tab.side[k])),
    tab.filters.map(([label, name, choices]) => {
      const options = choices();
      return options.length > 0 && select(label, name, [["", "all"], ...options], (v) => { state[name] = v; limit = PAGE; update(); }, "");
    }),
    el("label", {}, "Search", el("input", { type: "search", name: "search", placeholder: "words in texts", oninput: (event) => {
      words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
      limit = PAGE;
      update();
    } })));

  function choose(x, focus) {
    current = x;
    [...list.querySelectorAll("button[data-i]")].forEach((button) => {
      const chosen = entries[button.dataset.i] === x;
      button.tabIndex = chosen ? 0 : -1;
      if (chosen) button.setAttribute("aria-current", "true"); else button.removeAttribute("aria-current");
      if (chosen && focus) button.focus();
    });
    detail.replaceChildren(...(x ? tab.detail(x).flat().filter(Boolean) : []));
  }
  function update(keep) {
    const active = tab.filters.filter(([, name]) => state[name]);
    entries = tab.items.filter((x) => (!tab.present || tab.present(x)) && active.every(([, name, , test]) => test(x, state[name])) && words.every((w) => text(x).includes(w)));
    shown.textContent = tab.items.length ? `${entries.length.toLocaleString("en")} of ${plural(tab.items.length, tab.sides ? "task" : "entry").replace("entrys", "entries")} on this page` : "There are no samples of this kind in the folder.";
    list.replaceChildren(...entries.slice(0, limit).map((x, i) => {
      const [title, note] = tab.name(x);
      return el("li", {}, el("button", { type: "button", "data-i": i, tabindex: -1, onclick: () => { choose(x, false); if (matchMedia("(max-width: 46rem)").matches) detail.scrollIntoView({ block: "start" }); } },
        el("span", { class: "two" }, short(title, 160)), el("small", {}, note)));
    }));
    if (entries.length > limit) list.append(el("li", {}, el("button", { type: "button", onclick: () => { limit += PAGE; update(true); } }, `${entries.length - limit} more …`)));
    const asked = at && entries.find((x) => tab.link && tab.link(x) === at);
    choose(asked || (keep && entries.includes(current) ? current : entries[0] || null), false);
    at = null;
  }
  list.addEventListener("keydown", (event) => {
    const buttons = [...list.querySelectorAll("button")], at = buttons.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const button = buttons[Math.max(0, Math.min(buttons.length - 1, to))];
    if (button.dataset.i) choose(entries[button.dataset.i], true); else button.focus();
  });
  words = [];
  panel.replaceChildren(el("p", { class: "about" }, tab.about), filters, shown, el("div", { class: "split" }, list, detail));
  update();
}

function samples() {
  const tabs = { episodes: ["Episodes side by side", episodesTab], pairs: ["Pairs", pairsTab], groups: ["Groups", groupsTab] };
  const { most, seeds: kept } = data.samples;
  const any = ["pairs", "groups", "episodes"].some((kind) => data.samples[kind].items.length);
  byId("samples-about").textContent = any
    ? `Nothing here is picked for its looks: at most ${most} entries of each stage and split${kept.length < seeds.length ? `, of seed ${kept.join(", ")} only,` : ""} are kept, so that this file stays small; the run folder has all of them.`
    : "This folder holds no samples: no pairs, no groups and no episodes.";
  if (!any) return void [byId("tabs"), byId("browser")].forEach((node) => node.remove());
  const open = (id, focus, at) => {
    for (const button of byId("tabs").children) {
      const chosen = button.id === `tab-${id}`;
      button.setAttribute("aria-selected", String(chosen));
      button.tabIndex = chosen ? 0 : -1;
      if (chosen && focus) button.focus();
    }
    byId("browser").setAttribute("aria-labelledby", `tab-${id}`);
    browse(byId("browser"), tabs[id][1](), at);
  };
  const ids = Object.keys(tabs);
  byId("tabs").append(...ids.map((id, i) => el("button", { type: "button", role: "tab", id: `tab-${id}`, "aria-controls": "browser", onclick: () => open(id, false), onkeydown: (event) => {
    const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: ids.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    open(ids[(to + ids.length) % ids.length], true);
  } }, tabs[id][0])));
  open(ids.find((id) => data.samples[id].items.length), false);
  const follow = () => {
    if (!location.hash.startsWith("#episode/")) return;
    open("episodes", false, location.hash.slice(1));
    byId("samples").scrollIntoView({ block: "start" });
  };
  addEventListener("hashchange", follow);
  follow();
}

// ---- where the reader is ---------------------------------------------------------------------

function sections() {
  const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
  const watch = new IntersectionObserver((seen) => seen.forEach(({ target, isIntersecting }) => {
    if (!isIntersecting) return;
    links.forEach((a) => a.removeAttribute("aria-current"));
    links.get(target.id).setAttribute("aria-current", "true");
  }), { rootMargin: "-20% 0px -75% 0px" });
  links.forEach((_, id) => watch.observe(byId(id)));
}

theme();
header();
verdict();
quiz();
results();
curves();
position();
cost();
samples();
sections();
document.documentElement.dataset.ready = "true";
