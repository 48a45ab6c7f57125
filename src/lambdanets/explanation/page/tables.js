// Pictures that follow no query: the tables of positions, and what matters for the decision.
"use strict";

let table = null; // the one that is shown
let tables = []; // of the layers with maps, then of those without

function startTables() {
  document.querySelector("h1").replaceChildren(...breakable(document.querySelector("h1").textContent));
  tables = [...data.layers.filter((one) => one.extents !== null), ...data.tables];
  byId("table-section").hidden = tables.length === 0;
  byId("table-label").hidden = tables.length < 2;
  byId("table-layer").replaceChildren(...tables.map((one, at) => element("option", { value: String(at), textContent: one.name })));
  byId("table-layer").addEventListener("change", (event) => showTable(tables[Number(event.target.value)]));
  for (const { name } of data.decision) {
    byId("decision").append(element("figure", {}, element("figcaption", {}, element("b", { textContent: name })), element("canvas"),
      element("div", { className: "legend" }, element("i", { className: "scale" }), element("span"), element("span"))));
  }
  showTable(tables[0]);
  drawDecision();
}

/** Names may break behind these letters, not in the middle of a word. */
const breakable = (text) => text.split(/(?<=[._/])/).flatMap((part) => [part, document.createElement("wbr")]);

/** Show the table of a layer; one that is not there, as of a layer without a table, leaves the present one. */
function showTable(one) {
  if (!tables.includes(one)) return;
  table = one;
  byId("table-layer").value = String(tables.indexOf(one));
  drawTable();
}

function drawTable() {
  if (table === null) return;
  const { name, extents, depth: u, key: k } = table, box = byId("table"), values = arraysOf(table).table;
  const [D, H, W] = threeAxes(extents), strip = isStrip([D, H, W]), limit = largest(values);
  byId("table-note").textContent = `E of ${name}: one picture for each of the ${k} channels of a query` +
    `${u > 1 ? ` and each of the ${u} values u of a position` : ""}, offsets of ${extents.join(" x ")} positions with offset 0 ` +
    `in the middle${D > 1 ? " (its middle slice)" : ""}; ` +
    `${limit ? `colours from −${short(limit)} to +${short(limit)}` : "all entries are 0"}. It is the same for every input.`;
  box.classList.toggle("strips", strip);
  box.replaceChildren();
  for (let at = 0; at < u * k; at++) {
    const canvas = element("canvas"), u_name = u > 1 ? `u ${Math.floor(at / k) + 1}, ` : "";
    box.append(element("figure", {}, element("figcaption", { textContent: `${u_name}channel ${(at % k) + 1}` }), canvas));
    const start = (at * D + (D >> 1)) * H * W;
    paint(fit(canvas, strip ? 0 : H / W, strip ? 14 : 0), values.subarray(start, start + H * W), H, W, limit);
  }
}

function drawDecision() {
  for (const [at, { map, ends, ratio }] of data.decision.entries()) {
    const values = unpack(map), [, rows, columns] = map.shape, figure = byId("decision").children[at];
    const context = fit(figure.querySelector("canvas"), ratio);
    showScale(figure.querySelector(".legend"), largest(values), ends);
    paintBackground(context, 0, 1, true, background !== null);
    context.imageSmoothingEnabled = true;
    paint(context, values, rows, columns, largest(values), true);
  }
}
