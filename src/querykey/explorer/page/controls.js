// What is chosen: the model and the text, the view, the head, the intervention, the token that is followed.

import { percent } from "./data.js";
import { el, quoted, select } from "./draw.js";
import { scopeOf, scopes } from "./state.js";
import { explained, has, language, t } from "./strings.js";
import { mostAttended } from "./tokens.js";

const HELP = ["model", "text", "layer", "tokens", "scope", "mask"];

// The parts above the view that stay while numbers come and go.
export function header(page) {
  const { state, about, models } = page;
  document.title = t("title");
  const names = models.map(({ id, title }) => [id, has(`model.${id}`) ? t(`model.${id}`) : title]);
  const other = el("button", { id: "language", class: "quiet", lang: language === "zh" ? "en" : "zh-Hans", onclick: page.changeLanguage }, t("language"));
  const theme = el("button", { id: "theme", class: "quiet", "aria-label": t("theme"), title: t("theme"), onclick: page.changeTheme }, "◐");
  const kind = about ? t(`about.${about.kind}`) : "";
  const pair = about?.converted ? t("about.converted", about.converted) : "";
  document.getElementById("top").replaceChildren(
    el("div", { class: "title" }, el("h1", {}, t("title")), el("span", { class: "tools" }, help(about), other, theme)),
    el(
      "div",
      { class: "row inputs" },
      el("label", { for: "model" }, t("model")),
      select("model", names, state.model, (id) => page.choose(id)),
      el("label", { for: "text" }, t("text")),
      textField(page),
    ),
    el("p", { class: "small muted", html: [kind, pair, page.exported ? t("exported") : ""].filter(Boolean).join(" ") }),
  );
}

function textField({ state, exported, setText }) {
  const field = el("textarea", { id: "text", rows: 1, spellcheck: false, dir: "auto", disabled: exported, oninput: () => setText(field.value) });
  field.value = state.text ?? "";
  return field;
}

// What every control does, to be read before it is used.
function help(about) {
  const entry = (name, text) => [el("dt", { html: name }), el("dd", { html: text })];
  const changes = (about?.interventions ?? []).map(({ name }) => entry(t(`set.${name}`), explained(name, about)));
  const parts = HELP.filter((name) => name !== "mask" || about?.causal).map((name) => entry(t(name), t(`help.${name}`)));
  return el("details", { class: "help" }, el("summary", { "aria-label": t("help") }, "?"), el("dl", {}, ...[...parts, ...changes].flat()));
}

// The views, the head, the intervention.
export function controls(page) {
  const { state, set, about, views } = page;
  const buttons = views.map((name, n) => {
    const chosen = name === state.view;
    const says = { role: "tab", id: `tab-${name}`, "aria-selected": String(chosen), "aria-controls": "view", tabindex: chosen ? 0 : -1 };
    return el("button", { ...says, onclick: () => set({ view: name }, `tab-${name}`) }, el("span", { class: "number" }, String(n + 1)), t(`view.${name}`));
  });
  const tabs = el("div", { role: "tablist", "aria-label": t("views"), class: "tabs" }, ...buttons);
  roving(tabs, buttons);
  const numbers = (count) => [...Array(count).keys()].map((n) => [n, String(n)]);
  const place = (name, count) => [
    el("label", { for: name }, t(name)),
    select(name, numbers(count), state[name], (value) => set({ [name]: Number(value) }), { title: t("help.layer") }),
  ];
  const row = el("div", { class: "row" }, ...place("layer", about.layers.length), ...place("head", about.layers[state.layer].heads));
  const said = el("p", { class: "small", id: "said", html: explained(state.intervention, about) });
  if (state.view !== "compare") row.append(interventions(page, said));
  row.append(...scope(page), ...mask(page));
  document.getElementById("controls").replaceChildren(tabs, row, state.view === "compare" ? "" : said);
}

function interventions({ state, set, about }, said) {
  const choices = about.interventions.map(({ name }) => {
    const explain = (shown) => () => (said.innerHTML = explained(shown, about));
    const box = el("input", { type: "radio", name: "intervention", id: `set-${name}`, value: name, checked: name === state.intervention, onchange: () => set({ intervention: name }) });
    return el("label", { class: "choice", onpointerenter: explain(name), onpointerleave: explain(state.intervention) }, box, el("span", { html: t(`set.${name}`) }));
  });
  return el("div", { class: "choices", role: "radiogroup", "aria-label": t("switch") }, ...choices);
}

function scope({ state, set, about, exported }) {
  const names = scopes(about);
  const chosen = (state.view === "compare" ? [state.a, state.b] : [state.intervention]).filter((name) => name !== "trained");
  const free = !chosen.length || chosen.some((name) => scopeOf(name, "head") === "head");
  if (exported || names.length < 2 || !free) return [];
  const options = names.map((name) => [name, t("scope.in", { scope: t(`scope.${name}`) })]);
  return [select("scope", options, state.scope, (value) => set({ scope: value }), { title: t("help.scope"), "aria-label": t("scope") })];
}

function mask({ state, set, about }) {
  if (!about.causal) return [];
  const box = el("input", { type: "checkbox", id: "masked", checked: state.masked, onchange: () => set({ masked: !state.masked }) });
  return [el("label", { class: "check", title: t("help.mask") }, box, ` ${t("mask")}`)];
}

// The tokens of the text: which one is followed, and how much it attends to each.
export function strip(page) {
  const { state, look, set, pair } = page;
  const place = document.getElementById("strip");
  place.hidden = state.view === "heads";
  if (place.hidden) return;
  const chips = look.tokens.map((token, i) => {
    const weight = look.head.weights.at(state.i, i);
    const says = { role: "radio", class: "chip", id: `token-${i}`, "aria-checked": String(i === state.i), tabindex: i === state.i ? 0 : -1, "data-i": i, title: percent(weight) };
    const choose = () => set({ i, j: mostAttended(look, i) }, `token-${i}`);
    const point = () => state.view === "walk" && i !== state.i && pair(i);
    return el("button", { ...says, onclick: choose, onpointerenter: point }, el("bdi", {}, token), el("span", { class: "meter" }, el("span", { style: `width:${100 * weight}%` })));
  });
  const group = el("div", { role: "radiogroup", "aria-label": t("tokens"), class: "chips" }, ...chips);
  roving(group, chips);
  const notes = [t("tokensHint", { token: quoted(look.tokens[state.i]) }), look.cut ? t("cut", { n: look.tokens.length }) : "", look.unknown ? t("unknown", { n: look.unknown }) : ""];
  const { scrollLeft } = place.firstElementChild ?? {};
  place.replaceChildren(group, el("p", { class: "small muted", html: notes.filter(Boolean).join(" ") }));
  group.scrollTo(scrollLeft ?? 0, 0);
  const [chosen, width] = [chips[state.i], group.clientWidth];
  if (chosen.offsetLeft < group.scrollLeft || chosen.offsetLeft + chosen.offsetWidth > group.scrollLeft + width) group.scrollTo(chosen.offsetLeft - width / 2, 0);
}

// One stop for the tab key, arrow keys within.
function roving(group, buttons) {
  group.addEventListener("keydown", (event) => {
    const at = buttons.indexOf(event.target.closest("button"));
    const to = { ArrowLeft: at - 1, ArrowUp: at - 1, ArrowRight: at + 1, ArrowDown: at + 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    buttons[(to + buttons.length) % buttons.length].click();
  });
}
