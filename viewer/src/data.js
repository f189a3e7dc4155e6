// The graphs that the page holds, read when they are first looked at.
const text = (id) => document.getElementById(id).textContent;
const read = new Map();

export const index = () => JSON.parse(text("graph-index"));
export const examples = () => JSON.parse(text("graph-examples"));

/** The graph in a data element; nodes and edges of all layers are numbered through. */
export function graphIn(id) {
  if (!read.has(id)) read.set(id, decode(JSON.parse(text(id))));
  return read.get(id);
}

function decode(raw) {
  let nodes = 0;
  const layers = raw.layers.map((layer, place) => {
    const start = nodes;
    nodes += layer.relevance.length;
    return { ...layer, place, start, units: layer.relevance.length };
  });
  return finish({
    ...raw,
    layers,
    relevance: Float64Array.from(layers.flatMap((layer) => layer.relevance)),
    groups: raw.edges.map((group) => ({
      ...group,
      message: Float64Array.from(group.message),
      stored: group.message.length,
    })),
  });
}

/** Fill in what can be told from layers, relevance and groups of edges. */
function finish(graph) {
  const { layers, relevance, groups } = graph;
  const layerOf = new Uint16Array(relevance.length);
  for (const layer of layers) {
    layerOf.fill(layer.place, layer.start, layer.start + layer.units);
    const sizes = relevance.subarray(layer.start, layer.start + layer.units).map(Math.abs);
    layer.total = sizes.reduce((sum, size) => sum + size, 0);
    layer.top = sizes.reduce((most, size) => Math.max(most, size), 0);
    // Strongest first; among equals the lower number.
    layer.ranked = [...sizes.keys()].sort((a, b) => sizes[b] - sizes[a] || a - b);
  }
  const total = groups.reduce((sum, group) => sum + group.stored, 0);
  const edges = {
    source: new Int32Array(total),
    target: new Int32Array(total),
    message: new Float64Array(total),
    share: new Float64Array(total),
    group: new Uint16Array(total),
  };
  // An edge's share is of all that leads into its layer, be it from one layer or from several.
  const into = layers.map(({ place }) =>
    groups.reduce((sum, group) => sum + (group.target === place ? group.total : 0), 0) || 1,
  );
  let edge = 0;
  groups.forEach((group, place) => {
    group.start = edge;
    for (let k = 0; k < group.stored; k += 1, edge += 1) {
      edges.source[edge] = layers[group.source].start + group.from[k];
      edges.target[edge] = layers[group.target].start + group.to[k];
      edges.message[edge] = group.message[k];
      edges.share[edge] = Math.abs(group.message[k]) / into[group.target];
      edges.group[edge] = place;
    }
  });
  const order = [...edges.message.keys()].sort(
    (a, b) => Math.abs(edges.message[b]) - Math.abs(edges.message[a]) || a - b,
  );
  return {
    ...graph,
    layerOf,
    edges,
    into,
    incoming: gathered(order, edges.target, relevance.length),
    outgoing: gathered(order, edges.source, relevance.length),
  };
}

/** For each node the edges at it, the largest first. */
function gathered(order, end, nodes) {
  const first = new Int32Array(nodes + 1);
  for (const node of end) first[node + 1] += 1;
  for (let k = 0; k < nodes; k += 1) first[k + 1] += first[k];
  const next = first.slice();
  const list = new Int32Array(order.length);
  for (const edge of order) list[next[end[edge]]++] = edge;
  return (node) => list.subarray(first[node], first[node + 1]);
}

export const unitOf = (graph, node) => node - graph.layers[graph.layerOf[node]].start;

export const nameOf = (graph, node) =>
  `${graph.layers[graph.layerOf[node]].name}:${unitOf(graph, node)}`;

export const labelOf = (graph, node) => {
  const layer = graph.layers[graph.layerOf[node]];
  return layer.labels?.[node - layer.start] ?? String(node - layer.start);
};

/** The node with this name, or with this label; -1 where there is none. */
export function find(graph, wanted) {
  const colon = wanted.lastIndexOf(":");
  const layer = graph.layers.find(({ name }) => name === wanted.slice(0, colon));
  const unit = wanted.slice(colon + 1);
  if (colon >= 0 && layer && /^\d+$/.test(unit)) {
    return Number(unit) < layer.units ? layer.start + Number(unit) : -1;
  }
  const asked = wanted.toLowerCase();
  for (const { labels, start } of [...graph.layers].reverse()) {
    const place = labels?.findIndex((label) => label.toLowerCase() === asked) ?? -1;
    if (place >= 0) return start + place;
  }
  return -1;
}

/** Why there is no such node, and what there is. */
export function missing(graph, wanted) {
  const name = wanted.slice(0, Math.max(0, wanted.lastIndexOf(":"))) || wanted;
  const layer = graph.layers.find((one) => one.name === name);
  if (layer) return `${wanted} is not there: ${name} has units 0 to ${layer.units - 1}.`;
  const names = graph.layers.map((one) => one.name);
  const shown = names.length > 6 ? [...names.slice(0, 3), "\u2026", ...names.slice(-2)] : names;
  return `${wanted} is not there. A node is a layer and a unit, as ${names[0]}:0; layers: ${shown.join(", ")}.`;
}

export const comparable = (a, b) =>
  a.layers.length === b.layers.length &&
  a.layers.every((layer, k) => layer.name === b.layers[k].name && layer.units === b.layers[k].units);

/** The graph of b minus that of a, each as shares of |R| in a layer, of |message| into a layer. */
export function difference(a, b, name) {
  const layers = b.layers.map((layer) => ({
    ...layer,
    sinks: {},
    ablation: undefined,
    random: undefined,
  }));
  const relevance = b.relevance.map((value, node) => {
    const place = b.layerOf[node];
    return value / (b.layers[place].total || 1) - a.relevance[node] / (a.layers[place].total || 1);
  });
  const found = new Map();
  for (const [graph, sign] of [[b, 1], [a, -1]]) {
    for (const group of graph.groups) {
      const key = `${group.source}-${group.target}`;
      if (!found.has(key)) found.set(key, { source: group.source, target: group.target, sums: new Map() });
      const { sums } = found.get(key);
      const units = graph.layers[group.source].units;
      group.message.forEach((message, k) => {
        const pair = group.to[k] * units + group.from[k];
        sums.set(pair, (sums.get(pair) ?? 0) + (sign * message) / graph.into[group.target]);
      });
    }
  }
  const groups = [...found.values()].map(({ source, target, sums }) => {
    const pairs = [...sums].filter(([, value]) => value);
    pairs.sort(([p, x], [q, y]) => Math.abs(y) - Math.abs(x) || p - q);
    const units = b.layers[source].units;
    const message = Float64Array.from(pairs, ([, value]) => value);
    return {
      source,
      target,
      from: pairs.map(([pair]) => pair % units),
      to: pairs.map(([pair]) => Math.floor(pair / units)),
      message,
      stored: message.length,
      count: message.length,
      total: message.reduce((sum, value) => sum + Math.abs(value), 0),
    };
  });
  return finish({ name: b.name, title: name, differs: true, parts: [a, b], examples: b.examples, layers, relevance, groups });
}
