// What the page shows, and its form in the address: #view=map&head=3. What has its default is left out.

export const DEFAULTS = {
  view: "compare", model: null, text: null, layer: null, head: null, i: null, j: null,
  intervention: "trained", scope: "head", a: "trained", b: null, masked: true,
  show: "weights", order: "text", measure: "symmetry", arrange: "place", least: null,
};
const NUMBERS = ["layer", "head", "i", "j", "least"];

export function toHash(state, defaults = {}) {
  const known = { ...DEFAULTS, ...defaults };
  const given = Object.keys(DEFAULTS).filter((name) => state[name] !== known[name] && state[name] !== null);
  return String(new URLSearchParams(given.map((name) => [name, String(state[name])])));
}

// Unknown names and numbers that are none are passed over.
export function fromHash(hash) {
  const found = {};
  for (const [name, value] of new URLSearchParams(hash.replace(/^#/, ""))) {
    if (!(name in DEFAULTS)) continue;
    if (NUMBERS.includes(name)) {
      if (value !== "" && Number.isFinite(Number(value))) found[name] = Number(value);
    } else found[name] = name === "masked" ? value !== "false" : value;
  }
  return found;
}

// In which heads an intervention can be; one head is all that some models have.
export function scopes({ layers }) {
  if (layers.length === 1 && layers[0].heads === 1) return ["head"];
  return layers.length === 1 ? ["head", "all"] : ["head", "layer", "all"];
}

// A converted model differs from its original in all heads, whatever is chosen.
export function scopeOf(intervention, scope) {
  return intervention === "converted" ? "all" : scope;
}

// What the right side of the comparison begins with.
export function firstB({ interventions }) {
  return interventions.some(({ name }) => name === "converted") ? "converted" : "tied";
}

// Makes the state fit a model: layers, heads, interventions and scopes that it has.
export function fitted(state, { layers, interventions, first, example }) {
  const within = (value, count) => Math.max(0, Math.min(count - 1, Math.trunc(value)));
  const names = interventions.map(({ name }) => name);
  const named = (name, fallback) => (names.includes(name) ? name : names.find((one) => one === fallback) ?? names[0]);
  const layer = within(state.layer ?? first[0], layers.length);
  return {
    ...state,
    text: state.text ?? example,
    layer,
    head: within(state.head ?? first[1], layers[layer].heads),
    intervention: named(state.intervention, "trained"),
    a: named(state.a, "trained"),
    b: named(state.b ?? firstB({ interventions }), "copied"),
    scope: scopes({ layers }).includes(state.scope) ? state.scope : "head",
  };
}

// What the server is asked for: one look, or two in the comparison; with all heads where they are drawn.
export function queries({ view, model, text, layer, head, scope, masked, intervention, a, b }) {
  const query = (name) => ({ model, text, layer, head, scope, masked, intervention: name, overview: view === "heads" });
  return view === "compare" ? [query(a), query(b)] : [query(intervention)];
}
