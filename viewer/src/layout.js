// Where nodes, layers and lanes lie, in CSS pixels of an unzoomed panel.
import { scaleSqrt } from "d3-scale";
import { labelOf } from "./data.js";
import { width as widthOf } from "./text.js";

// From large nodes with a label to dots in a grid. below: room for a label under the node.
const TIERS = [
  { size: 38, pitch: 50, below: 15 },
  { size: 30, pitch: 40, below: 15 },
  { size: 24, pitch: 31, below: 14 },
  { size: 18, pitch: 23, below: 14 },
  { size: 12, pitch: 16, below: 0 },
  { size: 8, pitch: 11, below: 0 },
];
const WIDEST = 96;
const SIDE = 12;
const LABEL = 88;

/** How each layer is laid out in a row, or a grid, `room` wide; with pictures, labels go below. */
export function shapes(graph, layers, room, tight, hasPicture) {
  const tiers = tight ? TIERS.slice(tight) : TIERS;
  return layers.map((nodes, k) => {
    const pictured = nodes.some(hasPicture);
    const tier = tiers.find(({ pitch }) => nodes.length * pitch <= room) ?? tiers.at(-1);
    const rows = Math.max(1, Math.ceil((nodes.length * tier.pitch) / room));
    const texts = nodes.map((node) => labelOf(graph, node));
    const widest = texts.reduce((most, text) => Math.max(most, widthOf(text)), 0);
    const single = rows === 1;
    const spread = single ? Math.min(room / Math.max(1, nodes.length), WIDEST) : tier.pitch;
    const pitch = Math.max(tier.pitch, Math.min(spread, Math.max(tier.pitch * 1.35, widest + 10)));
    const inside = !pictured && widest <= tier.size * 0.86 - 4;
    const below = inside || !single ? 0 : tier.below;
    return { layer: k, nodes, tier, rows, pitch, inside, below, pictured, height: rows * tier.pitch + below };
  });
}

/** Vertical middles of the layers, the last at the top; shared where panels have the same layers. */
export function stacked(heights, room, least) {
  const sum = heights.reduce((total, height) => total + height, 0);
  const gaps = Math.max(1, heights.length - 1);
  const gap = Math.max(least, Math.min(150, (room - sum) / gaps));
  const tops = [];
  let y = 0;
  for (let k = heights.length - 1; k >= 0; k -= 1) {
    tops[k] = y;
    y += heights[k] + gap;
  }
  return { tops, height: y - gap, gap };
}

/** Lanes at the side for edges that skip layers, so that they do not run through nodes. */
export function lanes(graph, drawn) {
  const used = [];
  const lane = new Map();
  const span = (place) => graph.groups[place].target - graph.groups[place].source;
  const places = [...new Set(drawn.map((edge) => graph.edges.group[edge]))].filter((place) => span(place) > 1);
  // The shortest are the innermost, so that they need not cross the others.
  places.sort((a, b) => span(a) - span(b) || a - b);
  for (const place of places) {
    const { source, target } = graph.groups[place];
    let free = used.findIndex((taken) => taken.every(([low, high]) => high <= source || low >= target));
    if (free < 0) free = used.push([]) - 1;
    used[free].push([source, target]);
    lane.set(place, free);
  }
  return { lane, count: used.length };
}

// Where everything is linked to everything, lanes are many and narrow, and come round again.
const MOST_LANES = 10;
const apart = (count) => (count > 4 ? 6 : 12);

export const laneRoom = (count) => (count ? Math.min(count, MOST_LANES) * apart(count) + 10 : 0);

/** The place of every shown node: its middle, its size, and where edges and its label meet it. */
export function placed(graph, shapes, stack, box) {
  const nodes = new Map();
  const middle = (box.left + box.right) / 2;
  for (const shape of shapes) {
    const { tier, rows, pitch, inside, below } = shape;
    const layer = graph.layers[shape.layer];
    const least = inside ? 0.86 : 0.62;
    const size = scaleSqrt([0, layer.top || 1], [least, 1]).clamp(true);
    const columns = Math.ceil(shape.nodes.length / rows);
    shape.nodes.forEach((node, k) => {
      const column = Math.floor(k / rows);
      const x = middle + (column - (columns - 1) / 2) * pitch;
      const y = box.top + stack.tops[shape.layer] + ((k % rows) + 0.5) * tier.pitch;
      const side = tier.size * size(Math.abs(graph.relevance[node]));
      nodes.set(node, { node, x, y, side, inside, below, row: k % rows, shape, pitch });
    });
  }
  return nodes;
}

export const laneAt = (side, lane, count) => side + SIDE + (lane % MOST_LANES) * apart(count);

/** Where the widest layer ends, beside which the lanes begin. */
export const sideOf = (shapes, box) =>
  (box.left + box.right) / 2 +
  Math.max(...shapes.map(({ nodes, rows, pitch }) => Math.ceil(nodes.length / rows) * pitch)) / 2;

export const labelRoom = (pitch) => Math.min(LABEL, pitch) - 4;
