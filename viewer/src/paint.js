// Edges on a canvas.

/** Fit the canvas to its box and the pixels of the screen; return its context in CSS pixels. */
export function prepared(canvas, width, height, density) {
  const context = canvas.getContext("2d");
  canvas.width = Math.round(width * density);
  canvas.height = Math.round(height * density);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  context.setTransform(density, 0, 0, density, 0, 0);
  context.clearRect(0, 0, width, height);
  context.lineCap = "butt";
  return context;
}

/** Draw an edge from (x, y), the top of its source, to (u, v), under its target. */
function trace(context, { x, y, u, v, lane }) {
  context.beginPath();
  context.moveTo(x, y);
  if (lane === undefined) {
    const bend = (y - v) * 0.5;
    context.bezierCurveTo(x, y - bend, u, v + bend, u, v);
  } else {
    // Out to the lane, up along it, and back.
    const turn = Math.min(0.3 * (y - v), 26);
    const rise = Math.min(0.12 * (y - v), 14);
    context.bezierCurveTo(x, y - turn, lane, y - rise / 2, lane, y - turn - rise);
    context.lineTo(lane, v + turn + rise);
    context.bezierCurveTo(lane, v + rise / 2, u, v + turn, u, v);
  }
  context.stroke();
}

export function paint(context, lines, colours) {
  for (const line of lines) {
    const down = line.message < 0;
    context.strokeStyle = down ? colours.down : colours.up;
    context.globalAlpha = line.alpha;
    context.lineWidth = line.width;
    context.setLineDash(down ? [Math.max(4, 2.2 * line.width), Math.max(3, 1.4 * line.width)] : []);
    trace(context, line);
  }
  context.globalAlpha = 1;
  context.setLineDash([]);
}
