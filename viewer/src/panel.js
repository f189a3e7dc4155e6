// One graph: edges on a canvas, nodes and names in an SVG above it.
import { scalePow } from "d3-scale";
import { select } from "d3-selection";
import { zoom, zoomIdentity } from "d3-zoom";
import { labelOf, nameOf } from "./data.js";
import { labelRoom, laneAt } from "./layout.js";
import { paint, prepared } from "./paint.js";
import { count, fitted, percent, points, short, width as widthOf } from "./text.js";

const THICK = scalePow([0, 1], [0.7, 1]).exponent(0.6).clamp(true);
const DASHED = 14;
const REACH = 10;
const PICTURED = 17;
const MOST_ZOOM = 12;
const LEAST_ROOM = 240;

export class Panel {
  /** root: the section. told: what to do when a node is chosen, or the view is moved. */
  constructor(root, place, told) {
    this.root = select(root);
    this.place = place;
    this.told = told;
    this.transform = zoomIdentity;
    this.over = -1;
    const stage = this.root.select(".stage");
    this.canvas = stage.append("canvas").attr("aria-hidden", "true").node();
    this.svg = stage
      .append("svg")
      .attr("class", "graph")
      .attr("tabindex", 0)
      .attr("role", "application")
      .attr("aria-roledescription", "attribution graph")
      .attr("aria-describedby", "keys");
    const clip = this.svg.append("clipPath").attr("id", `clip-${place}`).append("rect");
    this.clip = clip;
    const inner = this.svg.append("g").attr("clip-path", `url(#clip-${place})`);
    this.nodes = inner.append("g").attr("class", "nodes");
    this.labels = inner.append("g").attr("class", "labels").attr("aria-hidden", "true");
    this.gutter = this.svg.append("g").attr("class", "gutter").attr("aria-hidden", "true");
    this.tip = stage.append("div").attr("class", "tip").attr("hidden", "");
    this.zoom = zoom()
      .scaleExtent([1, MOST_ZOOM])
      .filter((event) => {
        if (event.type === "wheel") return event.ctrlKey || event.metaKey;
        if (event.type.startsWith("touch")) return event.touches.length > 1 || this.transform.k > 1;
        return !event.button && !event.ctrlKey;
      })
      .on("zoom", (event) => {
        this.move(event.transform);
        if (event.sourceEvent || this.leading) told.moved(this, event.transform);
      });
    this.svg
      .call(this.zoom)
      .on("dblclick.zoom", null)
      .on("click", (event) => this.click(event))
      .on("pointermove", (event) => this.hover(event))
      .on("pointerleave", () => this.hover(null));
  }

  /** Zoom by a factor about the middle, and the other panels with it; 0 shows all. */
  zoomBy(factor) {
    this.leading = true;
    if (factor) this.zoom.scaleBy(this.svg, factor);
    else this.zoom.transform(this.svg, zoomIdentity);
    this.leading = false;
  }

  /** Show as another panel does. */
  follow(transform) {
    this.zoom.transform(this.svg, transform);
  }

  move(transform) {
    this.transform = transform;
    if (this.scene) this.draw();
  }

  /** The width there is for the graph; a frame that is not shown yet has none. */
  get room() {
    return Math.max(LEAST_ROOM, Math.floor(this.root.select(".stage").node().clientWidth));
  }

  /** scene: {graph, nodes, edges, chosen, box, stack, shapes, lanes, title, fresh, ...}. */
  show(scene) {
    this.scene = scene;
    const { graph, nodes, box } = scene;
    this.svg
      .attr("viewBox", `0 0 ${box.width} ${box.height}`)
      .attr("width", box.width)
      .attr("height", box.height)
      .attr("aria-label", scene.title)
      .attr("aria-activedescendant", nodes.has(scene.chosen) ? this.idOf(scene.chosen) : null);
    this.clip
      .attr("x", box.gutter)
      .attr("y", 0)
      .attr("width", box.width - box.gutter)
      .attr("height", box.height);
    const whole = [[0, 0], [box.width, box.height]];
    this.zoom.extent(whole).translateExtent(whole);
    const near = new Set([scene.chosen]);
    for (const edge of scene.touching) {
      near.add(graph.edges.source[edge]);
      near.add(graph.edges.target[edge]);
    }
    this.drawn = this.nodes
      .selectAll("g.node")
      .data([...nodes.values()], ({ node }) => node)
      .join((enter) => {
        const group = enter.append("g").attr("role", "img");
        group.append("rect");
        return group;
      })
      .attr("id", ({ node }) => this.idOf(node))
      .attr("class", ({ node }) => {
        const classes = ["node", graph.relevance[node] < 0 ? "down" : "up"];
        if (node === scene.chosen) classes.push("chosen");
        else if (scene.chosen >= 0 && !near.has(node)) classes.push("far");
        if (scene.pinned === node) classes.push("pinned");
        if (nodes.get(node).side < DASHED) classes.push("dot");
        return classes.join(" ");
      })
      .attr("data-node", ({ node }) => nameOf(graph, node))
      .attr("aria-label", ({ node }) => this.describe(node))
      .each(function tint({ node, shape }) {
        const top = graph.layers[shape.layer].top || 1;
        const share = Math.abs(graph.relevance[node]) / top;
        this.style.setProperty("--tint", `${Math.round(8 + 52 * share)}%`);
      });
    this.drawn
      .select("rect")
      .attr("x", ({ side }) => -side / 2)
      .attr("y", ({ side }) => -side / 2)
      .attr("width", ({ side }) => side)
      .attr("height", ({ side }) => side)
      // Dashes cannot be seen around a dot: there, round is against.
      .attr("rx", ({ node, side }) => (side < DASHED && graph.relevance[node] < 0 ? side / 2 : Math.min(5, side * 0.22)));
    this.near = near;
    if (scene.fresh) {
      this.zoom.transform(this.svg, zoomIdentity);
    }
    this.draw();
  }

  idOf(node) {
    return `node-${this.place}-${node}`;
  }

  describe(node) {
    const { graph } = this.scene;
    const label = graph.layers[graph.layerOf[node]].labels ? `, ${labelOf(graph, node)}` : "";
    return `${nameOf(graph, node)}${label}: ${this.value(node)}`;
  }

  value(node) {
    const { graph } = this.scene;
    const value = graph.relevance[node];
    if (graph.differs) return `${points(value)} of the layer`;
    const share = Math.abs(value) / (graph.layers[graph.layerOf[node]].total || 1);
    return `R ${short(value)}, ${percent(share)} of its layer`;
  }

  draw(density = Math.max(1, window.devicePixelRatio || 1)) {
    const { graph, nodes, box, edges } = this.scene;
    const t = this.transform;
    const seen = ({ x, y }) =>
      t.applyX(x) > -60 && t.applyX(x) < box.width + 60 && t.applyY(y) > -60 && t.applyY(y) < box.height + 60;
    this.drawn
      .attr("transform", ({ x, y }) => `translate(${t.applyX(x).toFixed(2)},${t.applyY(y).toFixed(2)}) scale(${t.k})`);
    // Pictures come in where a node is large enough to see one.
    const pictures = this.told.pictures;
    this.drawn.each(function picture(one) {
      const group = select(this);
      const places = graph.examples?.[nameOf(graph, one.node)];
      const image = places && pictures[places[0]]?.image;
      const wanted = image && one.shape.tier.size * t.k >= PICTURED && seen(one);
      const found = group.select("image");
      if (!wanted) return found.remove();
      const inset = Math.min(2.5, one.side * 0.1);
      (found.empty() ? group.append("image").attr("href", image) : found)
        .attr("x", -one.side / 2 + inset)
        .attr("y", -one.side / 2 + inset)
        .attr("width", one.side - 2 * inset)
        .attr("height", one.side - 2 * inset)
        .attr("href", image);
      return found;
    });
    this.drawLabels(nodes, t);
    this.drawGutter(box, t);
    const context = prepared(this.canvas, box.width, box.height, density);
    const style = getComputedStyle(document.documentElement);
    const colours = { up: style.getPropertyValue("--up"), down: style.getPropertyValue("--down") };
    context.save();
    context.beginPath();
    context.rect(box.gutter, 0, box.width - box.gutter, box.height);
    context.clip();
    this.drawRows(context, style.getPropertyValue("--grid"), t);
    paint(context, edges.map((edge) => this.line(edge, t)), colours);
    context.restore();
  }

  /** A faint line through each layer, from its name to its nodes. */
  drawRows(context, colour, t) {
    const { box, stack, shapes } = this.scene;
    context.strokeStyle = colour;
    context.lineWidth = 1;
    context.beginPath();
    for (const { layer, rows, tier } of shapes) {
      const y = Math.round(t.applyY(box.top + stack.tops[layer] + (rows * tier.pitch) / 2)) + 0.5;
      context.moveTo(box.gutter, y);
      context.lineTo(box.width, y);
    }
    context.stroke();
  }

  line(edge, t) {
    const { graph, nodes, box, lanes, chosen, strongest, thickest } = this.scene;
    const { source, target, message, share, group } = graph.edges;
    const from = nodes.get(source[edge]);
    const to = nodes.get(target[edge]);
    const lane = lanes.lane.get(group[edge]);
    const strength = share[edge] / (strongest[graph.layerOf[target[edge]]] || 1);
    const at = source[edge] === chosen || target[edge] === chosen;
    const quiet = chosen >= 0 && !at;
    return {
      x: t.applyX(from.x),
      y: t.applyY(from.y - from.side / 2),
      u: t.applyX(to.x),
      v: t.applyY(to.y) + (to.labelled ? to.foot : (to.side / 2) * t.k),
      lane: lane === undefined ? undefined : t.applyX(laneAt(this.scene.side, lane, lanes.count)),
      message: message[edge],
      width: THICK.range([0.7, lane === undefined ? thickest : Math.min(thickest, 3.4)])(strength),
      alpha: quiet ? 0.05 : at ? 0.9 : 0.26 + 0.44 * strength,
    };
  }

  /** Labels where there is room: the strongest first, none over another or over a node. */
  drawLabels(nodes, t) {
    const { graph, chosen } = this.scene;
    const rows = new Map();
    const shown = [];
    const first = [...nodes.values()].sort(
      (a, b) =>
        (b.node === chosen) - (a.node === chosen) ||
        Math.abs(graph.relevance[b.node]) - Math.abs(graph.relevance[a.node]) ||
        a.node - b.node,
    );
    for (const one of first) {
      one.labelled = false;
      const { shape, inside } = one;
      const room = inside ? one.side * t.k - 4 : labelRoom(one.pitch * t.k);
      const below = (shape.tier.pitch - shape.tier.size + one.below) * t.k - 1;
      if (!inside && below < 12) continue;
      const key = `${shape.layer} ${one.row}`;
      const full = labelOf(graph, one.node);
      const text = inside ? full : fitted(full, room);
      const wide = widthOf(text);
      // A few letters before and after a gap tell nothing.
      if (wide > room || (text !== full && text.length < 6)) continue;
      const x = t.applyX(one.x);
      const taken = rows.get(key) ?? [];
      const start = x - wide / 2 - 3;
      const end = x + wide / 2 + 3;
      if (taken.some(([low, high]) => start < high && end > low)) continue;
      taken.push([start, end]);
      rows.set(key, taken);
      one.foot = (shape.tier.size * t.k) / 2 + 14;
      one.labelled = !inside;
      const y = t.applyY(one.y) + (inside ? 3.9 : one.foot - 3.5);
      shown.push({ node: one.node, text, x, y, inside });
    }
    this.labels
      .selectAll("text")
      .data(shown, ({ node }) => node)
      .join("text")
      .attr("class", ({ node, inside }) => {
        const far = chosen >= 0 && !this.near.has(node) ? " far" : "";
        return `label${inside ? " inside" : ""}${node === chosen ? " chosen" : ""}${far}`;
      })
      .attr("data-of", ({ node }) => nameOf(graph, node))
      .attr("x", ({ x }) => x.toFixed(1))
      .attr("y", ({ y }) => y.toFixed(1))
      .text(({ text }) => text);
  }

  /** The names of the layers, at the left, where they do not run into each other. */
  drawGutter(box, t) {
    const { graph, stack, shapes } = this.scene;
    this.gutter.selectAll("rect").data(t.k > 1 ? [0] : []).join((enter) => enter.insert("rect", ":first-child"))
      .attr("width", box.gutter).attr("height", box.height);
    const names = [];
    let last = Infinity;
    for (const shape of shapes) {
      const { tier, rows } = shape;
      const layer = graph.layers[shape.layer];
      const y = t.applyY(box.top + stack.tops[shape.layer] + (rows * tier.pitch) / 2);
      const next = stack.pitch * t.k;
      if (y < 8 || y > box.height - 6 || last - y < 13) continue;
      last = y;
      names.push({ layer, y, more: next >= 30, shown: shape.nodes.length });
    }
    const groups = this.gutter.selectAll("g").data(names, ({ layer }) => layer.place).join((enter) => {
      const group = enter.append("g");
      group.append("title");
      group.append("text").attr("class", "layer");
      group.append("text").attr("class", "kept");
      return group;
    });
    groups.attr("transform", ({ y }) => `translate(0,${y.toFixed(1)})`);
    groups.select("title").text(({ layer }) => `${layer.name}, ${layer.kind}`);
    groups.select(".layer").attr("y", ({ more }) => (more ? -1 : 4))
      .text(({ layer }) => fitted(layer.name, box.gutter - 10, 12, 600, 0));
    groups.select(".kept").attr("y", 13)
      .text(({ layer, more, shown }) =>
        more ? fitted(`${count(shown)} of ${count(layer.units)}`, box.gutter - 10, 10.5) : "");
  }

  /** The node nearest to the pointer, if one is within reach. */
  nearest(event) {
    if (!this.scene) return null;
    const frame = this.svg.node().getBoundingClientRect();
    const scale = this.scene.box.width / (frame.width || 1);
    const x = (event.clientX - frame.left) * scale;
    const y = (event.clientY - frame.top) * scale;
    if (x < this.scene.box.gutter) return null;
    const t = this.transform;
    let found = null;
    let least = Infinity;
    for (const one of this.scene.nodes.values()) {
      const away = Math.max(Math.abs(t.applyX(one.x) - x), Math.abs(t.applyY(one.y) - y));
      if (away < least && away <= Math.max((one.side * t.k) / 2 + 3, REACH)) {
        found = one;
        least = away;
      }
    }
    return found;
  }

  click(event) {
    if (event.defaultPrevented) return;
    this.told.chosen(this.nearest(event)?.node ?? -1, this);
  }

  hover(event) {
    const one = event && event.pointerType !== "touch" ? this.nearest(event) : null;
    this.svg.classed("over", Boolean(one));
    if (!one) {
      this.tip.attr("hidden", "");
      return;
    }
    const t = this.transform;
    this.tip.attr("hidden", null).text(this.describe(one.node));
    const tip = this.tip.node();
    const left = Math.min(Math.max(4, t.applyX(one.x) - tip.offsetWidth / 2), this.scene.box.width - tip.offsetWidth - 4);
    const above = t.applyY(one.y - one.side / 2) - tip.offsetHeight - 8;
    const y = above > 0 ? above : t.applyY(one.y + one.side / 2) + 20;
    tip.style.left = `${left}px`;
    tip.style.top = `${y}px`;
  }
}
