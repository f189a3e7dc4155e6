// Numbers and names as they are written on the page.
const MINUS = "\u2212";
const ruler = document.createElement("canvas").getContext("2d");

/** A number with three significant digits and a true minus. */
export function short(value) {
  if (value === null || !Number.isFinite(value)) return "\u2013";
  const size = Math.abs(value);
  let text;
  if (!size) text = "0";
  else if (size >= 1e5 || size < 1e-3) text = size.toExponential(1).replace("e+", "e");
  else if (size >= 100) text = Math.round(size).toLocaleString("en");
  else text = String(Number(size.toPrecision(3)));
  return value < 0 ? MINUS + text : text;
}

/** A share as percent, without decimals from 10% on. */
export function percent(share) {
  const value = Math.abs(100 * share);
  if (value && value < 0.005) return `<0.01%`;
  const text = value === 0 || value >= 9.95 ? value.toFixed(0) : value.toFixed(value < 0.095 ? 2 : 1);
  return `${share < 0 && Number(text) ? MINUS : ""}${text}%`;
}

/** A share with its sign, for differences. */
export const points = (share) => (share > 0 ? "+" : "") + percent(share);

export const count = (number) => number.toLocaleString("en");

export const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

export function width(text, size = 11, weight = 400) {
  ruler.font = `${weight} ${size}px system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif`;
  return ruler.measureText(text).width;
}

/** The text, cut where it is wider than `room`: after its `start`, so that its end is left. */
export function fitted(text, room, size = 11, weight = 400, start = 0.5) {
  if (width(text, size, weight) <= room) return text;
  let low = 0;
  let high = Math.min(text.length, 200);
  const cut = (n) => {
    const head = Math.floor(n * start);
    return `${text.slice(0, head)}\u2026${n > head ? text.slice(head - n) : ""}`;
  };
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (width(cut(middle), size, weight) <= room) low = middle;
    else high = middle;
  }
  return cut(low);
}
