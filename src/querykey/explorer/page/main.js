// The page: what is chosen, what is asked for, what is drawn.

import { compare } from "./compare.js";
import { controls, header, strip } from "./controls.js";
import { Gone, Server, Trouble } from "./data.js";
import { el } from "./draw.js";
import { heads } from "./heads.js";
import { map, pairText } from "./map.js";
import { DEFAULTS, firstB, fitted, fromHash, queries, scopeOf, scopes, toHash } from "./state.js";
import { language, setLanguage, t } from "./strings.js";
import { firstToken, mostAttended } from "./tokens.js";
import { walk } from "./walk.js";

const VIEWS = { compare, walk, map, heads };
const CLAIMS = { compare: ["c1", "c2", "c4", "c6"], walk: ["c1"], map: ["c1", "c2"], heads: ["c3"] };
const CLAIMS_PAGE = { en: "docs/why.md", zh: "docs/why.zh-CN.md" };

const state = { ...DEFAULTS };
const page = {
  state, about: null, looks: [], look: null, effects: {}, tied: {}, models: [], exported: false, documents: false,
  views: Object.keys(VIEWS), set, pair, choose: (id) => trying(choose, id), setText, changeLanguage, changeTheme,
};
let source = new Server();
let answered = ""; // the queries that `page.looks` answers
let newest = 0; // requests and drawings, so that what comes late is not drawn
let drawings = 0;
let typing = 0; // a timer, while the text is being written

export async function start(given = null) {
  source = given ?? source;
  page.exported = source.exported;
  setLanguage(stored("language") ?? (navigator.language.startsWith("zh") ? "zh" : "en"));
  if (stored("theme")) document.documentElement.dataset.theme = stored("theme");
  await trying(async () => {
    const found = await source.models();
    Object.assign(page, { models: found.models, documents: found.documents });
    // the event's own address: a drawing on its way may have written the former one back by now
    addEventListener("hashchange", ({ newURL }) => trying(follow, {}, new URL(newURL).hash));
    await follow({ model: found.model, text: found.text });
  });
}

// Shows what the address says, over what the page began with.
async function follow(begun = {}, hash = location.hash) {
  const wanted = { ...begun, ...fromHash(hash) };
  const model = page.models.some(({ id }) => id === wanted.model) ? wanted.model : (begun.model ?? state.model ?? page.models[0].id);
  Object.assign(state, DEFAULTS, { model: state.model }, wanted, { model: state.model });
  if (!VIEWS[state.view]) state.view = DEFAULTS.view;
  if (model !== state.model) await choose(model, wanted);
  else await refresh();
}

// Opens another model, and shows `wanted` of it; what is chosen until then belongs to the one before.
async function choose(model, wanted = {}) {
  const before = [state.model, page.look];
  const mine = (newest += 1);
  state.model = model;
  page.look = null;
  busy(true);
  header(page);
  const waited = (answer) => mine === newest && notice(waiting(answer));
  waited({});
  try {
    const about = await source.about(model, waited);
    if (mine !== newest) return;
    Object.assign(page, { about, effects: {}, tied: {} });
    Object.assign(state, { text: null, layer: null, head: null, i: null, j: null, b: null }, wanted, { model });
  } catch (error) {
    if (mine !== newest) return;
    if (page.about) [state.model, page.look] = before;
    header(page);
    throw error;
  }
  Object.assign(state, fitted(state, page.about));
  header(page);
  await refresh();
}

function waiting({ step, done, total, share }) {
  if (!step) return t("opening");
  return `${t(`step.${step}`)} ${total > 1 ? `${Math.round((100 * done) / total)} %` : ""}`;
}

// Changes what is chosen; asks for new numbers where they are needed, else only draws.
function set(changes, focus = null) {
  if (!page.look) return;
  if ("measure" in changes) state.least = null;
  Object.assign(state, changes);
  trying(refresh, focus);
}

// Another pair of tokens under the pointer: only what speaks of the pair is drawn again.
function pair(j, i = state.i) {
  if (j === state.j && i === state.i) return;
  if (state.view === "walk") {
    state.j = j;
    const fresh = el("div");
    walk(fresh, page);
    document.getElementById("step-3").replaceWith(fresh.querySelector("#step-3"));
    for (const row of document.querySelectorAll("tr[data-j]")) row.classList.toggle("paired", Number(row.dataset.j) === j);
  } else if (document.getElementById("pair")) {
    document.getElementById("pair").innerHTML = pairText(i, j, page.look);
  }
}

async function refresh(focus = null) {
  Object.assign(state, fitted(state, page.about));
  const wanted = queries(state);
  const key = JSON.stringify(wanted);
  if (key === answered && page.look) return draw(focus);
  const mine = (newest += 1);
  busy(true);
  const looks = await Promise.all(wanted.map((query, n) => (n && query.intervention === wanted[0].intervention ? null : source.look(query))));
  if (mine !== newest) return;
  show(looks.map((look) => look ?? looks[0]), key, focus);
  await tied(mine);
  await effects(wanted, mine);
}

function show(looks, key, focus) {
  const same = page.look && String(page.look.tokens) === String(looks[0].tokens);
  Object.assign(page, { looks, look: looks[0] });
  answered = key;
  const length = page.look.tokens.length;
  if ((page.shown && !same) || state.i === null || state.i >= length) state.i = firstToken(page.look);
  if ((page.shown && !same) || state.j === null || state.j >= length) state.j = mostAttended(page.look, state.i);
  page.shown = true;
  notice("");
  draw(focus);
}

// What one matrix would cost this head under its causal mask, where the view says so.
async function tied(mine) {
  const { model, text, layer, head, masked, view } = state;
  const of = JSON.stringify([model, text, layer, head]);
  const shared = !["separate", "core"].includes(page.about.interventions[0].scores);
  if (page.tied.of === of || !page.about.causal || !masked || shared || !["compare", "map"].includes(view)) return;
  page.tied = {};
  const found = await source.tied({ model, text, layer, head });
  if (mine !== newest) return;
  page.tied = { of, ...found };
  draw();
}

// What the interventions change in the output, one after the other, since each runs the model.
async function effects(wanted, mine) {
  const of = JSON.stringify([state.model, state.text, state.layer, state.head]);
  if (page.effects.of !== of) page.effects = { of };
  const names = [...new Set(wanted.map(({ intervention }) => intervention))].filter((name) => name !== "trained");
  const order = [...new Set([state.scope, ...scopes(page.about)])];
  for (const scope of order) {
    for (const intervention of names) {
      const at = scopeOf(intervention, scope);
      page.effects[intervention] ??= {};
      if (page.effects[intervention][at]) continue;
      const found = await source.effect({ ...wanted[0], intervention, scope: at });
      if (mine !== newest) return;
      if (found) page.effects[intervention][at] = found;
      draw();
    }
  }
}

async function trying(work, ...given) {
  try {
    await work(...given);
  } catch (error) {
    if (error instanceof Gone) return void waitForServer();
    if (!(error instanceof Trouble)) throw error;
    notice(error.message, true);
    busy(false);
  }
}

let asleep = false;

async function waitForServer() {
  if (asleep) return;
  asleep = true;
  notice(t("gone"), true);
  do await new Promise((done) => setTimeout(done, 1000));
  while (!(await source.models().catch(() => null)));
  asleep = false;
  notice("");
  await trying(async () => {
    if (!page.about) return choose(state.model ?? (await source.models()).models[0].id);
    await source.about(state.model, (answer) => notice(waiting(answer)));
    return refresh();
  });
}

function setText(text) {
  busy(true);
  clearTimeout(typing);
  typing = setTimeout(() => {
    typing = 0;
    set({ text });
  }, 250);
}

function changeLanguage() {
  setLanguage(language === "zh" ? "en" : "zh");
  store("language", language);
  header(page);
  if (page.look) draw();
  document.getElementById("language").focus();
}

function changeTheme() {
  const { theme } = document.documentElement.dataset;
  const dark = theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  store("theme", dark ? "light" : "dark");
  if (page.look) draw();
}

function draw(focus = null) {
  const kept = focus ?? document.activeElement?.id;
  controls(page);
  strip(page);
  const main = document.getElementById("view");
  main.replaceChildren();
  main.className = `view-${state.view}`;
  VIEWS[state.view](main, page);
  main.append(next(), claims());
  if (kept && kept !== "text") document.getElementById(kept)?.focus({ preventScroll: true });
  busy(typing !== 0);
  remember();
  document.body.dataset.drawn = drawings += 1;
}

// The address says what is shown, so that it can be sent to somebody.
function remember() {
  const hash = toHash(state, { text: page.about.example, b: firstB(page.about) });
  try {
    history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  } catch {
    // a page in a frame has no address
  }
}

function next() {
  const following = page.views[page.views.indexOf(state.view) + 1];
  if (!following) return el("span");
  const go = () => {
    set({ view: following }, `tab-${following}`);
    document.getElementById("controls").scrollIntoView({ block: "start" });
  };
  return el("p", {}, el("button", { class: "next", onclick: go }, t("next", { view: t(`view.${following}`) })));
}

function claims() {
  const written = (name) => t(`claim.${name}`);
  const link = (name) => (page.documents ? el("a", { href: `${CLAIMS_PAGE[language]}#${name}`, target: "_blank" }, written(name)) : written(name));
  return el("aside", { class: "claims" }, el("h4", {}, t("claim")), el("ul", {}, ...CLAIMS[state.view].map((name) => el("li", {}, link(name)))));
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
