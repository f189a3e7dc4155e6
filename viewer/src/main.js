import { select } from "d3-selection";
import { comparable, difference, examples as readExamples, find, graphIn, index as readIndex, missing, nameOf } from "./data.js";
import { detail } from "./detail.js";
import { laneRoom, lanes, placed, shapes, sideOf, stacked } from "./layout.js";
import { ordered } from "./order.js";
import { Panel } from "./panel.js";
import { drawnEdges, keptEdges, keptNodes } from "./prune.js";
import { DEFAULTS, hashOf, parsed, remember } from "./state.js";
import { edgesFile, nodesFile, save, tables } from "./tables.js";
import { percent, width as widthOf } from "./text.js";
import { ablated, counts, leftOut, summary } from "./told.js";
import { step } from "./walk.js";

const root = document.documentElement;
const at = (id) => document.getElementById(id);
const page = readIndex();
const examples = readExamples();
const state = parsed(location.hash);
const told = {
  pictures: examples,
  chosen: (node, panel) => choose(node < 0 ? "" : nameOf(panel.scene.graph, node)),
  moved: (leader, transform) => panels.forEach((panel) => {
    if (panel !== leader && panel.scene && !panel.root.node().hidden) panel.follow(transform);
  }),
};
const panels = [...document.querySelectorAll(".panel")].map((root, k) => new Panel(root, k, told));
const differences = new Map();
const orders = new Map();
const DEEP = 9;
const ZOOMS = { "+": 1.5, "=": 1.5, "-": 1 / 1.5, 0: 0 };
let classes = [];
let last = "";

// The classes -------------------------------------------------------------------------------------

/** All classes by name, each with the place of its graph in every panel. */
function gather() {
  const found = new Map();
  page.panels.forEach((panel, place) => panel.graphs.forEach((graph, k) => {
    if (!found.has(graph.name)) found.set(graph.name, { name: graph.name, at: [], accuracy: [] });
    const one = found.get(graph.name);
    one.at[place] ??= k;
    if (graph.accuracy !== undefined) one.accuracy.push(graph.accuracy);
  }));
  return [...found.values()];
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

function sorted() {
  const list = [...classes];
  const order = new Intl.Collator("en", { numeric: true });
  if (state.sort === "name") list.sort((a, b) => order.compare(a.name, b.name));
  if (state.sort === "accuracy") {
    const value = (one) => (one.accuracy.length ? mean(one.accuracy) : Infinity);
    list.sort((a, b) => value(a) - value(b) || order.compare(a.name, b.name));
  }
  return list;
}

function fillPicker() {
  select(at("class")).selectAll("option").data(sorted(), ({ name }) => name).join("option").order()
    .attr("value", ({ name }) => name)
    .text(({ name, accuracy }) => (accuracy.length ? `${name} (${accuracy.map((a) => percent(a)).join(", ")})` : name));
  at("class").value = state.class;
}

// The graphs --------------------------------------------------------------------------------------

/** What each panel is to show: [{name, graph}]; the graph is missing where a model lacks the class. */
function graphs() {
  const one = classes.find(({ name }) => name === state.class);
  const both = page.panels.map((panel, place) => ({
    name: panel.name,
    graph: one.at[place] === undefined ? null : graphIn(`graph-${place}-${one.at[place]}`),
    accuracy: one.at[place] === undefined ? undefined : panel.graphs[one.at[place]].accuracy,
  }));
  const [a, b] = both;
  const possible = Boolean(b && a.graph && b.graph && comparable(a.graph, b.graph));
  for (const input of document.querySelectorAll("[name=view]")) input.disabled = !possible;
  if (!possible || state.view !== "difference") return both;
  if (!differences.has(state.class)) {
    differences.set(state.class, difference(a.graph, b.graph, `${b.name} \u2212 ${a.name}`));
  }
  return [{ name: `${b.name} \u2212 ${a.name}`, graph: differences.get(state.class) }];
}

/** The order of a graph's nodes, which takes a while, is kept for as long as the nodes are. */
function orderOf(graph, kept, isKept, key) {
  const known = orders.get(graph);
  if (known?.key === key) return known.layers;
  const layers = ordered(graph, kept, isKept);
  orders.set(graph, { key, layers });
  return layers;
}

function prune(shown) {
  const { graph } = shown;
  const chosen = state.node ? find(graph, state.node) : -1;
  const usual = keptNodes(graph, state.nodes / 100);
  const isUsual = chosen < 0 || usual[graph.layerOf[chosen]].includes(chosen);
  const kept = isUsual ? usual : keptNodes(graph, state.nodes / 100, chosen);
  const isKept = new Uint8Array(graph.relevance.length);
  for (const nodes of kept) for (const node of nodes) isKept[node] = 1;
  const layers = orderOf(graph, kept, isKept, `${state.nodes} ${isUsual ? "" : chosen}`);
  const edges = keptEdges(graph, isKept, state.edges / 100);
  const { drawn, possible } = drawnEdges(graph, edges, isKept, state.sign, chosen);
  return { ...shown, chosen, pinned: isUsual ? -1 : chosen, kept: layers, drawn, possible };
}

const pictureOf = (graph) => (node) =>
  Boolean(examples[graph.examples?.[nameOf(graph, node)]?.[0]]?.image);

/** Lay out what is pruned; all graphs of one layered shape share their rows. */
function scenes(pruned) {
  const room = panels[0].room;
  const gutter = Math.ceil(Math.min(
    Math.max(74, ...pruned.flatMap(({ graph }) => graph.layers.map(({ name }) => widthOf(name, 12, 600) + 14))),
    Math.max(84, 0.26 * room), 170,
  ));
  const stage = panels[pruned[0].place].root.select(".stage").node();
  const view = Math.max(420, window.innerHeight - stage.getBoundingClientRect().top - scrollY - 12);
  const laid = pruned.map((one) => ({ ...one, lanes: lanes(one.graph, one.drawn) }));
  const side = Math.max(...laid.map((one) => laneRoom(one.lanes.count)));
  const box = { width: room, gutter, left: gutter + 4, right: room - 8 - side, top: 8 };
  const shaped = (tight) => laid.map((one) => shapes(one.graph, one.kept, box.right - box.left, tight, pictureOf(one.graph)));
  const alike = laid.length < 2 || comparable(laid[0].graph, laid[1].graph);
  const stack = (all, least) => {
    const own = all.map((shapes) => shapes.map(({ height }) => height));
    const common = own[0].map((_, k) => Math.max(...own.map((heights) => heights[k])));
    return own.map((heights) => stacked(alike ? common : heights, view - 20, least));
  };
  // A deep network would be too long to look through with nodes as large as a shallow one has.
  const deep = Math.max(...laid.map(({ graph }) => graph.layers.length)) > DEEP;
  let all = shaped(deep ? 1 : 0);
  let stacks = stack(all, deep ? 38 : 34);
  const tall = Math.max(...stacks.map(({ height }) => height)) > view;
  at("fit").parentElement.hidden = !tall;
  const fitted = tall && state.fit === "1";
  for (let tight = 2; fitted && tight <= 5; tight += 1) {
    all = shaped(tight);
    stacks = stack(all, 9);
    if (Math.max(...stacks.map(({ height }) => height)) <= view) break;
  }
  box.height = Math.ceil(Math.max(view, ...stacks.map(({ height }) => height + 20)));
  return laid.map((one, k) => {
    const strongest = one.graph.layers.map(() => 0);
    one.graph.groups.forEach(({ start, stored, target }) => {
      if (stored) strongest[target] = Math.max(strongest[target], one.graph.edges.share[start]);
    });
    const pitch = stacks[k].height / Math.max(1, one.graph.layers.length - 1);
    const touching = one.drawn.filter((edge) =>
      one.graph.edges.source[edge] === one.chosen || one.graph.edges.target[edge] === one.chosen);
    return {
      ...one,
      box,
      side: Math.min(box.right, sideOf(all[k], box)),
      shapes: all[k],
      stack: { ...stacks[k], pitch },
      nodes: placed(one.graph, all[k], stacks[k], box),
      edges: one.drawn,
      touching,
      strongest,
      // Many edges, or many layers in little room, take thin lines.
      thickest: Math.max(2.4, 6.5 - one.drawn.length / 75) * (fitted ? 0.6 : 1),
      title: `Attribution graph of ${one.name}, class ${state.class}. Arrow keys walk, Escape clears.`,
    };
  });
}

/** What the two kinds of lines mean: of a difference, which model has more. */
function legend(shown) {
  const [first, second] = page.panels.map(({ name }) => name);
  const differs = shown[0].graph?.differs;
  at("legend-up").textContent = differs ? `more in ${second}` : "speaks for the class";
  at("legend-down").textContent = differs ? `more in ${first}` : "speaks against it";
  document.querySelector("[for=sign-positive]").textContent = differs ? "more" : "for";
  document.querySelector("[for=sign-negative]").textContent = differs ? "less" : "against";
}

// Drawing -----------------------------------------------------------------------------------------

function update() {
  const key = [state.class, state.view].join("\n");
  const fresh = key !== last;
  last = key;
  const shown = graphs();
  panels.forEach((panel, k) => panel.root.attr("hidden", k < shown.length ? null : ""));
  at("panels").classList.toggle("two", shown.length === 2);
  for (const [k, { name, graph }] of shown.entries()) {
    const { root } = panels[k];
    root.select("h2").text(name);
    root.classed("lacking", !graph);
    root.select(".lack").text(graph ? "" : `${name} has no graph of class ${state.class}.`);
    root.select(".counts").text("");
  }
  const pruned = shown.map((one, place) => ({ ...one, place })).filter(({ graph }) => graph).map(prune);
  for (const one of pruned) {
    // The words first: how many lines they take decides on the room for the graph.
    panels[one.place].root.select(".counts").text(counts(one));
    panels[one.place].root.select(".more").text(ablated(one));
  }
  legend(shown);
  root.style.setProperty("--bar", `${at("controls").offsetHeight}px`);
  const made = scenes(pruned);
  for (const scene of made) panels[scene.place].show({ ...scene, fresh });
  const nodeOf = new Map(made.map((scene) => [scene.place, scene]));
  const link = (node) => hashOf({ ...state, node });
  detail(at("detail"), shown.map((one, k) => ({
    ...one,
    leftOut: one.graph && leftOut(one.graph),
    node: nodeOf.get(k)?.chosen ?? -1,
    drawnNodes: nodeOf.get(k)?.nodes,
  })), examples, link);
  current = { made, shown };
  if (at("tables").open) tables(at("tables"), made);
  say(summary(made, shown));
  remember(state);
}

let current;
let saying;

/** Tell a screen reader, once things have come to rest. */
function say(text) {
  clearTimeout(saying);
  saying = setTimeout(() => (at("told").textContent = text), 300);
}

function showControls() {
  fillPicker();
  at("sort").value = state.sort;
  for (const name of ["nodes", "edges"]) {
    at(name).value = state[name];
    at(`${name}-value`).value = `${state[name]}%`;
  }
  for (const name of ["sign", "view"]) {
    for (const input of document.querySelectorAll(`[name=${name}]`)) input.checked = input.value === state[name];
  }
  at("fit").checked = state.fit === "1";
  at("find").value = state.node;
}

// Choosing ----------------------------------------------------------------------------------------

function choose(node) {
  state.node = node;
  at("find").value = node;
  at("missing").textContent = "";
  update();
}

/** Choose the node that was typed, or say what there is instead. */
function seek(text) {
  const wanted = text.trim();
  if (!wanted) return choose("");
  const all = current.made.map(({ graph }) => graph);
  const graph = all.find((one) => find(one, wanted) >= 0);
  if (graph) {
    choose(nameOf(graph, find(graph, wanted)));
    return at("detail").scrollTo(0, 0);
  }
  at("missing").textContent = all.length ? missing(all[0], wanted) : "";
  return undefined;
}

/** The panel that the keys are for: the one with the focus, or else the first with the node. */
function leading(target) {
  const made = current.made;
  return (
    made.find(({ place }) => panels[place].root.node().contains(target)) ??
    made.find(({ chosen }) => chosen >= 0) ?? made[0]
  );
}

function walk(event) {
  const scene = leading(event.target);
  if (!scene) return;
  const { message } = scene.graph.edges;
  const wanted = (edge) => state.sign === "both" || (state.sign === "positive") === message[edge] > 0;
  const next = step(scene, scene.chosen, event.key, wanted);
  event.preventDefault();
  if (next < 0) return;
  choose(nameOf(scene.graph, next));
  reveal(scene.place);
}

/** Bring the chosen node into sight where the page is taller than the window. */
function reveal(place) {
  const node = panels[place].svg.select(".chosen").node();
  const frame = node?.getBoundingClientRect();
  if (!frame) return;
  const bar = at("controls").offsetHeight;
  if (frame.top < bar + 8) scrollBy(0, frame.top - bar - 60);
  else if (frame.bottom > innerHeight - 24) scrollBy(0, frame.bottom - innerHeight + 80);
}

function pressed(event) {
  if (event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey) return;
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (event.key === "Escape") {
    if (state.node || at("find").value) choose("");
  } else if (typing) return;
  else if (event.key.startsWith("Arrow")) {
    // Elsewhere than in the graph, arrows scroll the page unless a node is chosen.
    if (state.node || event.target.closest?.("svg.graph")) walk(event);
  } else if (event.key === "/") {
    event.preventDefault();
    at("find").focus();
    at("find").select();
  } else if (Object.hasOwn(ZOOMS, event.key)) zoomBy(ZOOMS[event.key]);
}

const zoomBy = (factor) => current.made[0] && panels[current.made[0].place].zoomBy(factor);

// Start -------------------------------------------------------------------------------------------

function settle() {
  DEFAULTS.class = classes[0].name;
  if (!classes.some(({ name }) => name === state.class)) state.class = classes[0].name;
  if (page.panels.length < 2) state.view = "both";
}

function listen() {
  const change = (key, value) => {
    state[key] = value;
    showControls();
    update();
  };
  at("class").addEventListener("change", (event) => change("class", event.target.value));
  at("sort").addEventListener("change", (event) => change("sort", event.target.value));
  let frame;
  for (const name of ["nodes", "edges"]) {
    at(name).addEventListener("input", (event) => {
      state[name] = Number(event.target.value);
      at(`${name}-value`).value = `${state[name]}%`;
      cancelAnimationFrame(frame);
      frame = requestAnimationFrame(update);
    });
  }
  for (const name of ["sign", "view"]) {
    for (const input of document.querySelectorAll(`[name=${name}]`)) {
      input.addEventListener("change", () => change(name, input.value));
    }
  }
  at("fit").addEventListener("change", (event) => change("fit", event.target.checked ? "1" : "0"));
  at("search").addEventListener("submit", (event) => {
    event.preventDefault();
    seek(at("find").value);
  });
  for (const button of document.querySelectorAll("[data-zoom]")) {
    button.addEventListener("click", () => zoomBy(ZOOMS[button.dataset.zoom]));
  }
  at("detail").addEventListener("click", (event) => {
    const link = event.target.closest("a[data-go]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    choose(link.dataset.go);
    at("detail").scrollTo(0, 0);
  });
  at("tables").addEventListener("toggle", update);
  at("nodes-csv").addEventListener("click", () => save("nodes.csv", nodesFile(current.made)));
  at("edges-csv").addEventListener("click", () => save("edges.csv", edgesFile(current.made)));
  addEventListener("keydown", pressed);
  addEventListener("hashchange", () => {
    Object.assign(state, parsed(location.hash));
    settle();
    showControls();
    update();
  });
  let resizing;
  addEventListener("resize", () => {
    cancelAnimationFrame(resizing);
    resizing = requestAnimationFrame(update);
  });
  const redraw = (density) => current.made.forEach(({ place }) => panels[place].draw(density));
  // A window that moves to a denser screen keeps its size.
  const denser = () => {
    redraw();
    matchMedia(`(resolution: ${devicePixelRatio}dppx)`).addEventListener("change", denser, { once: true });
  };
  denser();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw());
  addEventListener("beforeprint", () => {
    root.classList.add("printing");
    redraw(3);
  });
  addEventListener("afterprint", () => {
    root.classList.remove("printing");
    redraw();
  });
}

classes = gather();
at("sort").parentElement.hidden = classes.length < 2;
settle();
root.classList.add("js");
showControls();
update();
listen();
requestAnimationFrame(() => requestAnimationFrame(() => (root.dataset.drawn = Math.round(performance.now()))));
