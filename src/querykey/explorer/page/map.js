// The map of a head: its heat map, and the graph of who attends most to whom.

import { percent, printed } from "./data.js";
import { colourScale, el, heat, quoted, select, shading } from "./draw.js";
import { graph, kindOfCycle } from "./graph.js";
import { results } from "./results.js";
import { t } from "./strings.js";
import { law } from "./theorem.js";

const LABELS = 36; // names at a side of the heat map at most

export function map(root, page) {
  const { state, set, about, look } = page;
  const shown = ["weights", "scores"].map((value) => [value, t(`map.${value}`)]);
  const showing = el("p", { class: "small" }, el("label", { for: "show" }, `${t("map.show")} `), select("show", shown, state.show, (show) => set({ show })));
  root.append(
    results(page) ?? "",
    el("p", { class: "lead" }, t("map.say")),
    el(
      "div",
      { class: "two" },
      el("figure", {}, el("figcaption", {}, el("h3", {}, t("map.heat")), showing), heatMap(page, look), pairSaid(page)),
      el("figure", {}, el("figcaption", {}, el("h3", {}, t("map.graph")), el("p", { class: "small" }, t("map.graph.say"))), graphOf(look, about, state.intervention, page, { choose: (i) => set({ i }) })),
    ),
  );
}

// Every how many tokens the heat map can show a name.
export function stride(size, labels = LABELS) {
  return Math.ceil(size / labels);
}

// Rows are queries. Arrow keys and the pointer choose a pair.
export function heatMap(page, look, { live = true, show = page.state.show } = {}) {
  const { head, tokens } = look;
  const { state } = page;
  const size = tokens.length;
  const canvas = el("canvas", { class: "heat" });
  heat(canvas, size, size, shading(head, show));
  const at = (n) => `${(100 * n) / size}%`;
  const row = el("span", { class: "mark row", style: `top:${at(state.i)};height:${at(1)}` });
  const column = el("span", { class: "mark column", style: `left:${at(state.j)};width:${at(1)}` });
  const field = el("div", { class: "field" }, canvas, el("span", { class: "diagonal" }), row, live ? column : null);
  if (live) chooses(field, canvas, size, page);
  const every = stride(size);
  const named = [...tokens.keys()].filter((i) => i % every === 0);
  const names = (side, line) =>
    el("div", { class: side, "aria-hidden": true }, ...named.map((i) => el("span", { style: `grid-${line}:${i + 1} / span ${Math.min(every, size - i)}` }, el("bdi", {}, tokens[i]))));
  const sides = el("div", { class: "sides" }, el("span"), names("above", "column"), names("left", "row"), field);
  return el("div", { class: "heatmap", style: `--n:${size};--named:${named.length}` }, sides, scaleOf(head, show));
}

function scaleOf(head, show) {
  const most = printed(head.scores.largest(), 1);
  return show === "scores" ? colourScale(-1, [`−${most}`, "0", most]) : colourScale(0, [0, 0.25, 0.5, 0.75, 1].map((x) => percent(x, 0)));
}

function chooses(field, canvas, size, page) {
  const { state } = page;
  const within = (n) => Math.max(0, Math.min(size - 1, n));
  const under = (event) => {
    const box = canvas.getBoundingClientRect();
    const part = (x, from, length) => within(Math.floor(((x - from) / length) * size));
    return { i: part(event.clientY, box.top, box.height), j: part(event.clientX, box.left, box.width) };
  };
  Object.assign(field, { tabIndex: 0, id: "field" });
  for (const [name, value] of Object.entries({ role: "img", "aria-label": t("map.heat"), "aria-describedby": "pair" })) field.setAttribute(name, value);
  field.addEventListener("pointermove", (event) => page.pair(under(event).j, under(event).i));
  field.addEventListener("click", (event) => page.set(under(event)));
  field.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    page.set({ i: within(state.i + step[0]), j: within(state.j + step[1]) }, "field");
  });
}

function pairSaid({ state, look }) {
  return el("p", { id: "pair", class: "small", "aria-live": "polite", html: pairText(state.i, state.j, look) });
}

export function pairText(i, j, { head, tokens }) {
  return t("map.pair", {
    i: quoted(tokens[i]),
    j: quoted(tokens[j]),
    a: `<b>${head.scores.print(i, j)}</b>`,
    b: `<b>${head.scores.print(j, i)}</b>`,
    p: head.weights.has(i, j) ? percent(head.weights.at(i, j)) : t("walk.masked"),
    q: head.weights.has(j, i) ? percent(head.weights.at(j, i)) : t("walk.masked"),
  });
}

export function graphOf(look, about, intervention, page, { choose, cycle }) {
  const { head, tokens } = look;
  const label = `${t("map.graph")}: ${head.cycles.map((cycle) => cycle.map((i) => tokens[i]).join(" → ")).join("; ")}`;
  const drawn = graph(tokens, head, { chosen: page.state.i, choose, label });
  return el("div", {}, drawn, counts(head), cyclesSaid(head, tokens), law(look, about, intervention, { tied: intervention === "trained" ? page.tied : {}, cycle }));
}

function counts({ cycles }) {
  const of = (kind) => cycles.filter((cycle) => kindOfCycle(cycle) === kind);
  const entry = (kind, text) => el("li", { class: `${kind}${of(kind).length ? "" : " none"}` }, el("span", { class: `swatch ${kind}` }), text);
  const most = Math.max(0, ...of("cycle").map((cycle) => cycle.length));
  return el(
    "ul",
    { class: "counts" },
    entry("loop", t("map.loops", { n: of("loop").length })),
    entry("pair", t("map.pairs", { n: of("pair").length })),
    entry("cycle", t(most ? "map.longest" : "map.cycles", { n: of("cycle").length, most })),
  );
}

function cyclesSaid({ cycles }, tokens) {
  const longer = cycles.filter((cycle) => cycle.length > 1).sort((a, b) => b.length - a.length).slice(0, 6);
  const names = (cycle) => cycle.map((i) => quoted(tokens[i]));
  const written = longer.map((cycle) => (cycle.length > 2 ? [...names(cycle), quoted(tokens[cycle[0]])].join(" → ") : names(cycle).join(" ⇄ ")));
  return longer.length ? el("p", { class: "small cycles", html: written.join("<br>") }) : null;
}
