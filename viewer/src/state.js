// What is shown, kept in the address so that it can be sent to someone.
export const DEFAULTS = {
  class: "",
  sort: "given",
  nodes: 80,
  edges: 90,
  sign: "both",
  view: "both",
  node: "",
  fit: "0",
};
const CHOICES = {
  sort: ["given", "name", "accuracy"],
  sign: ["both", "positive", "negative"],
  view: ["both", "difference"],
  fit: ["0", "1"],
};
const LEAST = 5;
const WAIT = 200;

/** The state that an address tells; what it does not tell, or tells wrongly, is as usual. */
export function parsed(hash) {
  const told = new URLSearchParams(hash.replace(/^#/, ""));
  const state = { ...DEFAULTS };
  for (const key of Object.keys(DEFAULTS)) {
    const value = told.get(key);
    if (value === null) continue;
    if (key === "nodes" || key === "edges") {
      if (/^\d{1,3}$/.test(value)) state[key] = Math.min(100, Math.max(LEAST, Number(value)));
    } else if (!CHOICES[key] || CHOICES[key].includes(value)) {
      state[key] = value;
    }
  }
  return state;
}

/** The address of a state, without what is as usual. */
export function hashOf(state) {
  const told = new URLSearchParams();
  for (const [key, usual] of Object.entries(DEFAULTS)) {
    if (String(state[key]) !== String(usual)) told.set(key, state[key]);
  }
  // A colon reads better than its code, and is allowed where it stands.
  return `#${told.toString().replaceAll("%3A", ":").replaceAll("+", "%20")}`;
}

let waiting;

/** Write the state into the address: no entry in the history, and not at every step of a slider. */
export function remember(state) {
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    const hash = hashOf(state);
    if (hash === location.hash || (hash === "#" && !location.hash)) return;
    try {
      history.replaceState(null, "", hash);
    } catch {
      // A frame without an address of its own, as in a notebook, has none to keep it in.
    }
  }, WAIT);
}
