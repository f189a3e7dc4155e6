// The column at the side: the chosen node, or else the class.
import { select } from "d3-selection";
import { labelOf, nameOf } from "./data.js";
import { count, fitted, percent, plural, points, short } from "./text.js";

const BARS = 12;
const PICTURES = 10;
const NAME = 96;

/** shown: [{name, graph, node}] of the panels. link: the address of a node. */
export function detail(root, shown, examples, link) {
  const box = select(root);
  box.selectAll("*").remove();
  const found = shown.filter(({ node }) => node >= 0);
  if (found.length) chosen(box, shown, found, examples, link);
  else overview(box, shown);
}

function chosen(box, shown, found, examples, link) {
  const { graph, node } = found[0];
  const layer = graph.layers[graph.layerOf[node]];
  const head = box.append("h2").attr("id", "detail-title").text(nameOf(graph, node));
  if (layer.labels) head.append("span").attr("class", "unit").text(labelOf(graph, node));
  const kinds = [layer.kind, `${count(layer.units)} units`].filter(Boolean);
  box.append("p").attr("class", "note").text(kinds.join(", "));
  for (const one of shown) {
    const part = box.append("section");
    if (shown.length > 1 || one.graph?.differs) part.append("h3").text(one.name);
    if (!one.graph || one.node < 0) {
      part.append("p").attr("class", "note").text("No such node in this graph.");
    } else {
      about(part, one);
      pictures(part, one, examples);
      bars(part, one, "in", link);
      bars(part, one, "out", link);
    }
  }
}

function about(part, { graph, node }) {
  const layer = graph.layers[graph.layerOf[node]];
  const unit = node - layer.start;
  const value = graph.relevance[node];
  const facts = part.append("dl").attr("class", "facts");
  const fact = (term, text) => {
    facts.append("dt").text(term);
    facts.append("dd").text(text);
  };
  if (graph.differs) {
    fact("share of |R|", `${points(value)} of the layer`);
    return;
  }
  const rank = layer.ranked.indexOf(unit) + 1;
  fact("relevance R", `${short(value)}, ${percent(Math.abs(value) / (layer.total || 1))} of |R| here`);
  fact("rank", `${count(rank)} of ${count(layer.units)}`);
  const effect = layer.ablation?.[unit];
  if (effect !== undefined && effect !== null) {
    ablation(part, effect, layer.random);
  }
  const sinks = Object.entries(layer.sinks);
  if (sinks.length) {
    const output = Math.abs(graph.output);
    const share = (sum) => (output ? ` (${percent(sum / output)})` : "");
    fact("leaves the layer", sinks.map(([name, sum]) => `${name} ${short(sum)}${share(sum)}`).join(", "));
  }
}

const signed = (value) => (value > 0 ? "+" : "") + short(value);

/** The measured effect of a node above that of a random one, on one scale. */
function ablation(part, effect, random) {
  const most = Math.max(Math.abs(effect), Math.abs(random ?? 0)) || 1;
  part.append("h4").text("Ablating changes the output by");
  const list = part.append("ul").attr("class", "bars");
  for (const [name, value, kind] of [["this node", effect, "this"], ["a random one", random, "random"]]) {
    if (value === undefined) continue;
    const item = list.append("li");
    item.append("span").attr("class", "name").text(name);
    item.append("span").attr("class", "value").text(signed(value));
    item.append("span").attr("class", "room").append("span").attr("class", `bar ${kind}`)
      .style("width", `${(100 * Math.abs(value)) / most}%`);
  }
}

function pictures(part, { graph, node }, examples) {
  const places = (graph.examples?.[nameOf(graph, node)] ?? []).slice(0, PICTURES);
  if (!places.length) return;
  part.append("h4").text("Examples with most relevance here");
  const list = part.append("ul").attr("class", places.some((k) => examples[k].image) ? "examples" : "sentences");
  for (const example of places.map((k) => examples[k])) {
    const item = list.append("li");
    if (example.image) {
      item.append("img").attr("src", example.image).attr("alt", example.caption).attr("title", example.caption);
    } else item.text(example.caption);
  }
}

function bars(part, { graph, node, drawnNodes }, way, link) {
  const edges = way === "in" ? graph.incoming(node) : graph.outgoing(node);
  const far = way === "in" ? graph.edges.source : graph.edges.target;
  if (!edges.length) return;
  const { message } = graph.edges;
  const size = (list) => list.reduce((sum, edge) => sum + Math.abs(message[edge]), 0);
  const listed = edges.subarray(0, BARS);
  const held = percent(size(listed) / (size(edges) || 1));
  part.append("h4").text(way === "in" ? "Edges in" : "Edges out");
  if (edges.length > BARS) {
    part.append("p").attr("class", "note").text(`the ${BARS} largest of ${count(edges.length)}, ${held} of |message|`);
  }
  const list = part.append("ul").attr("class", "bars");
  const most = Math.abs(message[edges[0]]) || 1;
  for (const edge of listed) {
    const value = message[edge];
    const other = far[edge];
    const name = nameOf(graph, other);
    const label = graph.layers[graph.layerOf[other]].labels ? labelOf(graph, other) : "";
    const item = list.append("li");
    const anchor = item.append("a").attr("class", "name").attr("href", link(name)).attr("data-go", name)
      .attr("title", name).text(fitted(name, NAME, 12, 400, 0));
    if (label) anchor.append("span").attr("class", "unit").text(` ${label}`);
    if (!drawnNodes.has(other)) anchor.attr("title", `${name}, not among the nodes kept`);
    item.append("span").attr("class", "value").text(graph.differs ? points(value) : short(value));
    item.append("span").attr("class", "room").append("span").attr("class", `bar ${value < 0 ? "down" : "up"}`)
      .style("width", `${(100 * Math.abs(value)) / most}%`);
  }
}

function overview(box, shown) {
  box.append("h2").attr("id", "detail-title").text("This class");
  box.append("p").attr("class", "note").text("Choose a node to see its edges, its examples and what ablating it does.");
  for (const { name, graph, accuracy, leftOut } of shown) {
    if (!graph) continue;
    const part = box.append("section");
    if (shown.length > 1 || graph.differs) part.append("h3").text(name);
    if (graph.differs) {
      part.append("p").text(
        "How much more of |R| in its layer a node holds in one model than in the other, of all nodes that one of them keeps. Units are matched by number, which means something only where both models grew from the same initial weights.",
      );
      continue;
    }
    const facts = part.append("dl").attr("class", "facts");
    const fact = (term, text) => {
      facts.append("dt").text(term);
      facts.append("dd").text(text);
    };
    fact("samples", count(graph.samples));
    fact("mean output", short(graph.output));
    if (accuracy !== undefined) fact("accuracy", percent(accuracy));
    if (graph.validation) part.append("p").attr("class", "note").text(validation(graph));
    if (leftOut) part.append("p").attr("class", "note").text(leftOut);
    leaks(part, graph);
  }
}

export function validation(graph) {
  const { share, drop, random, spread, seeds } = graph.validation;
  const output = Math.abs(graph.output);
  const fall = (value) => (output ? percent(-value / output) : short(-value));
  const size = output ? percent(spread / output) : short(spread);
  return `Without the nodes that hold ${percent(share)} of |R| the output changes by ${fall(drop)}, without as many random nodes by ${fall(random)} \u00b1 ${size} (${plural(seeds, "seed")}).`;
}

/** What leaves the graph on the way from the output to the inputs. */
function leaks(part, graph) {
  const names = [...new Set(graph.layers.flatMap((layer) => Object.keys(layer.sinks)))];
  const layers = graph.layers.filter((layer) => Object.keys(layer.sinks).length).reverse();
  if (!names.length) return;
  const output = Math.abs(graph.output);
  const table = part.append("table").attr("class", "numbers leaks");
  table.append("caption").text(`Relevance that leaves the graph, ${output ? "in % of the output" : "by layer"}`);
  const head = table.append("thead").append("tr");
  head.append("th").attr("scope", "col").text("layer");
  for (const name of names) head.append("th").attr("scope", "col").text(name);
  const body = table.append("tbody");
  for (const layer of layers) {
    const row = body.append("tr");
    row.append("th").attr("scope", "row").text(layer.name);
    for (const name of names) {
      const value = layer.sinks[name];
      row.append("td").text(value === undefined ? "" : output ? percent(value / output) : short(value));
    }
  }
}
