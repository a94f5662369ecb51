// The page: what is chosen, what is asked for, what is drawn.

import { compare, scopes } from "./compare.js";
import { controls, strip } from "./controls.js";
import { Gone, Server, Trouble } from "./data.js";
import { el } from "./draw.js";
import { heads } from "./heads.js";
import { map, pairText } from "./map.js";
import { has, language, setLanguage, t } from "./strings.js";
import { firstToken, mostAttended } from "./tokens.js";
import { walk } from "./walk.js";

const VIEWS = { walk, map, compare, heads };
const CLAIMS = { walk: ["c1"], map: ["c1", "c2"], compare: ["c4", "c3", "c6"], heads: ["c1"] };
const CLAIMS_PAGE = { en: "docs/why.md", zh: "docs/why.zh-CN.md" }; // in the project's repository

const state = {
  view: "walk", model: null, text: "", layer: null, head: null, setting: "trained", scope: "head",
  i: null, j: null, a: "trained", b: "copied", sort: "symmetry", show: "pattern", order: "text", allRows: false, focus: null,
};

const page = { state, about: null, look: null, sides: null, overview: null, effects: {}, exported: false, views: Object.keys(VIEWS), set, pair };
let source = new Server();
let offered = [];
let newest = 0; // requests and drawings, so that what comes late is not drawn
let drawings = 0;
let opening = false; // a model, so that what is chosen now would be of the one before
let typing = 0; // a timer, while the text is being written

export async function start(given = null) {
  source = given ?? source;
  page.exported = source.exported;
  setLanguage(stored("language") ?? (navigator.language.startsWith("zh") ? "zh" : "en"));
  if (stored("theme")) document.documentElement.dataset.theme = stored("theme");
  const keys = new Set(Object.keys(state));
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    if (keys.has(name) && ["view", "a", "b", "sort", "show", "setting", "scope"].includes(name)) state[name] = value;
    if (["layer", "head", "i", "j"].includes(name)) state[name] = Number(value) || 0;
  }
  if (!VIEWS[state.view]) state.view = "walk";
  await trying(async () => {
    const found = await source.models();
    offered = found.models;
    state.text = found.text ?? "";
    frame();
    await choose(found.model ?? offered[0].id, found.text);
  });
}

async function choose(model, text = null) {
  const before = state.model;
  const mine = (newest += 1);
  state.model = model;
  opening = true;
  busy(true);
  frame();
  notice(t("loading"));
  const waited = (share) => mine === newest && notice(share > 0 ? t("training", { share: Math.round(100 * share) }) : t("loading"));
  try {
    const about = await source.about(model, waited);
    if (mine !== newest) return;
    page.about = about;
  } catch (error) {
    if (mine !== newest) return;
    state.model = page.about ? before : model;
    frame();
    throw error;
  } finally {
    if (mine === newest) opening = false;
  }
  const first = page.look === null;
  const { layers, settings } = page.about;
  if (!first || state.layer === null) [state.layer, state.head] = page.about.first;
  state.text = text ?? page.about.example;
  Object.assign(state, { i: first ? state.i : null, j: first ? state.j : null, allRows: false });
  state.layer = Math.min(state.layer, layers.length - 1);
  state.head = Math.min(state.head, layers[state.layer].heads - 1);
  for (const name of ["setting", "a", "b"]) if (!settings.includes(state[name])) state[name] = settings[0];
  if (!scopes(page.about).includes(state.scope)) state.scope = "head";
  page.effects = {};
  frame();
  await refresh();
}

// Changes what is chosen; asks for new numbers where they are needed, else only draws.
function set(changes) {
  if (opening) return;
  const asks = ["text", "layer", "head", "setting", "scope", "a", "b"].some((name) => name in changes && changes[name] !== state[name]);
  const sides = changes.view === "compare" && !page.sides;
  if ("text" in changes || "layer" in changes || "head" in changes) page.effects = {};
  Object.assign(state, { focus: null }, changes);
  if ("text" in changes) Object.assign(state, { i: null, j: null, allRows: false });
  state.head = Math.min(state.head, page.about.layers[state.layer].heads - 1);
  if (asks || sides) trying(refresh);
  else draw();
}

// Another pair of tokens under the pointer: only what speaks of the pair is drawn again.
function pair(j, i = state.i) {
  if (j === state.j && i === state.i) return;
  if (state.view === "walk") {
    state.j = j;
    const old = document.getElementById("step-3");
    const fresh = el("div");
    walk(fresh, page);
    old.replaceWith(fresh.querySelector("#step-3"));
    for (const row of document.querySelectorAll("tr[data-j]")) row.classList.toggle("paired", Number(row.dataset.j) === j);
  } else {
    document.getElementById("pair").innerHTML = pairText(i, j, page.look);
  }
}

async function refresh() {
  const mine = (newest += 1);
  const { model, text, layer, head, setting, scope } = state;
  const query = (chosen) => ({ model, text, layer, head, setting: chosen, scope });
  busy(true);
  const look = await source.look({ ...query(setting), overview: true });
  let sides = null;
  if (state.view === "compare") {
    const ask = (chosen) => (chosen === setting ? look : source.look({ ...query(chosen), overview: false }));
    const [a, b] = await Promise.all([ask(state.a), ask(state.b)]);
    sides = { a, b };
  }
  if (mine !== newest) return;
  Object.assign(page, { look, sides, overview: look.overview });
  if (state.i === null || state.i >= look.tokens.length) state.i = firstToken(look);
  if (state.j === null || state.j >= look.tokens.length) state.j = mostAttended(look, state.i);
  notice("");
  draw();
  const wanted = sides ? [state.a, state.b] : [setting];
  for (const chosen of new Set(wanted)) {
    if (chosen === "trained" || page.effects[chosen]) continue;
    const found = await source.effect(query(chosen));
    if (mine !== newest) return;
    page.effects[chosen] = found;
    draw();
  }
}

async function trying(work) {
  try {
    await work();
  } catch (error) {
    if (error instanceof Gone) return void waitForServer();
    if (!(error instanceof Trouble)) throw error;
    notice(error.message, true);
    busy(false);
  }
}

let waiting = false;

async function waitForServer() {
  if (waiting) return;
  waiting = true;
  notice(t("gone"), true);
  for (;;) {
    await new Promise((done) => setTimeout(done, 1000));
    const found = await source.models().catch(() => null);
    if (found) break;
  }
  waiting = false;
  notice("");
  await trying(async () => {
    if (!page.about) return choose(state.model ?? offered[0]?.id ?? (await source.models()).models[0].id);
    await source.about(state.model, () => notice(t("loading")));
    return refresh();
  });
}

// The parts around the view: they stay while numbers come and go.
function frame() {
  document.title = t("title");
  const top = document.getElementById("top");
  const names = offered.map(({ id, title }) => el("option", { value: id, selected: id === state.model }, has(`model.${id}`) ? t(`model.${id}`) : title));
  const model = el("select", { id: "model", onchange: (event) => trying(() => choose(event.target.value)) }, ...names);
  const other = el("button", { id: "language", class: "quiet", lang: language === "zh" ? "en" : "zh-Hans", onclick: changeLanguage }, t("language"));
  const theme = el("button", { id: "theme", class: "quiet", "aria-label": t("theme"), title: t("theme"), onclick: changeTheme }, "◐");
  top.replaceChildren(
    el("div", { class: "title" }, el("h1", {}, t("title")), el("span", { class: "tools" }, other, theme)),
    el("p", { class: "lead", html: t("lead") }),
    el("p", { class: "row" }, el("label", { for: "model" }, t("model")), model, page.about ? el("span", { class: "muted" }, t(`about.${page.about.kind}`)) : null),
    el("p", { class: "row" }, el("label", { for: "text" }, t("text")), textField()),
    source.exported ? el("p", { class: "small muted" }, t("exported")) : "",
  );
}

function textField() {
  const field = el("textarea", { id: "text", rows: 2, spellcheck: false, dir: "auto", disabled: source.exported });
  field.value = state.text;
  field.addEventListener("input", () => {
    busy(true);
    clearTimeout(typing);
    typing = setTimeout(() => {
      typing = 0;
      set({ text: field.value });
    }, 250);
  });
  return field;
}

function changeLanguage() {
  setLanguage(language === "zh" ? "en" : "zh");
  store("language", language);
  frame();
  if (page.look) draw();
  document.getElementById("language").focus();
}

function changeTheme() {
  const dark = getComputedStyle(document.documentElement).colorScheme.includes("dark");
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  store("theme", dark ? "light" : "dark");
  if (page.look) draw();
}

function draw() {
  const kept = state.focus ?? document.activeElement?.id;
  controls(page);
  strip(page);
  const main = document.getElementById("view");
  main.replaceChildren();
  main.className = `view-${state.view}`;
  VIEWS[state.view](main, page);
  main.append(next(), claims());
  if (kept && kept !== "text") document.getElementById(kept)?.focus({ preventScroll: true });
  busy(typing !== 0);
  document.body.dataset.drawn = drawings += 1;
}

function next() {
  const following = page.views[page.views.indexOf(state.view) + 1];
  if (!following) return el("span");
  return el("p", {}, el("button", { class: "next", onclick: () => toTop(following) }, t("next", { view: t(`view.${following}`) })));
}

function toTop(view) {
  set({ view, focus: `tab-${view}` });
  document.getElementById("controls").scrollIntoView({ block: "start" });
}

function claims() {
  const links = CLAIMS[state.view].map((name) => el("li", {}, el("a", { href: `${CLAIMS_PAGE[language]}#${name}` }, t(`claim.${name}`))));
  return el("aside", { class: "claims" }, el("h4", {}, t("claim")), el("ul", {}, ...links));
}

function busy(is) {
  if (is) document.body.setAttribute("aria-busy", "true");
  else document.body.removeAttribute("aria-busy");
}

function notice(text, bad = false) {
  const box = document.getElementById("notice");
  box.textContent = text;
  box.className = bad ? "bad" : "";
  box.hidden = !text;
}

function stored(name) {
  try {
    return localStorage.getItem(`querykey.${name}`);
  } catch {
    return null; // a page from a file, or in a frame, may not remember
  }
}

function store(name, value) {
  try {
    localStorage.setItem(`querykey.${name}`, value);
  } catch {
    // as above
  }
}
