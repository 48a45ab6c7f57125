// From the packed arrays of a layer to the weights S of one query; no drawing here.
"use strict";

const halves = (() => {
  const table = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    const exponent = (bits >> 10) & 31, fraction = bits & 1023;
    const size = exponent === 0 ? fraction * 2 ** -24 : exponent === 31 ? NaN : (1 + fraction / 1024) * 2 ** (exponent - 15);
    table[bits] = bits & 32768 ? -size : size;
  }
  return table;
})();

/** Float32Array of an array that Python packed. */
function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed.data), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const half = packed.type === "float16";
  const values = new Float32Array(bytes.length / (half ? 2 : 4));
  const slice = values.length / packed.scale.length;
  for (let i = 0; i < values.length; i++) {
    const value = half ? halves[view.getUint16(2 * i, true)] : view.getFloat32(4 * i, true);
    values[i] = value * packed.scale[Math.floor(i / slice)];
  }
  return values;
}

/** The arrays of a layer, unpacked when it is first shown. */
function arraysOf(layer) {
  if (!layer.unpacked) {
    layer.unpacked = Object.fromEntries(Object.entries(layer.arrays).map(([name, packed]) => [name, unpack(packed)]));
  }
  return layer.unpacked;
}

/** Shapes with fewer than three axes get axes of 1 in front: [depth, height, width]. */
const threeAxes = (shape) => [1, 1, ...shape].slice(-3);

/** Weights of one query: content and position, each heads x u x context positions, flat. */
function weightsOf(layer, query) {
  const { heads: h, depth: u, key: k, queries: n, context: m } = layer;
  const arrays = arraysOf(layer);
  const q = Array.from({ length: h }, (_, head) => arrays.query.subarray((head * n + query) * k, (head * n + query + 1) * k));
  const content = contentOf(layer, arrays, q, query), position = new Float32Array(h * u * m);
  if (arrays.embedding) fromEdges(layer, arrays, q, query, position);
  else if (arrays.table) fromTable(layer, arrays, q, query, position);
  for (let row = 0; row < h * u; row++) {
    for (let at = 0; at < m; at++) {
      if (layer.visible && !layer.visible[at]) position[row * m + at] = 0; // masked keys are 0 already
      if (arrays.logsumexp && at > query) position[row * m + at] = 0;
    }
  }
  return { content, position };
}

function contentOf(layer, arrays, q, query) {
  const { heads: h, depth: u, key: k, queries: n, context: m } = layer;
  const content = new Float32Array(h * u * m), key = new Float32Array(k);
  for (let d = 0; d < u; d++) {
    for (let at = 0; at < m; at++) {
      if (arrays.logsumexp && at > query) break;
      if (layer.graph && layer.graph[at] !== layer.graph[query]) continue;
      for (let i = 0; i < k; i++) {
        const value = arrays.key[(d * m + at) * k + i];
        key[i] = arrays.logsumexp ? Math.exp(value - arrays.logsumexp[(d * n + query) * k + i]) : value;
      }
      for (let head = 0; head < h; head++) content[(head * u + d) * m + at] = dot(q[head], key, 0, 1, k);
    }
  }
  return content;
}

/** Σ_i query[i] · values[start + i · step]. */
function dot(query, values, start, step, k) {
  let sum = 0;
  for (let i = 0; i < k; i++) sum += query[i] * values[start + i * step];
  return sum;
}

function fromTable(layer, arrays, q, query, position) {
  const { heads: h, depth: u, key: k, context: m, prefix: p } = layer;
  const [D, H, W] = threeAxes(layer.grid), [dE, hE, wE] = threeAxes(layer.extents);
  const offsets = dE * hE * wE, place = query - p;
  const at = [Math.floor(place / (H * W)), Math.floor(place / W) % H, place % W];
  for (let head = 0; head < h; head++) {
    for (let d = 0; d < u; d++) {
      const out = (head * u + d) * m, base = d * k;
      for (let j = 0; j < p; j++) {
        position[out + j] = query < p
          ? dot(q[head], arrays.prefix_pairs, (base * p + query) * p + j, p * p, k)
          : dot(q[head], arrays.prefix_keys, base * p + j, p, k);
      }
      if (query < p) {
        position.fill(dot(q[head], arrays.prefix_queries, base * p + query, p, k), out + p, out + m);
        continue;
      }
      for (let z = 0; z < D; z++) {
        const oz = z - at[0] + (dE >> 1);
        if (oz < 0 || oz >= dE) continue;
        for (let y = 0; y < H; y++) {
          const oy = y - at[1] + (hE >> 1);
          if (oy < 0 || oy >= hE) continue;
          for (let x = 0; x < W; x++) {
            const ox = x - at[2] + (wE >> 1);
            if (ox < 0 || ox >= wE) continue;
            const start = base * offsets + (oz * hE + oy) * wE + ox;
            position[out + p + (z * H + y) * W + x] = dot(q[head], arrays.table, start, offsets, k);
          }
        }
      }
    }
  }
}

function fromEdges(layer, arrays, q, query, position) {
  const { heads: h, depth: u, key: k, context: m } = layer;
  const [targets, sources] = layer.edges;
  targets.forEach((target, edge) => {
    if (target !== query) return;
    for (let head = 0; head < h; head++) {
      for (let d = 0; d < u; d++) {
        position[(head * u + d) * m + sources[edge]] += dot(q[head], arrays.embedding, edge * k * u + d, u, k);
      }
    }
  });
}
