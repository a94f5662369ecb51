// All heads at a glance, sorted by what they do; one click looks into one.

import { percent, printed } from "./data.js";
import { el, heat } from "./draw.js";
import { t } from "./strings.js";

export function heads(root, page) {
  const { state, overview } = page;
  root.append(el("p", { class: "lead" }, t("heads.say")));
  const sort = el("select", { id: "sort", onchange: (event) => page.set({ sort: event.target.value }) });
  for (const value of ["place", "symmetry", "self", "longest"]) sort.append(el("option", { value, selected: state.sort === value }, t(`heads.${value}`)));
  root.append(el("p", { class: "small" }, el("label", { for: "sort" }, `${t("heads.sort")} `), sort));
  const order = overview.heads.map((_, n) => n);
  if (state.sort !== "place") order.sort((a, b) => overview[state.sort][b] - overview[state.sort][a] || a - b);
  const grid = el("div", { class: "heads" });
  for (const n of order) grid.append(small(page, n));
  root.append(grid);
}

function small(page, n) {
  const { state, overview } = page;
  const [layer, head] = overview.heads[n];
  const { patterns } = overview;
  const size = patterns.shape[1];
  const canvas = el("canvas", { class: "heat", "aria-hidden": true });
  heat(canvas, size, (i, j) => patterns.values[(n * size + i) * size + j] / patterns.scale);
  const chosen = layer === state.layer && head === state.head;
  return el(
    "button",
    { class: "small-head", "aria-current": chosen ? "true" : null, "aria-label": `${t("heads.one", { layer, head })}, ${valueOf(overview, state.sort, n)}`, "data-head": `${layer}-${head}`, onclick: () => page.set({ layer, head, view: "map" }) },
    canvas,
    el("span", { class: "where" }, `${layer}·${head}`),
    el("span", { class: "value" }, valueOf(overview, state.sort, n)),
  );
}

function valueOf(overview, sort, n) {
  if (sort === "self") return percent(overview.self[n], 0);
  return sort === "longest" ? String(overview.longest[n]) : printed(overview.symmetry[n], 2);
}
