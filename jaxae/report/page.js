"use strict";
// Every text of the data becomes a text node: no data is ever parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";
const COLOURS = 8;
const PAGE_ROWS = 25;

function element(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function shape(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function format(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return String(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace(/\.?0+e/, "e");
  return String(Number(value.toPrecision(4)));
}

const isNumber = (value) => typeof value === "number";
const distinct = (values) => [...new Set(values)];
const ascending = (a, b) => (isNumber(a) && isNumber(b) ? a - b : String(a).localeCompare(String(b)));

// ---- scales ------------------------------------------------------------------------

function scale(values, size, { log = false, limits = null, flip = false, margin = 0 } = {}) {
  const map = log ? Math.log10 : (x) => x;
  let [low, high] = (limits ?? [Math.min(...values), Math.max(...values)]).map(map);
  if (!(low < high)) [low, high] = [low - 0.5, high + 0.5];
  [low, high] = [low - margin * (high - low), high + margin * (high - low)];
  const at = (x) => {
    const part = (map(x) - low) / (high - low);
    return size * (flip ? 1 - part : part);
  };
  return { at, ticks: log ? decades(low, high) : roundNumbers(low, high, size / (flip ? 40 : 60)) };
}

// About `count` round numbers, from 2 to 6.
function roundNumbers(low, high, count) {
  const rough = (high - low) / Math.max(2, Math.min(6, count));
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

function decades(low, high) {
  const all = (factors) => {
    const ticks = [];
    for (let e = Math.floor(low); e <= high; e++) for (const f of factors) ticks.push(f * 10 ** e);
    return ticks.filter((t) => Math.log10(t) >= low - 1e-9 && Math.log10(t) <= high + 1e-9);
  };
  const tens = all([1]);
  if (tens.length >= 2) return tens.filter((_, i) => i % Math.ceil(tens.length / 6) === 0);
  const finer = all([1, 2, 5]);
  return finer.length >= 2 ? finer : roundNumbers(10 ** low, 10 ** high, 4);
}

function spansDecade(values) {
  return Math.min(...values) > 0 && Math.max(...values) > 10 * Math.min(...values);
}

// ---- charts ------------------------------------------------------------------------

// Draws again at each new width, so that text has one size on all screens.
function drawing(height, draw, label) {
  const svg = shape("svg", { role: "img", "aria-label": label, height });
  let width = 0;
  const observer = new ResizeObserver(([{ contentRect }]) => {
    const now = Math.round(contentRect.width);
    if (now && now !== width) svg.replaceChildren(...draw((width = now), height));
  });
  observer.observe(svg);
  return svg;
}

const LEFT = 52, RIGHT = 12, TOP = 8, TICKS = 22, BOTTOM = 36;

function axes(width, height, x, y, xTicks) {
  const marks = [];
  for (const tick of y.ticks) {
    const at = TOP + y.at(tick);
    marks.push(shape("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: at, y2: at }));
    marks.push(shape("text", { x: LEFT - 6, y: at + 4, "text-anchor": "end" }, format(tick)));
  }
  for (const [tick, label] of xTicks ?? x.ticks.map((t) => [t, format(t)])) {
    marks.push(shape("text", { x: LEFT + x.at(tick), y: height - 6, "text-anchor": "middle" }, label));
  }
  return marks;
}

const DASHES = { dashed: "6 4", dotted: "2 4" };
const stroke = (i, line) => ({ stroke: `var(--line-${i % COLOURS})`, "stroke-dasharray": DASHES[line.dash] ?? null });

// Lines of {label, x, y, dash}; `dots` draws points only. The values at the x under the
// pointer, or chosen by the arrow keys, are in the legend.
function lines({ title, x: xName, lines: drawn, log = null, xLog = false, limits = null, dots = false, names = null }) {
  const points = drawn.map((line) => line.x.map((x, i) => [x, line.y[i]]).filter(([, y]) => y !== null));
  const ys = points.flat().map(([, y]) => y);
  const xs = distinct(points.flat().map(([x]) => x)).sort((a, b) => a - b);
  const figure = element("figure", {}, element("figcaption", {}, title));
  if (!xs.length) {
    figure.append(element("p", {}, "No value is finite."));
    return figure;
  }
  const isLog = ys.some((y) => y > 0) && (log ?? spansDecade(ys));
  const visible = isLog ? ys.filter((y) => y > 0) : ys;
  const nameOf = (x) => (names ? names[x] : format(x));
  const values = drawn.map(() => element("span", { class: "readout" }));
  const place = element("span", { class: "readout" });
  let chosen = xs.length - 1, guide = null, toPixel = null;

  const show = (index) => {
    chosen = Math.max(0, Math.min(xs.length - 1, index));
    place.textContent = `${xName} ${nameOf(xs[chosen])}`;
    points.forEach((of, i) => {
      const here = of.filter(([x]) => x === xs[chosen]).map(([, y]) => y);
      const ends = [Math.min(...here), Math.max(...here)].map(format);
      values[i].textContent = !here.length ? "–" : ends[0] === ends[1] ? ends[0] : `${ends[0]} to ${ends[1]}`;
    });
    if (guide) for (const end of ["x1", "x2"]) guide.setAttribute(end, toPixel(xs[chosen]));
  };

  const svg = drawing(220, (width, height) => {
    const x = scale(xs, width - LEFT - RIGHT, { log: xLog });
    const y = scale(visible, height - TOP - BOTTOM, { log: isLog, limits, flip: true, margin: 0.06 });
    const ticks = names ? thinned(xs, x).map((tick) => [tick, names[tick]]) : xName === "epoch" ? x.ticks.filter(Number.isInteger).map((t) => [t, format(t)]) : null;
    toPixel = (value) => LEFT + x.at(value);
    guide = shape("line", { class: "guide", y1: TOP, y2: height - BOTTOM });
    const marks = points.flatMap((of, i) => {
      const pixels = of.filter(([, v]) => !isLog || v > 0).map(([u, v]) => [toPixel(u), TOP + y.at(v)]);
      const circles = pixels.map(([cx, cy]) => shape("circle", { cx, cy, r: dots ? 3 : 2.2, fill: `var(--line-${i % COLOURS})` }));
      if (dots && !drawn[i].joined) return circles;
      const path = shape("polyline", { class: "line", points: pixels.join(" "), ...stroke(i, drawn[i]) });
      return pixels.length <= 30 ? [path, ...circles] : [path];
    });
    queueMicrotask(() => show(chosen));
    const name = shape("text", { x: (LEFT + width - RIGHT) / 2, y: height - 4, "text-anchor": "middle" }, xName);
    return [...axes(width, height - BOTTOM + TICKS, x, y, ticks), name, guide, ...marks];
  }, `${title} against ${xName}`);
  svg.setAttribute("tabindex", 0);
  svg.addEventListener("pointermove", (event) => {
    const at = event.clientX - svg.getBoundingClientRect().left;
    const distances = xs.map((x) => Math.abs(toPixel(x) - at));
    show(distances.indexOf(Math.min(...distances)));
  });
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) { event.preventDefault(); show(chosen + step); }
  });
  const legend = element("ul", { class: "legend", "aria-live": "polite" }, element("li", {}, place));
  drawn.forEach((line, i) => {
    const sample = dots && !line.joined
      ? shape("circle", { cx: 13, cy: 5, r: 3, fill: `var(--line-${i % COLOURS})` })
      : shape("line", { x1: 0, x2: 26, y1: 5, y2: 5, class: "line", ...stroke(i, line) });
    legend.append(element("li", {}, shape("svg", { "aria-hidden": true }, sample), `${line.label} `, values[i]));
  });
  figure.append(svg, legend);
  return figure;
}

function thinned(xs, x) {
  let last = -Infinity;
  return xs.filter((value) => x.at(value) - last >= 46 && ((last = x.at(value)), true));
}

function bars({ title, x: xName, y: yName, counts, edges }) {
  const readout = element("p", { class: "readout", "aria-live": "polite" });
  const total = counts.reduce((a, b) => a + b, 0);
  const show = (i) => {
    readout.textContent = i === null ? `${format(total)} ${yName} in all` : `${format(edges[i])} to ${format(edges[i + 1])}: ${format(counts[i])} ${yName}`;
  };
  const svg = drawing(170, (width, height) => {
    const x = scale([edges[0], edges.at(-1)], width - LEFT - RIGHT);
    const y = scale([0, Math.max(1, ...counts)], height - TOP - TICKS, { flip: true });
    y.ticks = y.ticks.filter(Number.isInteger);
    const marks = counts.map((count, i) => {
      const left = LEFT + x.at(edges[i]), right = LEFT + x.at(edges[i + 1]), top = TOP + y.at(count);
      const bar = shape("rect", { class: "bar", x: left + 0.5, y: top, width: Math.max(0.5, right - left - 1), height: height - TICKS - top });
      bar.addEventListener("pointerenter", () => show(i));
      bar.addEventListener("pointerleave", () => show(null));
      return bar;
    });
    return [...axes(width, height, x, y), ...marks];
  }, `Histogram of ${title}`);
  show(null);
  return element("figure", {}, element("figcaption", {}, title), svg, xName ? element("p", { class: "small" }, xName) : null, readout);
}

// ---- tables ------------------------------------------------------------------------

// A table that sorts by a column, shows a page of rows and finds rows by their text.
function table({ columns, rows, search = null }, cell = null, onRows = null) {
  const isText = columns.map((_, j) => rows.some((row) => row[j] !== null && !isNumber(row[j])));
  let found = rows, first = 0, sorted = null, isDescending = false;
  const body = element("tbody");
  const heads = columns.map((name, j) => element("th", { scope: "col", class: isText[j] ? "" : "number" },
    element("button", { type: "button", onclick: () => sort(j) }, name)));
  const place = element("span", { "aria-live": "polite" });
  const before = element("button", { type: "button", onclick: () => turn(-PAGE_ROWS) }, "Previous");
  const after = element("button", { type: "button", onclick: () => turn(PAGE_ROWS) }, "Next");

  function sort(j) {
    isDescending = sorted === j ? !isDescending : !isText[j];
    sorted = j;
    const missing = (row) => row[j] === null;
    rows = [...rows].sort((a, b) => missing(a) - missing(b) || (isDescending ? -1 : 1) * ascending(a[j], b[j]));
    heads.forEach((head, i) => head.setAttribute("aria-sort", i !== j ? "none" : isDescending ? "descending" : "ascending"));
    filter();
  }
  const field = element("input", { type: "search", oninput: filter });
  function filter() {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    found = rows.filter((row) => words.every((word) => row.some((value) => format(value).toLowerCase().includes(word))));
    first = 0;
    show();
  }
  function turn(by) { first += by; show(); }
  function show() {
    const last = Math.min(first + PAGE_ROWS, found.length);
    body.replaceChildren(...found.slice(first, last).map((row) => element("tr", {}, ...row.map((value, j) =>
      element(j ? "td" : "th", { class: isText[j] ? "" : "number", scope: j ? null : "row" }, cell?.(row, j) ?? format(value))))));
    place.textContent = found.length ? `${first + 1} to ${last} of ${found.length}` : "no row matches";
    before.disabled = first === 0;
    after.disabled = last === found.length;
    onRows?.(body);
  }
  show();
  const controls = element("div", { class: "controls" });
  if (rows.length > PAGE_ROWS) {
    if (search) controls.append(element("label", {}, `Search ${search}`, field));
    controls.append(before, after, place);
  }
  const scroll = element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "table" },
    element("table", {}, element("thead", {}, element("tr", {}, ...heads)), body));
  return element("div", {}, controls, scroll);
}

// ---- inputs and images -------------------------------------------------------------

function picture(input, name) {
  if (input.src) return element("img", { src: input.src, alt: name });
  const values = input.values, y = scale(values.filter(isNumber), 36, { flip: true });
  const points = values.map((v, i) => [(104 * (i + 0.5)) / values.length + 2, 2 + y.at(v)]);
  return shape("svg", { class: "sparkline", role: "img", "aria-label": name, viewBox: "0 0 108 40" },
    shape("polyline", { class: "line", points: points.join(" "), stroke: "var(--line-0)" }));
}

function filters({ items }) {
  return element("div", { class: "images" }, ...items.map(({ src, alt, latent }) => element("figure", {},
    element("button", { type: "button", "aria-label": `show latent ${latent}`, onclick: () => showLatent(latent, true) }, element("img", { src, alt })),
    element("figcaption", {}, String(latent)))));
}

function reconstructions({ items }) {
  return element("div", { class: "images wide" }, ...items.map(({ error, input, output }, i) => element("figure", {},
    element("div", { class: "pair" }, picture(input, `input ${i + 1}`), picture(output, `reconstruction of input ${i + 1}`)),
    element("figcaption", {}, `error ${format(error)}`))));
}

// ---- latents -----------------------------------------------------------------------

let showLatent = null; // (number, whether to scroll to it)

function latents({ columns, rows, details, inputs, first }) {
  const detail = element("div", { class: "detail", "aria-live": "polite", tabindex: -1 });
  const byNumber = new Map(rows.map((row) => [row[0], row]));
  let chosen = null, body = null;

  const mark = () => body?.querySelectorAll("tr").forEach((tr) => tr.classList.toggle("chosen", Number(tr.firstChild.textContent) === chosen));
  const link = (number) => element("button", { type: "button", class: "link", "aria-label": `show latent ${number}`, onclick: () => showLatent(number, true) }, String(number));
  const isLink = (j) => columns[j] === "latent" || columns[j] === "nearest";
  const cells = (row, j) => (isLink(j) && byNumber.has(row[j]) ? link(row[j]) : null);

  showLatent = (number, scrolls) => {
    chosen = number;
    detail.replaceChildren(...describe(number));
    mark();
    if (scrolls) detail.scrollIntoView({ block: "nearest" });
  };

  function describe(number) {
    const row = byNumber.get(number), found = details[number];
    const nodes = [element("h3", {}, `Latent ${number}`)];
    if (row) nodes.push(element("p", {}, columns.slice(1, 5).map((name, j) => `${name} ${format(row[j + 1])}`).join(", ")));
    if (!found?.groups.length) {
      const reason = row && row[1] === 0 ? "It is 0 on every row." : "It has no details on this page.";
      return [...nodes, element("p", {}, reason)];
    }
    const head = element("div", { class: "head" });
    if (found.filter) head.append(element("div", {}, element("h4", {}, "decoder weights"), element("img", { src: found.filter, alt: `decoder weights of latent ${number}` })));
    if (found.histogram.limit) head.append(bars(histogram(found.histogram)));
    nodes.push(head);
    if (found.nearest.length) {
      nodes.push(element("p", {}, "Nearest latents, with the cosine of the decoder weights: ", ...found.nearest.flatMap(([other, cosine], i) =>
        [i ? ", " : "", link(other), ` ${format(cosine)}`])));
    }
    const largest = Math.max(...found.groups.flatMap((group) => group.examples.map((e) => Math.abs(e.value))));
    for (const group of found.groups) {
      nodes.push(element("h4", {}, group.title), examples(group.examples, largest, inputs));
    }
    return nodes;
  }

  const main = table({ columns, rows, search: "latents" }, cells, (rowsNow) => { body = rowsNow; mark(); });
  showLatent(first, false);
  return element("div", { class: "browser" }, main, detail);
}

function histogram({ counts, limit }) {
  const used = counts.length - [...counts].reverse().findIndex((count) => count > 0);
  const edges = Array.from({ length: used + 1 }, (_, i) => (limit * i) / counts.length);
  return { title: "|z| where active", x: "", y: "rows", counts: counts.slice(0, used), edges };
}

function examples(items, largest, inputs) {
  if (items[0].tokens) return element("ul", { class: "contexts" }, ...items.map((item) => context(item, largest)));
  if (!inputs[items[0].row]) {
    return element("p", {}, items.map(({ row, value }) => `row ${row}: ${format(value)}`).join("; "));
  }
  return element("div", { class: "images" }, ...items.map(({ row, value }) => element("figure", {},
    picture(inputs[row], `row ${row}`), element("figcaption", {}, format(value), element("br"), `row ${row}`))));
}

function context({ row, value, tokens, values, at }, largest) {
  const spans = tokens.map((token, i) => {
    const span = element("span", { class: i === at ? "token at" : "token", title: `row ${row - at + i}: ${format(values[i])}` }, token.replaceAll("\n", "⏎\n"));
    const part = Math.abs(values[i] ?? 0) / (largest || 1);
    if (part > 0) span.style.backgroundColor = `rgba(var(--mark), ${0.1 + 0.5 * Math.min(1, part)})`;
    return span;
  });
  return element("li", { title: `row ${row}` }, element("span", { class: "value" }, format(value)), element("span", {}, ...spans));
}

// ---- sweeps ------------------------------------------------------------------------

function explorer({ lanes, axes: of, metrics, metric, status }) {
  const names = Object.keys(of);
  const select = (label, options, value) => {
    const field = element("select", { onchange: draw }, ...options.map((name) => element("option", { selected: name === value ? "" : null }, name)));
    return [element("label", {}, label, field), field];
  };
  const [metricLabel, metricField] = select("Metric", Object.keys(metrics), metric);
  const [xLabel, xField] = select("Axis", names, names[0]);
  const [yLabel, yField] = select("Second axis", ["none", ...names], names[1] ?? "none");
  const place = element("div");

  function draw() {
    const values = metrics[metricField.value];
    const isDone = lanes.map((_, i) => status[i] === "finished" && values[i] !== null);
    const [x, y] = [xField.value, yField.value];
    const nodes = [against(x, values, isDone)];
    if (y !== "none" && y !== x) nodes.push(heatMap(x, y, values, isDone));
    place.replaceChildren(...nodes);
  }

  // The smallest mean over seeds of the settings of these lanes; null if there is none.
  function best(indices, values) {
    const settings = new Map();
    for (const i of indices) {
      const key = JSON.stringify(names.map((name) => of[name][i]));
      settings.set(key, [...(settings.get(key) ?? []), values[i]]);
    }
    const means = [...settings.values()].map((v) => v.reduce((a, b) => a + b, 0) / v.length);
    return means.length ? Math.min(...means) : null;
  }

  function against(name, values, isDone) {
    const axis = of[name], done = lanes.map((_, i) => i).filter((i) => isDone[i]);
    const settings = distinct(axis).sort(ascending);
    const isNumeric = settings.every(isNumber);
    const xLog = isNumeric && spansDecade(settings);
    const at = (value) => (isNumeric ? value : settings.indexOf(value));
    return lines({
      title: `${metricField.value} against ${name}`, x: name, dots: true, xLog,
      names: isNumeric ? null : settings.map(String),
      lines: [
        { label: "best setting", joined: isNumeric, x: settings.map(at), y: settings.map((s) => best(done.filter((i) => axis[i] === s), values)) },
        { label: "each lane", x: done.map((i) => at(axis[i])), y: done.map((i) => values[i]) },
      ],
    });
  }

  function heatMap(xName, yName, values, isDone) {
    const [columns, rows] = [cellsOf(of[xName]), cellsOf(of[yName])];
    const members = rows.labels.map((_, r) => columns.labels.map((_, c) =>
      lanes.map((_, i) => i).filter((i) => columns.cell[i] === c && rows.cell[i] === r)));
    const means = members.map((row) => row.map((indices) => best(indices.filter((i) => isDone[i]), values)));
    const finite = means.flat().filter((value) => value !== null);
    const colour = colours(finite);
    const least = Math.min(...finite);
    const readout = element("p", { class: "readout", "aria-live": "polite" }, "Point at a cell to read it.");
    const cell = (r, c) => {
      const value = means[r][c], indices = members[r][c];
      const failed = indices.filter((i) => status[i] === "diverged").length;
      const label = `${xName} ${columns.labels[c]}, ${yName} ${rows.labels[r]}: ${format(value)}; ${indices.length} lane${indices.length === 1 ? "" : "s"}${failed ? `, ${failed} diverged` : ""}`;
      const text = value !== null ? format(Number(value.toPrecision(3))) : !indices.length ? "" : failed === indices.length ? "✕" : "–";
      const td = element("td", { tabindex: 0, title: label, class: value !== null && value === least ? "best" : null }, text);
      if (value !== null) [td.style.backgroundColor, td.style.color] = colour(value);
      for (const event of ["pointerenter", "focus"]) td.addEventListener(event, () => { readout.textContent = label; });
      return td;
    };
    const head = element("tr", {}, element("th", {}, `${yName} \\ ${xName}`), ...columns.labels.map((label) => element("th", { scope: "col" }, label)));
    const body = rows.labels.map((label, r) => element("tr", {}, element("th", { scope: "row" }, label), ...columns.labels.map((_, c) => cell(r, c))));
    return element("figure", {}, element("figcaption", {}, `${metricField.value} by ${yName} and ${xName}`),
      element("div", { class: "scroll" }, element("table", { class: "cells" }, element("thead", {}, head), element("tbody", {}, ...body.reverse()))),
      readout, element("p", { class: "small" }, "Dark blue is the smallest value; the best cell has a frame; ✕: every lane diverged."));
  }

  draw();
  return element("div", {}, element("div", { class: "controls" }, metricLabel, xLabel, yLabel), place);
}

// A cell for each value of an axis; bins for an axis of many numbers.
function cellsOf(axis) {
  const values = distinct(axis).sort(ascending);
  if (values.length <= 16 || !values.every(isNumber)) {
    return { labels: values.map(format), cell: axis.map((value) => values.indexOf(value)) };
  }
  const isLog = spansDecade(values), map = isLog ? Math.log10 : (x) => x, unmap = isLog ? (x) => 10 ** x : (x) => x;
  const low = map(values[0]), width = (map(values.at(-1)) - low) / 8;
  const short = (x) => format(Number(unmap(x).toPrecision(2)));
  return {
    labels: Array.from({ length: 8 }, (_, i) => `${short(low + i * width)} to ${short(low + (i + 1) * width)}`),
    cell: axis.map((value) => Math.min(7, Math.floor((map(value) - low) / width))),
  };
}

// value -> [background, text], dark for the smallest; by its logarithm over a decade.
function colours(values) {
  const at = scale(values, 1, { log: spansDecade(values) }).at;
  return (value) => {
    const part = Math.max(0, Math.min(1, at(value))), lightness = 26 + 66 * part;
    return [`hsl(${215 - 165 * part} ${55 - 5 * part}% ${lightness}%)`, lightness < 36 ? "#ffffff" : "#111111"];
  };
}

// ---- the page ----------------------------------------------------------------------

const BLOCKS = {
  facts: ({ items }) => element("dl", {}, ...items.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)])),
  code: ({ text }) => element("pre", {}, text),
  table: (block) => table(block),
  lines, bars, filters, reconstructions, latents, explorer,
};

function section({ title, text, blocks }, i) {
  const node = element("section", { "aria-labelledby": `section-${i}` }, element("h2", { id: `section-${i}` }, title));
  if (text) node.append(element("p", {}, text));
  const charts = element("div", { class: "charts" });
  for (const block of blocks) {
    const isChart = block.type === "lines" || block.type === "bars";
    if (isChart && !charts.parentNode) node.append(charts);
    (isChart ? charts : node).append(BLOCKS[block.type](block));
  }
  return node;
}

const page = JSON.parse(document.getElementById("data").textContent);
const contents = element("nav", { "aria-label": "Sections" }, element("ul", {}, ...page.sections.map(({ title }, i) =>
  element("li", {}, element("a", { href: `#section-${i}` }, title)))));
document.getElementById("main").replaceChildren(element("p", {}, page.lead), contents, ...page.sections.map(section));
