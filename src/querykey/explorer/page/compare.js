// One head in two settings, side by side.

import { percent, printed } from "./data.js";
import { el } from "./draw.js";
import { graphOf, heatMap } from "./map.js";
import { t } from "./strings.js";

export function compare(root, page) {
  const { sides } = page;
  root.append(el("p", { class: "lead" }, t("compare.say")));
  if (!sides) return;
  root.append(el("div", { class: "two" }, side(page, "a", sides.a), side(page, "b", sides.b)));
  root.append(el("div", { class: "scroll" }, metrics(page)));
}

function side(page, name, look) {
  const { state, about } = page;
  const select = el("select", { id: `side-${name}`, onchange: (event) => page.set({ [name]: event.target.value }) });
  for (const setting of about.settings) select.append(el("option", { value: setting, selected: state[name] === setting }, plain(setting)));
  const title = el("p", {}, el("label", { for: `side-${name}` }, `${t(`compare.${name}`)}: `), select);
  const said = el("p", { class: "small", html: t(`say.${state[name]}`) });
  return el("figure", { class: `side side-${name}` }, title, said, heatMap(page, look, { live: false }), graphOf(look, about, state[name], page, { choose: false }));
}

function plain(setting) {
  return t(`set.${setting}`).replace(/<sub>(.)<\/sub>/g, "_$1");
}

function metrics({ state, about, sides, effects }) {
  const rows = [];
  const add = (name, note, value) => {
    rows.push([t(`metric.${name}`, { scope: t(`scope.${note.scope ?? "head"}`) }), note.said ?? "", value(sides.a, "a"), value(sides.b, "b")]);
  };
  add("symmetry", { said: t("metric.symmetry.say") }, ({ head }) => printed(head.symmetry, 2));
  add("self", { said: t("metric.self.say", { x: percent(1 / sides.a.tokens.length) }) }, ({ head }) => percent(head.self));
  add("longest", {}, ({ head }) => String(head.longest));
  for (const scope of scopes(about)) {
    const value = (_, side) => effectText(effects?.[state[side]]?.[scope], state[side]);
    if (!effects || Object.values(effects).some((found) => found?.[scope])) add("output", { scope }, value);
  }
  const top = ["compare.metric", null, null].map((key, n) => el("th", { scope: "col" }, key ? t(key) : plain(state[n === 1 ? "a" : "b"])));
  const body = rows.map(([name, note, a, b]) =>
    el("tr", {}, el("th", { scope: "row" }, name, note ? el("span", { class: "muted small" }, ` ${note}`) : null), el("td", {}, a), el("td", {}, b)),
  );
  return el("table", { class: "metrics" }, el("thead", {}, el("tr", {}, ...top)), el("tbody", {}, ...body));
}

// In which heads a setting can be; one head is all that some models have.
export function scopes({ layers }) {
  if (layers.length === 1 && layers[0].heads === 1) return ["head"];
  return layers.length === 1 ? ["head", "all"] : ["head", "layer", "all"];
}

export function effectText(effect, setting) {
  if (setting === "trained") return t("effect.none");
  if (!effect) return t("effect.wait");
  if (effect.cosine !== undefined) return t("effect.cosine", { x: printed(effect.cosine, 3) });
  const said = [t("effect.same", { x: percent(effect.same, 0) })];
  if (effect.before) {
    const [a, b] = [effect.before, effect.after];
    said.push(t("effect.right", { a: percent(a.right, 0), b: percent(b.right, 0) }), t("effect.bits", { a: printed(a.bits, 2), b: printed(b.bits, 2) }));
  }
  return said.join("; ");
}
