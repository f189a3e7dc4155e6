// The order of nodes within their layers: each near the middle of those it is linked to.
const SWEEPS = 6;

/** Order the kept nodes of each layer by barycentres; the same graph has always the same order. */
export function ordered(graph, kept, isKept) {
  const { source, target, share } = graph.edges;
  const place = new Float64Array(graph.relevance.length);
  const layers = kept.map((nodes) => nodes.slice());
  const number = (nodes) => nodes.forEach((node, k) => (place[node] = (k + 0.5) / nodes.length));
  layers.forEach(number);
  const middle = (node, edges, end) => {
    let sum = 0;
    let weight = 0;
    for (const edge of edges) {
      if (!isKept[end[edge]]) continue;
      sum += share[edge] * place[end[edge]];
      weight += share[edge];
    }
    return weight ? sum / weight : place[node];
  };
  const arrange = (nodes, edgesOf, end) => {
    const middles = new Map(nodes.map((node) => [node, middle(node, edgesOf(node), end)]));
    nodes.sort((a, b) => middles.get(a) - middles.get(b) || place[a] - place[b] || a - b);
    number(nodes);
  };
  for (let sweep = 0; sweep < SWEEPS; sweep += 1) {
    for (let k = layers.length - 2; k >= 0; k -= 1) arrange(layers[k], graph.outgoing, target);
    for (let k = 1; k < layers.length; k += 1) arrange(layers[k], graph.incoming, source);
  }
  return layers;
}
