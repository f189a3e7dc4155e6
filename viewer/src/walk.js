// Where an arrow key leads from a node.

/** Up and down along the strongest edge, left and right along the layer; -1 where there is none. */
export function step(scene, from, key, wanted) {
  const { graph, nodes } = scene;
  if (from < 0) return start(scene);
  if (key === "ArrowLeft" || key === "ArrowRight") {
    const row = scene.shapes.find(({ layer }) => layer === graph.layerOf[from]).nodes;
    const place = row.indexOf(from);
    if (place < 0) return row[0] ?? -1;
    return row[Math.min(row.length - 1, Math.max(0, place + (key === "ArrowRight" ? 1 : -1)))];
  }
  const up = key === "ArrowUp";
  const far = up ? graph.edges.target : graph.edges.source;
  const edges = [...(up ? graph.outgoing(from) : graph.incoming(from))].filter(wanted);
  const best = edges.find((edge) => nodes.has(far[edge])) ?? edges[0];
  return best === undefined ? -1 : far[best];
}

/** The strongest node of the last layer. */
function start({ graph }) {
  const last = graph.layers.at(-1);
  return last.start + last.ranked[0];
}
