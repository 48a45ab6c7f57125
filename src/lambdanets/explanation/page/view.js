// What is shown: the query, its maps, and what the reader does.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const PARTS = ["content", "position", "sum"];
const state = { layer: 0, head: 0, depth: 0, query: 0, pinned: false, slice: 0, cursor: null };
let shown = null; // maps of the present query
let background = null;

const layer = () => data.layers[state.layer];
const grid = () => threeAxes(layer().grid);
const contextGrid = () => threeAxes(layer().contextGrid);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const signed = (value) => (value < 0 ? "−" : value > 0 ? "+" : "") + short(Math.abs(value));
const short = (value) => (value === 0 ? "0" : value >= 0.001 && value < 1000 ? value.toPrecision(3) : value.toExponential(1));

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// --- numbers -----------------------------------------------------------------------------------------------------

/** Weights by part of the present query: heads x u x context, times the values' norms where that is asked for. */
function maps() {
  const { content, position } = weightsOf(layer(), state.query);
  const sum = content.map((value, at) => value + position[at]);
  const result = { content, position, sum };
  if (byId("weighted").checked) {
    const norms = arraysOf(layer()).value_norms;
    for (const part of PARTS) result[part] = result[part].map((value, at) => value * norms[at % norms.length]);
  }
  return result;
}

/** The map of one head and the chosen u: all context positions, prefix tokens first. */
function oneHead(values, head) {
  const { depth: u, context: m } = layer();
  const start = (head * u + state.depth) * m;
  return values.subarray(start, start + m);
}

const largest = (values) => values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);

function coordinates(place, shape) {
  const [, H, W] = shape;
  return [Math.floor(place / (H * W)), Math.floor(place / W) % H, place % W];
}

function placeName(index, shape, rank) {
  const p = layer().prefix;
  if (index < p) return `prefix token ${index + 1}`;
  const [z, y, x] = coordinates(index - p, shape);
  if (layer().edges) return `node ${x}`;
  if (rank === 1) return `position ${x}`;
  return (rank === 3 ? `slice ${z}, ` : "") + `row ${y}, column ${x}`;
}

// --- colours and canvases ----------------------------------------------------------------------------------------

function rgb(text) {
  const bits = parseInt(text.slice(1), 16);
  return [bits >> 16, (bits >> 8) & 255, bits & 255];
}

let palette = {};
function readPalette() {
  for (const name of ["negative", "middle", "positive", "mark", "mark-edge"]) palette[name] = colour(`--${name}`);
  palette.ends = ["negative", "middle", "positive"].map((name) => rgb(palette[name]));
}

/** Colour of a value from -1 to 1. */
function diverging(value) {
  const [low, middle, high] = palette.ends, end = value < 0 ? low : high, share = Math.min(1, Math.abs(value));
  return middle.map((from, at) => from + (end[at] - from) * share);
}

const TALLEST = 480, NARROWEST = 16; // of a canvas, so that a tall map leaves its scale in sight

/** Give a canvas the pixels of its place on the page; its height follows from the ratio, also where print changes the width. */
function fit(canvas, ratio, least = 0) {
  canvas.style.width = "";
  const room = canvas.clientWidth || 100, width = ratio ? Math.min(room, Math.max(NARROWEST, Math.round(TALLEST / ratio))) : room;
  const height = Math.max(least, Math.min(TALLEST, Math.round(width * ratio)));
  const scale = window.devicePixelRatio || 1;
  canvas.style.width = width < room ? `${width}px` : "";
  canvas.style.height = ratio ? "" : `${height}px`;
  canvas.style.aspectRatio = ratio ? `${width} / ${height}` : "";
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  return context;
}

const scratch = document.createElement("canvas");

/** Draw rows x columns values, colours around 0, over the whole canvas. */
function paint(context, values, rows, columns, limit, overImage = false) {
  scratch.width = columns;
  scratch.height = rows;
  const pen = scratch.getContext("2d"), pixels = pen.createImageData(columns, rows);
  for (let at = 0; at < rows * columns; at++) {
    const value = limit ? values[at] / limit : 0;
    const [red, green, blue] = diverging(overImage ? Math.sign(value) : value);
    pixels.data.set([red, green, blue, overImage ? 220 * Math.min(1, Math.abs(value)) : 255], 4 * at);
  }
  pen.putImageData(pixels, 0, 0);
  context.drawImage(scratch, 0, 0, context.canvas.width, context.canvas.height);
}

/** True if the picture lies behind the maps of the layer; a row of tokens has no place on an image. */
const pictured = () => background !== null && layer().pictured;

function paintBackground(context, slice, of, grey, shown) {
  const { width, height } = context.canvas;
  context.fillStyle = palette.middle;
  context.fillRect(0, 0, width, height);
  if (!shown) return;
  const { frames, height: rows, width: columns } = data.picture;
  const frame = Math.min(frames - 1, Math.floor((slice * frames) / of));
  context.imageSmoothingEnabled = columns > width / 2;
  context.filter = grey ? "grayscale(1) opacity(0.55)" : "none";
  context.drawImage(background, 0, frame * rows, columns, rows, 0, 0, width, height);
  context.filter = "none";
  context.imageSmoothingEnabled = false;
}

/** Outline cells [y, x] to [y + rows, x + columns]. */
function outline(context, y, x, rows, columns, shape, dashed) {
  const [, H, W] = shape, { width, height } = context.canvas, scale = window.devicePixelRatio || 1;
  const box = [(x * width) / W, (y * height) / H, (columns * width) / W, (rows * height) / H];
  for (const [style, thick] of [[palette["mark-edge"], dashed ? 2.5 : 4], [palette.mark, dashed ? 1 : 2]]) {
    context.strokeStyle = style;
    context.lineWidth = thick * scale;
    context.setLineDash(dashed ? [5 * scale, 4 * scale] : []);
    const inset = dashed ? 1.25 * scale : 0;
    context.strokeRect(box[0] + inset, box[1] + inset, box[2] - 2 * inset, box[3] - 2 * inset);
  }
  context.setLineDash([]);
}

/** Query, scope and pointed-at cell on a canvas of the context's (or the queries') grid. */
function marks(context, shape, withQuery) {
  const p = layer().prefix;
  if (withQuery && state.query >= p) {
    const [z, y, x] = coordinates(state.query - p, grid());
    if (layer().local) {
      const [dE, hE, wE] = threeAxes(layer().extents);
      const [top, left] = [Math.max(0, y - (hE >> 1)), Math.max(0, x - (wE >> 1))];
      const [bottom, right] = [Math.min(shape[1], y + (hE >> 1) + 1), Math.min(shape[2], x + (wE >> 1) + 1)];
      const whole = bottom - top === shape[1] && right - left === shape[2];
      if (!whole && Math.abs(z - state.slice) <= dE >> 1) outline(context, top, left, bottom - top, right - left, shape, true);
    }
    if (z === state.slice) outline(context, y, x, 1, 1, shape, false);
  }
  if (state.cursor !== null && state.cursor >= p) {
    const [z, y, x] = coordinates(state.cursor - p, contextGrid());
    if (z === state.slice) outline(context, y, x, 1, 1, shape, true);
  }
}

// --- drawing -----------------------------------------------------------------------------------------------------

const isStrip = (shape) => shape[0] === 1 && shape[1] === 1;
const ratioOf = (shape) => (isStrip(shape) ? 0 : shape[1] / shape[2]);

function sliceOf(values, shape) {
  const size = shape[1] * shape[2], start = layer().prefix + state.slice * size;
  return values.subarray(start, start + size);
}

function drawMap(canvas, values, limit, least) {
  const shape = contextGrid(), over = byId("overlay").checked && pictured();
  const context = fit(canvas, ratioOf(shape), least);
  if (over) paintBackground(context, state.slice, shape[0], true, true);
  paint(context, sliceOf(values, shape), shape[1], shape[2], limit, over);
  marks(context, shape, !layer().ownContext);
}

function drawQuery() {
  const shape = grid(), canvas = byId("query");
  const context = fit(canvas, ratioOf(shape), isStrip(shape) ? 72 : 0);
  paintBackground(context, state.slice, shape[0], false, pictured());
  marks(context, shape, true);
}

function draw() {
  shown = maps();
  const chosen = Object.fromEntries(PARTS.map((part) => [part, oneHead(shown[part], state.head)]));
  const limits = Object.fromEntries(PARTS.map((part) => [part, largest(chosen[part])]));
  const own = byId("own").value !== "", common = Math.max(...Object.values(limits));
  drawQuery();
  const strip = isStrip(contextGrid());
  for (const part of PARTS) {
    const limit = own ? limits[part] : common;
    drawMap(document.querySelector(`[data-part="${part}"]`), chosen[part], limit, strip ? 36 : 0);
    showScale(document.querySelector(`[data-limit="${part}"]`), limit);
    const tokens = document.querySelector(`[data-strip="${part}"]`);
    tokens.hidden = layer().prefix === 0;
    if (layer().prefix) paint(fit(tokens, 0, 16), chosen[part].subarray(0, layer().prefix), 1, layer().prefix, limit);
  }
  drawHeads();
  const place = byId("place"), caption = byId("query-caption");
  place.textContent = place.title = placeName(state.query, grid(), layer().grid.length);
  caption.classList.toggle("pinned", state.pinned);
  caption.firstElementChild.textContent = state.pinned ? "Pinned" : "Query";
  describe(chosen.sum);
  for (const button of byId("tokens").children) button.setAttribute("aria-pressed", String(Number(button.value) === state.query));
  readOut();
}

/** The numbers under a scale, from 0 where nothing is below; what its ends mean is said where the sign alone does not. */
function showScale(legend, limit, [below, above] = ["", ""]) {
  const [, low, high] = legend.children, text = (sign, words) => `${sign}${short(limit)}${words && ` ${words}`}`;
  legend.classList.toggle("positive", below === null);
  [low.textContent, high.textContent] = limit === 0 ? ["0 everywhere", ""] : [below === null ? "0" : text("−", below), text("+", above)];
}

function drawHeads() {
  const sums = Array.from({ length: layer().heads }, (_, head) => oneHead(shown.sum, head));
  const limit = Math.max(...sums.map(largest));
  [...byId("heads").children].forEach((button, head) => {
    button.setAttribute("aria-pressed", String(head === state.head));
    drawMap(button.querySelector("canvas"), sums[head], limit, isStrip(contextGrid()) ? 20 : 0);
  });
}

let pending = 0;
/** The status is read out: not for every cell that a pointer crosses. */
function describe(sum) {
  clearTimeout(pending);
  pending = setTimeout(() => {
    const name = placeName(state.query, grid(), layer().grid.length);
    const order = [...sum.keys()].sort((a, b) => Math.abs(sum[b]) - Math.abs(sum[a])).slice(0, 3);
    const list = order.map((at) => `${signed(sum[at])} from ${placeName(at, contextGrid(), layer().contextGrid.length)}`);
    byId("status").textContent = `Query at ${name}${state.pinned ? ", pinned" : ""}. Largest sums of head ${state.head + 1}: ${list.join("; ")}.`;
  }, 120);
}

function readOut() {
  const at = state.cursor;
  if (at === null) return void (byId("readout").textContent = "\u00a0");
  const [content, position, sum] = PARTS.map((part) => signed(oneHead(shown[part], state.head)[at]));
  const from = placeName(at, contextGrid(), layer().contextGrid.length);
  byId("readout").textContent = `From ${from}: content ${content}, position ${position}, sum ${sum}`;
}

// --- what the reader does ----------------------------------------------------------------------------------------

function select(query) {
  state.query = query;
  if (query >= layer().prefix) state.slice = coordinates(query - layer().prefix, grid())[0];
  showSlice();
  draw();
}

function showSlice() {
  byId("slice").value = String(state.slice);
  byId("slice-number").textContent = String(state.slice);
}

/** The position under a pointer, prefix tokens counted first. */
function under(event, shape) {
  const box = event.currentTarget.getBoundingClientRect(), [, H, W] = shape;
  const cell = (at, size, count) => Math.max(0, Math.min(count - 1, Math.floor((at / size) * count)));
  const y = cell(event.clientY - box.top, box.height, H), x = cell(event.clientX - box.left, box.width, W);
  return layer().prefix + (state.slice * H + y) * W + x;
}

function pin(pinned) {
  state.pinned = pinned;
  draw();
}

const STEPS = { ArrowLeft: [0, 0, -1], ArrowRight: [0, 0, 1], ArrowUp: [0, -1, 0], ArrowDown: [0, 1, 0], PageUp: [-1, 0, 0], PageDown: [1, 0, 0] };

/** Where a key leads from a position of a grid, prefix tokens counted first; null for other keys. */
function moved(event, from, shape) {
  const [D, H, W] = shape, p = layer().prefix, middle = [state.slice, H >> 1, W >> 1];
  const step = D === 1 && event.key.startsWith("Page") ? undefined : STEPS[event.key];
  if (!step && event.key !== "Home") return null;
  event.preventDefault();
  const place = from === null || from < p ? middle : coordinates(from - p, shape);
  const to = step ? place.map((at, axis) => Math.max(0, Math.min(shape[axis] - 1, at + step[axis]))) : [D >> 1, H >> 1, W >> 1];
  return p + (to[0] * H + to[1]) * W + to[2];
}

function onQueryKey(event) {
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    return pin(!state.pinned);
  }
  const to = moved(event, state.query, grid());
  return to === null ? undefined : select(to);
}

function onMapKey(event) {
  const to = moved(event, state.cursor, contextGrid());
  if (to === null) return;
  state.slice = coordinates(to - layer().prefix, contextGrid())[0];
  showSlice();
  point(to, true);
}

function setLayer(index) {
  const before = data.layers[state.layer], place = state.query < before.prefix ? null : coordinates(state.query - before.prefix, threeAxes(before.grid));
  const old = threeAxes(before.grid);
  state.layer = index;
  state.head = Math.min(state.head, layer().heads - 1);
  state.depth = Math.min(state.depth, layer().depth - 1);
  state.cursor = null;
  const now = grid();
  // The same place of the image on another grid.
  const [z, y, x] = now.map((size, axis) => Math.min(size - 1, Math.floor(((place ? place[axis] + 0.5 : old[axis] / 2) * size) / old[axis])));
  state.query = place === null && layer().prefix > state.query ? state.query : layer().prefix + (z * now[1] + y) * now[2] + x;
  const numbers = (count, name) => Array.from({ length: count }, (_, at) => element("option", { value: String(at), textContent: `${name}${at + 1}` }));
  byId("head").replaceChildren(...numbers(layer().heads, ""));
  byId("depth").replaceChildren(...numbers(layer().depth, ""));
  byId("head").value = String(state.head);
  byId("depth").value = String(state.depth);
  byId("depth-label").hidden = layer().depth === 1;
  byId("slice-label").hidden = byId("hint-slice").hidden = now[0] === 1;
  byId("slice").max = String(Math.max(now[0], contextGrid()[0]) - 1);
  byId("overlay-label").hidden = !pictured();
  document.querySelector(".stage").classList.toggle("strips", isStrip(now));
  byId("heads").classList.toggle("strips", isStrip(contextGrid()));
  byId("heads").replaceChildren(...Array.from({ length: layer().heads }, (_, head) =>
    element("button", { type: "button", onclick: () => setHead(head) }, element("span", { textContent: `head ${head + 1}` }), element("canvas"))));
  byId("tokens").replaceChildren(...Array.from({ length: layer().prefix }, (_, token) =>
    element("button", { type: "button", value: String(token), textContent: `prefix token ${token + 1}`, onclick: () => { state.pinned = true; select(token); } })));
  byId("layer-note").textContent = (layer().local ? "Dashed: the scope, outside of which there is no position weight. " : "") +
    (layer().depth > 1 ? `This layer has u = ${layer().depth} values for each position, each with weights of its own.` : "");
  select(state.query);
  showTable(layer());
}

function setHead(head) {
  state.head = head;
  byId("head").value = String(head);
  draw();
}

function listen() {
  byId("layer").addEventListener("change", (event) => setLayer(Number(event.target.value)));
  byId("head").addEventListener("change", (event) => setHead(Number(event.target.value)));
  byId("depth").addEventListener("change", (event) => { state.depth = Number(event.target.value); draw(); });
  byId("slice").addEventListener("input", (event) => { state.slice = Number(event.target.value); showSlice(); draw(); });
  for (const id of ["own", "weighted", "overlay"]) byId(id).addEventListener("change", draw);
  const query = byId("query");
  query.addEventListener("pointermove", (event) => {
    const at = under(event, grid());
    if (!state.pinned && at !== state.query) select(at);
  });
  query.addEventListener("click", (event) => {
    const at = under(event, grid());
    state.pinned = !(state.pinned && at === state.query);
    select(at);
  });
  query.addEventListener("keydown", onQueryKey);
  for (const canvas of document.querySelectorAll("[data-part]")) {
    // A tap sends no pointermove, and what it reads stays when the finger is lifted.
    for (const type of ["pointerdown", "pointermove"]) canvas.addEventListener(type, (event) => point(under(event, contextGrid())));
    canvas.addEventListener("pointerleave", (event) => event.pointerType === "touch" || point(null));
    canvas.addEventListener("keydown", onMapKey);
  }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") { state.cursor = null; pin(false); } });
}

/** Read the weights of a context position; read aloud where a key chose it, not for every cell that a pointer crosses. */
function point(at, aloud = false) {
  byId("readout").setAttribute("aria-live", aloud ? "polite" : "off");
  if (at === state.cursor) return;
  state.cursor = at;
  draw();
}

/** The maps of one query, from the middle of the grid; of a graph, from a node with edges to it. */
function startMaps() {
  byId("layer").replaceChildren(...data.layers.map((one, at) => element("option", { value: String(at), textContent: `${one.name} (${one.grid.join(" x ")})` })));
  const [D, H, W] = grid(), middle = layer().prefix + ((D >> 1) * H + (H >> 1)) * W + (W >> 1);
  const targets = layer().edges ? layer().edges[0] : [];
  state.query = targets.reduce((best, at) => (best === null || Math.abs(at - middle) < Math.abs(best - middle) ? at : best), null) ?? middle;
  listen();
  setLayer(0);
}

function start() {
  readPalette();
  startTables();
  if (data.layers.length) startMaps();
  let waiting = 0;
  const redraw = () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(() => { readPalette(); if (shown) draw(); drawTable(); drawDecision(); }); };
  window.addEventListener("resize", redraw);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  document.documentElement.dataset.ready = "true";
}

if (data.picture) {
  const image = new Image();
  image.onload = () => { background = image; start(); };
  image.src = data.picture.src;
} else {
  start();
}
