// The same as a table, and as files.
import { select } from "d3-selection";
import { labelOf, nameOf } from "./data.js";
import { percent, points, short } from "./text.js";

const MOST_ROWS = 300;

function filled(table, heads, rows) {
  const box = select(table);
  box.select("thead").selectAll("tr").data([0]).join("tr")
    .selectAll("th").data(heads).join("th").attr("scope", "col").text((text) => text);
  box.select("tbody").selectAll("tr").data(rows.slice(0, MOST_ROWS)).join("tr")
    .selectAll("td").data((row) => row).join("td").text((text) => text);
}

/** Fill both tables with what is drawn. scenes: [{name, graph, nodes, edges}]. */
export function tables(root, scenes) {
  const nodes = [];
  const edges = [];
  for (const { name, graph, nodes: kept, edges: drawn } of scenes) {
    const { source, target, message, share } = graph.edges;
    const value = (number) => (graph.differs ? points(number) : short(number));
    for (const layer of [...graph.layers].reverse()) {
      for (const unit of layer.ranked) {
        const node = layer.start + unit;
        if (!kept.has(node)) continue;
        const size = Math.abs(graph.relevance[node]);
        nodes.push([
          name,
          nameOf(graph, node),
          layer.labels ? labelOf(graph, node) : "",
          value(graph.relevance[node]),
          percent(size / (layer.total || 1)),
          layer.ablation ? short(layer.ablation[unit]) : "",
        ]);
      }
    }
    for (const edge of [...drawn].reverse()) {
      edges.push([name, nameOf(graph, source[edge]), nameOf(graph, target[edge]), value(message[edge]), percent(share[edge])]);
    }
  }
  filled(root.querySelector(".nodes-table"), ["model", "node", "label", "R", "of |R| in the layer", "ablating it"], nodes);
  filled(root.querySelector(".edges-table"), ["model", "from", "to", "message", "of |message| into the layer"], edges);
  for (const [kind, rows] of [["nodes", nodes], ["edges", edges]]) {
    root.querySelector(`.${kind}-more`).textContent =
      rows.length > MOST_ROWS ? `The first ${MOST_ROWS} of ${rows.length}; the file has all.` : "";
  }
}

/** A field of a CSV file; one that a spreadsheet would run as a formula is made plain text. */
function field(value) {
  let text = String(value ?? "");
  if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

const csv = (rows) => `${rows.map((row) => row.map(field).join(",")).join("\r\n")}\r\n`;

/** All nodes of the graphs, kept or not. */
export function nodesFile(scenes) {
  const rows = [["model", "class", "layer", "unit", "label", "relevance", "ablation", "shown"]];
  for (const { name, graph, nodes } of scenes) {
    for (const layer of graph.layers) {
      for (let unit = 0; unit < layer.units; unit += 1) {
        const node = layer.start + unit;
        rows.push([
          name, graph.name, layer.name, unit, layer.labels?.[unit] ?? "",
          graph.relevance[node], layer.ablation?.[unit] ?? "", Number(nodes.has(node)),
        ]);
      }
    }
  }
  return csv(rows);
}

/** All edges that the page holds, drawn or not. */
export function edgesFile(scenes) {
  const rows = [["model", "class", "from", "to", "message", "drawn"]];
  for (const { name, graph, edges } of scenes) {
    const drawn = new Set(edges);
    const { source, target, message } = graph.edges;
    for (let edge = 0; edge < message.length; edge += 1) {
      rows.push([name, graph.name, nameOf(graph, source[edge]), nameOf(graph, target[edge]), message[edge], Number(drawn.has(edge))]);
    }
  }
  return csv(rows);
}

export function save(name, content) {
  const address = URL.createObjectURL(new Blob([content], { type: "text/csv" }));
  const link = document.createElement("a");
  link.href = address;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
