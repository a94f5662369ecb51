// What an intervention changes: the measures of the head, and the output of the model.

import { percent, printed } from "./data.js";
import { el } from "./draw.js";
import { effectText } from "./predictions.js";
import { scopeOf, scopes } from "./state.js";
import { t } from "./strings.js";

const WRITTEN = { symmetry: (x) => printed(x, 2), self: percent, longest: String };

export function results({ state, about, look, effects }) {
  const { intervention } = state;
  const { before, ...now } = look.head;
  if (intervention === "trained" || !before) return null;
  const measures = Object.entries(WRITTEN).map(([name, write]) => result({ "data-measure": name }, t(`measure.${name}`), `${write(before[name])} → ${write(now[name])}`));
  const found = scopes(about).filter((scope) => scope === scopeOf(intervention, scope)).map((scope) => result({ "data-scope": scope }, t(`scope.${scope}`), effectText(effects[intervention]?.[scope], intervention)));
  return el("div", { class: "results small", "aria-live": "polite" }, el("span", {}, t("changed")), ...measures, el("span", {}, t("effect")), ...found);
}

function result(attributes, name, text) {
  return el("span", { class: "effect", ...attributes }, el("b", {}, name), ` ${text}`);
}
