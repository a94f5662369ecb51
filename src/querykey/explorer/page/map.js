// The map of a head: its heat map, and the graph of who attends most to whom.

import { percent } from "./data.js";
import { el, graph, heat, kindOfRing, quoted, shading } from "./draw.js";
import { kindOfScores } from "./walk.js";
import { t } from "./strings.js";

const LABELLED = 40; // tokens with their names at the sides of the heat map

export function map(root, page) {
  const { state, about, look } = page;
  root.append(el("p", { class: "lead" }, t("map.say")));
  if (about.causal) root.append(el("p", { class: "small verdict" }, t("map.causal")));
  root.append(
    el(
      "div",
      { class: "two" },
      el("figure", {}, el("figcaption", {}, el("h3", {}, t("map.heat")), showing(page)), heatMap(page, look), pairSaid(page)),
      el("figure", {}, el("figcaption", {}, el("h3", {}, t("map.graph")), el("p", { class: "small" }, t("map.graph.say"))), graphOf(look, about, state.setting, page)),
    ),
  );
}

function showing(page) {
  const select = el("select", { id: "show", onchange: (event) => page.set({ show: event.target.value }) });
  for (const value of ["pattern", "scores"]) {
    select.append(el("option", { value, selected: page.state.show === value }, t(`map.${value}`)));
  }
  return el("p", { class: "small" }, el("label", { for: "show" }, `${t("map.show")} `), select);
}

// Rows are queries. Arrow keys and the pointer choose a pair.
export function heatMap(page, look, { live = true, show = page.state.show } = {}) {
  const { head, tokens } = look;
  const { state } = page;
  const size = tokens.length;
  const canvas = el("canvas", { class: "heat" });
  heat(canvas, size, shading(head, show));
  const at = (n) => `${(100 * n) / size}%`;
  const marks = [
    el("span", { class: "mark row", style: `top:${at(state.i)};height:${at(1)}` }),
    el("span", { class: "mark column", style: `left:${at(state.j)};width:${at(1)}` }),
  ];
  const field = el("div", { class: "field" }, canvas, el("span", { class: "diagonal" }), ...(live ? marks : []));
  if (live) {
    field.tabIndex = 0;
    field.id = "field";
    field.setAttribute("role", "img");
    field.setAttribute("aria-label", t("map.heat"));
    field.setAttribute("aria-describedby", "pair");
    const under = (event) => {
      const box = canvas.getBoundingClientRect();
      const part = (x, from, length) => Math.max(0, Math.min(size - 1, Math.floor(((x - from) / length) * size)));
      return { i: part(event.clientY, box.top, box.height), j: part(event.clientX, box.left, box.width) };
    };
    field.addEventListener("pointermove", (event) => page.pair(under(event).j, under(event).i));
    field.addEventListener("click", (event) => page.set(under(event)));
    field.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      const within = (n) => Math.max(0, Math.min(size - 1, n));
      page.set({ i: within(state.i + step[0]), j: within(state.j + step[1]), focus: "field" });
    });
  }
  if (size > LABELLED) return el("div", { class: "heatmap" }, field);
  const names = (side) => el("div", { class: side, "aria-hidden": true, style: `--n:${size}` }, ...tokens.map((token) => el("span", {}, el("bdi", {}, token))));
  return el("div", { class: "heatmap", style: `--n:${size}` }, el("div", { class: "sides" }, el("span"), names("above"), names("left"), field));
}

export function pairSaid({ state, look }) {
  return el("p", { id: "pair", class: "small", "aria-live": "polite", html: pairText(state.i, state.j, look) });
}

export function pairText(i, j, { head, tokens }) {
  return t("map.pair", {
    i: quoted(tokens[i]),
    j: quoted(tokens[j]),
    a: `<b>${head.scores.print(i, j)}</b>`,
    b: `<b>${head.scores.print(j, i)}</b>`,
    p: percent(head.weights.at(i, j)),
    q: percent(head.weights.at(j, i)),
  });
}

export function graphOf(look, about, setting, page, { choose = true } = {}) {
  const { head, tokens } = look;
  const label = `${t("map.graph")}: ${head.rings.map((ring) => ring.map((i) => tokens[i]).join(" → ")).join("; ")}`;
  const drawn = graph(tokens, head, { chosen: page.state.i, choose: choose ? (i) => page.set({ i }) : null, label });
  return el("div", {}, drawn, counts(head), rings(head, tokens), law(head, about, setting));
}

function counts(head) {
  const of = (kind) => head.rings.filter((ring) => kindOfRing(ring) === kind);
  const entry = (kind, text) => el("li", { class: `${kind}${of(kind).length ? "" : " none"}` }, el("span", { class: `swatch ${kind}` }), text);
  const most = Math.max(0, ...of("ring").map((ring) => ring.length));
  return el(
    "ul",
    { class: "counts" },
    entry("loop", t("map.loops", { n: of("loop").length })),
    entry("pair", t("map.pairs", { n: of("pair").length })),
    entry("ring", t(most ? "map.longest" : "map.rings", { n: of("ring").length, most })),
  );
}

function rings(head, tokens) {
  const longer = head.rings.filter((ring) => ring.length > 1).sort((a, b) => b.length - a.length).slice(0, 6);
  if (!longer.length) return null;
  const names = longer.map((ring) => [...ring, ring[0]].map((i) => quoted(tokens[i])).join(ring.length > 2 ? " → " : " ⇄ "));
  const written = names.map((text, n) => (longer[n].length > 2 ? text : text.split(" ⇄ ").slice(0, 2).join(" ⇄ ")));
  return el("p", { class: "small rings", html: written.join("<br>") });
}

function law(head, about, setting) {
  if (about.causal || head.factor.kind === "other") return null;
  const kind = kindOfScores(about, setting);
  const masked = setting === "selfmask" || /selfmask/.test(about.design ?? "");
  const said = masked ? [t("law.none"), kind === "any" ? "" : t("law.mirror")] : [t(`law.${kind}`)];
  return el("p", { class: "law" }, said.join(" "));
}
