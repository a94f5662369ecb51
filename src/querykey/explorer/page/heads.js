// All heads at a glance, by layer and head or by a measure; one click looks into one.

import { percent, printed } from "./data.js";
import { el, heat, select } from "./draw.js";
import { results } from "./results.js";
import { t } from "./strings.js";

const MEASURES = ["symmetry", "self", "longest"];

export function heads(root, page) {
  const { state, set, look } = page;
  const { overview } = look;
  const values = overview[state.measure];
  const step = state.measure === "longest" ? 1 : 0.01;
  const low = Math.floor(Math.min(...values) / step) * step;
  const high = Math.ceil(Math.max(...values) / step) * step;
  const least = state.least ?? low;
  const passing = values.filter((value) => value >= least - 1e-9).length;
  const named = (prefix, names) => names.map((name) => [name, t(`${prefix}.${name}`)]);
  const filter = el("input", { type: "range", id: "least", min: low, max: high, step, "aria-label": t("heads.least"), oninput: () => set({ least: Number(filter.value) }) });
  filter.value = least;
  root.append(
    results(page) ?? "",
    el("p", { class: "lead" }, t("heads.say")),
    el(
      "div",
      { class: "row small" },
      el("label", { for: "measure" }, t("heads.measure")), select("measure", named("measure", MEASURES), state.measure, (measure) => set({ measure })),
      el("label", { for: "arrange" }, t("heads.arrange")), select("arrange", named("heads", ["place", "largest"]), state.arrange, (arrange) => set({ arrange })),
      el("label", { for: "least" }, t("heads.least")), filter, el("output", { id: "passing" }, t("heads.passing", { x: written(state.measure, least), n: passing, all: values.length })),
    ),
    grid(page, least),
  );
}

// In the order of layers, a row for each; else those that pass the filter, the largest first.
export function arranged({ heads: places, ...overview }, { measure, arrange }, least) {
  const all = places.map((_, n) => n);
  if (arrange === "place") return all;
  const values = overview[measure];
  return all.filter((n) => values[n] >= least - 1e-9).sort((a, b) => values[b] - values[a] || a - b);
}

function grid(page, least) {
  const { state, about, look } = page;
  const byPlace = state.arrange === "place";
  const widest = Math.max(...about.layers.map(({ heads: count }) => count));
  const drawn = el("div", { class: byPlace ? "heads grid" : "heads", style: `--heads:${widest}` });
  for (const n of arranged(look.overview, state, least)) {
    const [layer, head] = look.overview.heads[n];
    if (byPlace && head === 0) drawn.append(el("span", { class: "layer small muted" }, t("heads.layer", { layer })));
    drawn.append(small(page, n, layer, head, look.overview[state.measure][n] < least - 1e-9));
  }
  return el("div", { class: "scroll" }, drawn);
}

function small({ state, look, set }, n, layer, head, faint) {
  const { thumbnails } = look.overview;
  const size = thumbnails.shape[1];
  const canvas = el("canvas", { class: "heat", "aria-hidden": true });
  heat(canvas, size, size, (i, j) => thumbnails.at(n, i, j));
  const chosen = layer === state.layer && head === state.head;
  const value = written(state.measure, look.overview[state.measure][n]);
  return el(
    "button",
    { class: `small-head${faint ? " faint" : ""}`, "aria-current": chosen ? "true" : null, "aria-label": `${t("heads.one", { layer, head })}, ${value}`, "data-head": `${layer}-${head}`, onclick: () => set({ layer, head, view: "map" }, "tab-map") },
    canvas,
    el("span", { class: "where" }, `${layer}·${head}`),
    el("span", { class: "value" }, value),
  );
}

function written(measure, value) {
  if (measure === "self") return percent(value, 0);
  return measure === "longest" ? String(value) : printed(value, 2);
}
