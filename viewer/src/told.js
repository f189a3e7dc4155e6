// What is said about the graphs in words.
import { nameOf } from "./data.js";
import { count, percent, plural, short } from "./text.js";

/** How much of a graph is shown. */
export function counts({ graph, kept, drawn: edges, possible }) {
  const shown = kept.reduce((sum, nodes) => sum + nodes.length, 0);
  const units = graph.relevance.length;
  const drawn = edges.length < possible ? `${count(edges.length)} of ${count(possible)} edges` : plural(edges.length, "edge");
  return `${count(shown)} of ${plural(units, "node")}, ${drawn}`;
}

/** How much of a graph is not in the page. */
export function leftOut(graph) {
  let all = 0;
  let held = 0;
  for (const group of graph.groups) {
    all += group.count;
    for (let edge = group.start; edge < group.start + group.stored; edge += 1) held += graph.edges.share[edge];
  }
  const missed = all - graph.edges.message.length;
  if (!missed) return "";
  const share = 1 - held / new Set(graph.groups.map(({ target }) => target)).size;
  return `This page holds the ${count(all - missed)} largest edges; the other ${count(missed)} hold ${percent(Math.max(0, share))} of |message|, as a mean over the layers.`;
}

/** What ablating the strongest nodes did, in one line. */
export function ablated({ graph }) {
  if (!graph.validation || !graph.output) return "";
  const fall = (value) => percent(-value / Math.abs(graph.output));
  return `without ${percent(graph.validation.share)} of |R|: output ${fall(graph.validation.drop)} (random nodes ${fall(graph.validation.random)})`;
}

/** What a screen reader is told. */
export function summary(scenes, shown) {
  const parts = scenes.map((scene) => `${scene.name}: ${counts(scene)}.`);
  const chosen = scenes.filter(({ chosen }) => chosen >= 0).map((scene) => {
    const { graph, chosen } = scene;
    const ins = graph.incoming(chosen).length;
    const outs = graph.outgoing(chosen).length;
    return `${scene.name}: ${nameOf(graph, chosen)}, relevance ${short(graph.relevance[chosen])}, ${ins} edges in, ${outs} out.`;
  });
  const lacking = shown.filter(({ graph }) => !graph).map(({ name }) => `${name} has no graph of this class.`);
  return [...(chosen.length ? chosen : parts), ...lacking].join(" ");
}
