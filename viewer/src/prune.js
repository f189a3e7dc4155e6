// Which nodes and edges are shown.
export const MOST_DRAWN = 300;
const AT_A_NODE = 24;

/** Nodes of each layer: the smallest set that holds `share` of |R|, and `also` where it is in it. */
export function keptNodes(graph, share, also = -1) {
  if (graph.parts) return either(graph, share, also);
  return graph.layers.map((layer) => {
    const kept = [];
    let held = 0;
    const enough = share * layer.total * (1 - 1e-9);
    for (const unit of layer.ranked) {
      const size = Math.abs(graph.relevance[layer.start + unit]);
      if (held >= enough || !size) break;
      held += size;
      kept.push(layer.start + unit);
    }
    if (also >= 0 && graph.layerOf[also] === layer.place && !kept.includes(also)) kept.push(also);
    return kept.sort((a, b) => a - b);
  });
}

/** Of a difference: the nodes that one of both models keeps. */
function either(graph, share, also) {
  const [a, b] = graph.parts.map((part) => keptNodes(part, share, also));
  return a.map((nodes, k) => [...new Set([...nodes, ...b[k]])].sort((x, y) => x - y));
}

/** Of the edges between kept nodes, the smallest set into each layer that holds `share`. */
export function keptEdges(graph, isKept, share) {
  const { source, target, message } = graph.edges;
  const kept = [];
  for (const layer of graph.layers) {
    const between = [];
    let total = 0;
    for (const group of graph.groups) {
      if (group.target !== layer.place) continue;
      for (let edge = group.start; edge < group.start + group.stored; edge += 1) {
        if (isKept[source[edge]] && isKept[target[edge]]) {
          between.push(edge);
          total += Math.abs(message[edge]);
        }
      }
    }
    between.sort((a, b) => Math.abs(message[b]) - Math.abs(message[a]) || a - b);
    const enough = share * total * (1 - 1e-9);
    let held = 0;
    for (const edge of between) {
      if (held >= enough) break;
      held += Math.abs(message[edge]);
      kept.push(edge);
    }
  }
  return kept;
}

/** The edges to draw, the weakest first: those at the chosen node, then the strongest. */
export function drawnEdges(graph, kept, isKept, sign, chosen = -1) {
  const { source, target, message, share } = graph.edges;
  const wanted = (edge) => sign === "both" || (sign === "positive") === message[edge] > 0;
  const drawn = new Set();
  if (chosen >= 0) {
    for (const edges of [graph.incoming(chosen), graph.outgoing(chosen)]) {
      let left = AT_A_NODE;
      for (const edge of edges) {
        if (!left) break;
        if (wanted(edge) && isKept[source[edge]] && isKept[target[edge]]) {
          drawn.add(edge);
          left -= 1;
        }
      }
    }
  }
  const rest = kept.filter(wanted);
  const possible = new Set([...rest, ...drawn]).size;
  rest.sort((a, b) => share[b] - share[a] || a - b);
  for (const edge of rest) {
    if (drawn.size >= MOST_DRAWN) break;
    drawn.add(edge);
  }
  return { drawn: [...drawn].sort((a, b) => share[a] - share[b] || b - a), possible };
}
