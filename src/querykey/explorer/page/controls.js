// What is chosen: the view, the head, the setting, the token that is followed.

import { effectText, scopes } from "./compare.js";
import { percent, printed } from "./data.js";
import { el, quoted } from "./draw.js";
import { t } from "./strings.js";
import { mostAttended } from "./tokens.js";

// The views, the place, the switch.
export function controls(page) {
  const { state, set, exported } = page;
  const { layers, settings } = page.about;
  const views = page.views.map((name, n) =>
    el("button", { role: "tab", id: `tab-${name}`, "aria-selected": String(name === state.view), "aria-controls": "view", tabindex: name === state.view ? 0 : -1, onclick: () => set({ view: name }) }, el("span", { class: "number" }, String(n + 1)), t(`view.${name}`)),
  );
  const tabs = el("div", { role: "tablist", "aria-label": t("views"), class: "tabs" }, ...views);
  roving(tabs, views);
  const numbers = (count, chosen) => [...Array(count).keys()].map((n) => el("option", { value: n, selected: n === chosen }, String(n)));
  const layer = el("select", { id: "layer", onchange: (event) => set({ layer: Number(event.target.value) }) }, ...numbers(layers.length, state.layer));
  const head = el("select", { id: "head", onchange: (event) => set({ head: Number(event.target.value) }) }, ...numbers(layers[state.layer].heads, state.head));
  const switches = settings.map((name) => {
    const box = el("input", { type: "radio", name: "setting", id: `set-${name}`, value: name, checked: name === state.setting, onchange: () => set({ setting: name }) });
    return el("label", { class: "choice" }, box, el("span", { html: t(`set.${name}`) }));
  });
  const scope = el("select", { id: "scope", disabled: exported, onchange: (event) => set({ scope: event.target.value }) });
  for (const name of scopes(page.about)) scope.append(el("option", { value: name, selected: name === state.scope }, t(`scope.${name}`)));
  document.getElementById("controls").replaceChildren(
    tabs,
    el("div", { class: "row places" }, el("label", { for: "layer" }, t("layer")), layer, el("label", { for: "head" }, t("head")), head, el("label", { for: "scope" }, t("scope")), scope),
    state.view === "compare" ? el("span") : el("fieldset", { class: "switch" }, el("legend", {}, t("switch")), el("div", { class: "choices" }, ...switches)),
    state.view === "compare" ? el("span") : el("p", { class: "small", id: "said", "aria-live": "polite" }, el("span", { html: t(`say.${state.setting}`) }), ...metricsSaid(page), ...effectSaid(page)),
  );
}

// The measures of the head, as trained and now.
function metricsSaid({ state, look }) {
  const { before, ...now } = look.head;
  if (!before || state.setting === "trained") return [];
  const written = { symmetry: (x) => printed(x, 2), self: percent, longest: String };
  const said = Object.entries(written).map(([name, write]) =>
    el("span", { class: "effect", "data-metric": name }, el("b", {}, t(`metric.${name}`)), ` ${write(before[name])} → ${write(now[name])}`),
  );
  return [el("br"), el("span", {}, t("changed")), ...said];
}

function effectSaid({ state, about, effects }) {
  if (state.setting === "trained") return [];
  const found = effects[state.setting];
  const parts = scopes(about).filter((scope) => !found || found[scope]);
  const said = parts.map((scope) => el("span", { class: "effect", "data-scope": scope }, el("b", {}, t(`scope.${scope}`)), ` ${effectText(found?.[scope], state.setting)}`));
  return [el("br"), el("span", {}, t("effect")), ...said];
}

// The tokens of the text: which one is followed, and how much it attends to each.
export function strip(page) {
  const { state, look, set, pair } = page;
  const chips = look.tokens.map((token, i) => {
    const share = look.head.weights.at(state.i, i);
    const chip = el(
      "button",
      { role: "radio", class: "chip", id: `token-${i}`, "aria-checked": String(i === state.i), tabindex: i === state.i ? 0 : -1, "data-i": i, title: percent(share), onclick: () => set({ i, j: mostAttended(look, i), focus: `token-${i}` }), onpointerenter: () => state.view === "walk" && i !== state.i && pair(i) },
      el("bdi", {}, token),
      el("span", { class: "meter" }, el("span", { style: `width:${100 * share}%` })),
    );
    return chip;
  });
  const group = el("div", { role: "radiogroup", "aria-label": t("tokens"), class: "chips" }, ...chips);
  roving(group, chips);
  const hint = t("tokensHint", { token: quoted(look.tokens[state.i]) });
  const cut = look.cut ? ` ${t("cut", { n: look.tokens.length })}` : "";
  const place = document.getElementById("strip");
  const { scrollLeft, scrollTop } = place.firstElementChild ?? {};
  place.replaceChildren(group, el("p", { class: "small muted", html: hint + cut }));
  group.scrollTo(scrollLeft ?? 0, scrollTop ?? 0);
}

// One stop for the tab key, arrow keys within.
function roving(group, buttons) {
  group.addEventListener("keydown", (event) => {
    const at = buttons.indexOf(event.target.closest("button"));
    const to = { ArrowLeft: at - 1, ArrowUp: at - 1, ArrowRight: at + 1, ArrowDown: at + 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    const button = buttons[(to + buttons.length) % buttons.length];
    button.click();
    document.getElementById(button.id)?.focus();
  });
}
