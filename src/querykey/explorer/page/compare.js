// One head with two interventions, side by side: the theorem at a glance.

import { percent, printed } from "./data.js";
import { el, select } from "./draw.js";
import { graphOf, heatMap } from "./map.js";
import { effectText, predictionsAt, rightAnswer } from "./predictions.js";
import { scopeOf, scopes } from "./state.js";
import { explained, plain, t } from "./strings.js";
import { oneWay } from "./theorem.js";

export function compare(root, page) {
  const { looks, state } = page;
  const { a, b } = { a: looks[0], b: looks[1] };
  const cycle = oneWay(a.head); // the same tokens on both sides
  root.append(
    el("p", { class: "lead", html: t(lead(page)) }),
    finding(page, a, b),
    el("div", { class: "two" }, side(page, "a", a, cycle), side(page, "b", b, cycle)),
    el("div", { class: "scroll" }, measures(page, a, b)),
  );
}

function lead({ about, state }) {
  if (state.b === "converted") return "compare.converted";
  return about.causal && state.masked ? "compare.causal" : "compare.say";
}

// The conclusion in one line: the longest cycle on both sides, and what it does to the answers.
function finding({ state, effects }, a, b) {
  const said = state.b === "converted" ? [] : [t("finding.cycle", { a: a.head.longest, b: b.head.longest })];
  const effect = state.a === "trained" ? effects[state.b]?.[scopeOf(state.b, state.scope)] : null;
  if (effect) said.push(t("finding.output", { x: effectText(effect, state.b) }));
  return el("p", { class: "finding", "aria-live": "polite" }, said.join(" "));
}

function side(page, name, look, cycle) {
  const { state, about } = page;
  const names = about.interventions.map((one) => [one.name, plain(`set.${one.name}`)]);
  const chosen = select(`side-${name}`, names, state[name], (value) => page.set({ [name]: value }));
  const { predictions } = look.head;
  return el(
    "figure",
    { class: `side side-${name}` },
    el("p", {}, el("label", { for: `side-${name}` }, `${t(`compare.${name}`)} `), chosen),
    el("p", { class: "small said", html: explained(state[name], about) }),
    graphOf(look, about, state[name], page, { choose: (i) => page.set({ i }), cycle }),
    heatMap(page, look, { live: false }),
    predictions ? el("div", { class: "predicted" }, el("h4", {}, t("predict", { token: look.tokens[state.i] })), predictionsAt(predictions, state.i, look.targets?.[state.i]), rightAnswer(look.targets, state.i)) : null,
  );
}

function measures({ state, about, effects }, a, b) {
  const row = (name, note, ...values) =>
    el("tr", {}, el("th", { scope: "row" }, name, note ? el("span", { class: "muted small" }, ` ${note}`) : null), ...values.map((value) => el("td", {}, value)));
  const sides = [state.a, state.b];
  const applies = (scope) => sides.some((name) => name !== "trained" && scope === scopeOf(name, scope));
  const rows = [
    row(t("measure.symmetry"), t("measure.symmetry.say"), ...[a, b].map(({ head }) => printed(head.symmetry, 2))),
    row(t("measure.self"), t("measure.self.say", { x: percent(1 / a.tokens.length) }), ...[a, b].map(({ head }) => percent(head.self))),
    row(t("measure.longest"), "", ...[a, b].map(({ head }) => String(head.longest))),
    ...scopes(about).filter(applies).map((scope) => row(t("measure.output", { scope: t(`scope.${scope}`) }), "", ...sides.map((name) => (scope === scopeOf(name, scope) ? effectText(effects[name]?.[scope], name) : "–")))),
  ];
  const top = [t("compare.measure"), ...sides.map((name) => plain(`set.${name}`))].map((text) => el("th", { scope: "col" }, text));
  return el("table", { class: "measures" }, el("thead", {}, el("tr", {}, ...top)), el("tbody", {}, ...rows));
}
