// One token through one head, step by step: x → q, k, v → products → scores → mask → softmax → weighted sum → answers.

import { percent, printed } from "./data.js";
import { bars, el, quoted, select } from "./draw.js";
import { predictionsAt, rightAnswer } from "./predictions.js";
import { results } from "./results.js";
import { explained, plain, t } from "./strings.js";

const SHOWN = 40; // rows, unless all are asked for
const LARGEST = 4; // values in the sum

export function walk(root, page) {
  const { state, about, look } = page;
  const { head, tokens } = look;
  const names = { i: quoted(tokens[state.i]), j: quoted(tokens[state.j]), layer: head.layer, dim: head.x.shape[1] };
  const now = about.interventions.find(({ name }) => name === state.intervention);
  root.append(
    results(page) ?? "",
    step(1, names, list(head.x, state.i, "x")),
    step(2, { ...names, said: explained(now.name, about) }, projections(head, state.i, now, about), rotary(about, head)),
    step(3, names, meeting(head, state, tokens, now)),
    step(4, { ...names, mask: t(`walk.mask.${head.mask}`, names) }, scoreboard(head, state, tokens, page)),
    step(5, names, mixture(head, state.i, tokens)),
  );
  if (head.predictions) root.append(step(6, names, answers(look, state)));
}

// The likeliest answers at this token, as trained and now.
function answers({ head, targets }, { i, intervention }) {
  const column = (name, predictions) => el("div", {}, el("h4", {}, plain(`set.${name}`)), predictionsAt(predictions, i, targets?.[i]));
  const before = head.before ? [column("trained", head.before.predictions)] : [];
  return el("div", {}, el("div", { class: "two" }, ...before, column(intervention, head.predictions)), rightAnswer(targets, i));
}

function step(number, names, ...drawings) {
  return el(
    "section",
    { class: "step", id: `step-${number}` },
    el("h3", {}, el("span", { class: "number" }, String(number)), t(`walk.${number}`)),
    el("p", { html: t(`walk.${number}.say`, names) }),
    ...drawings,
  );
}

function rotary(about, head) {
  return about.layers[head.layer].positions === "rotary" ? el("p", { class: "small", html: t("walk.2.rotary") }) : null;
}

function shape(...sizes) {
  return el("span", { class: "shape" }, sizes.join(" × "));
}

// A list of numbers as bars, its name and shape before it, and the numbers for those who want them.
function list(vectors, i, role, { label = role, most, note } = {}) {
  const values = vectors.row(i);
  const numbers = values.map((_, n) => vectors.print(i, n)).join("  ");
  const details = el("details", {}, el("summary", {}, t("walk.numbers")), el("code", { class: `numbers numbers-${role}` }, numbers));
  return el(
    "div",
    { class: "list" },
    el("span", { class: `name ${role}` }, label, shape(1, values.length)),
    bars(values, { colour: role, most, label: `${label}: ${numbers.slice(0, 200)}`, tall: role === "x" }),
    note ? el("span", { class: "note" }, note) : null,
    details,
  );
}

function projections(head, i, { matrices }, { layers }) {
  const shared = matrices.q === matrices.k;
  const most = Math.max(...["q", "k"].flatMap((role) => head[role].row(i).map(Math.abs)));
  const rows = ["q", "k", "v"].map((role) => {
    const note = role === "k" && shared && layers[head.layer].positions !== "rotary" ? t("walk.same") : null;
    return el(
      "div",
      { class: `projection ${role}` },
      el("span", { class: "times" }, el("span", { class: "x" }, "x"), " · "),
      el("span", { class: `matrix ${role}${shared && role === "k" ? " shared" : ""}` }, el("b", { html: matrices[role] }), shape(head.x.shape[1], head[role].shape[1])),
      el("span", { class: "times" }, " = "),
      list(head[role], i, role, { most: role === "v" ? undefined : most, note }),
    );
  });
  return el("div", { class: "projections" }, ...rows);
}

function meeting(head, { i, j }, tokens, { scores }) {
  if (i === j && tokens.length > 1) {
    const only = el("div", { class: "meetings" }, direction(head, i, i, tokens));
    return el("div", {}, only, el("p", { class: "small", html: t("walk.3.self", { i: quoted(tokens[i]) }) }));
  }
  const difference = Math.abs(head.scores.at(i, j) - head.scores.at(j, i));
  const same = difference < 1e-9;
  const said = same ? `walk.same.${scores}` : `walk.differ.${scores}`;
  return el(
    "div",
    {},
    el("div", { class: "meetings" }, direction(head, i, j, tokens), direction(head, j, i, tokens)),
    el("p", { class: "verdict", html: t(said, { x: printed(difference, 2) }) }),
  );
}

// One direction: the query of one token above the key of the other, their products, the sum, the score.
function direction(head, from, to, tokens) {
  const { kind, number } = head.factor;
  let [q, k] = [head.q.row(from), head.k.row(to)];
  if (kind === "cosine") [q, k] = [q, k].map((x) => x.map((one) => one / (Math.hypot(...x) || 1)));
  const products = q.map((one, n) => one * k[n]);
  const most = Math.max(...q.map(Math.abs), ...k.map(Math.abs));
  const score = head.scores.print(from, to);
  const row = (role, name, values, top) =>
    el("div", { class: "list" }, el("span", { class: `name ${role}`, html: name }), bars(values, { colour: role, most: top, height: 30, label: role }));
  return el(
    "figure",
    { class: "direction" },
    el("figcaption", { html: `${quoted(tokens[from])} → ${quoted(tokens[to])}` }),
    row("q", `q ${quoted(tokens[from])}`, q, most),
    row("k", `k ${quoted(tokens[to])}`, k, most),
    row("product", "q × k", products),
    el("p", { class: "sum" }, ...sums(head, score, kind, number)),
  );
}

function sums(head, score, kind, number) {
  const out = [];
  if (kind === "other") out.push(t("walk.other"));
  else {
    const sum = Number(score.replace("−", "-")) / number;
    out.push(t(kind === "cosine" ? "walk.cosine" : "walk.sum", { sum: printed(sum, kind === "cosine" ? 2 : 1) }), ", ");
    const size = head.q.shape[1];
    const root = Math.abs(number * Math.sqrt(size) - 1) < 1e-4;
    out.push(t(root ? "walk.scaled" : "walk.times", { number: printed(number, 3), size }));
  }
  return [...out, " = ", el("b", { class: "score" }, `${t("walk.score")} ${score}`)];
}

function scoreboard(head, state, tokens, page) {
  const { i } = state;
  const order = [...tokens.keys()];
  if (state.order === "weight") order.sort((a, b) => head.weights.at(i, b) - head.weights.at(i, a));
  const rows = state.all ? order : order.slice(0, SHOWN);
  const most = Math.max(...order.flatMap((j) => [Math.abs(head.scores.at(i, j)), Math.abs(head.scores.at(j, i))]), 1e-9);
  const name = quoted(tokens[i]);
  const top = ["walk.key", "walk.out", "walk.in", "walk.weight"].map((key) => el("th", { scope: "col", html: t(key, { i: name }) }));
  const body = rows.map((j) => {
    const closed = !head.weights.has(i, j);
    return el(
      "tr",
      { class: [j === state.j ? "paired" : "", j === i ? "self" : "", closed ? "closed" : ""].join(" "), "data-j": j, onpointerenter: () => page.pair(j) },
      el("th", { scope: "row", html: quoted(tokens[j]) }),
      el("td", {}, balance(head.scores.at(i, j), most, "q"), el("span", { class: "out" }, head.scores.print(i, j))),
      el("td", {}, balance(head.scores.at(j, i), most, "k"), el("span", { class: "in" }, head.scores.print(j, i))),
      el("td", {}, closed ? el("span", { class: "muted" }, t("walk.masked")) : sharing(head.weights.at(i, j))),
    );
  });
  const sort = select("order", ["text", "weight"].map((value) => [value, t(`walk.order.${value}`)]), state.order, (value) => page.set({ order: value }));
  const more = el("button", { class: "quiet", onclick: () => page.set({ all: true }) }, t("walk.more", { n: tokens.length }));
  return el(
    "div",
    {},
    el("p", { class: "small" }, el("label", { for: "order" }, `${t("walk.order")} `), sort),
    el("div", { class: "scroll" }, el("table", { class: "scoreboard" }, el("thead", {}, el("tr", {}, ...top)), el("tbody", {}, ...body))),
    rows.length < tokens.length ? more : null,
  );
}

function balance(value, most, role) {
  const part = (50 * Math.abs(value)) / most;
  return el("span", { class: "balance" }, el("span", { class: `bar ${role}`, style: `width:${part}%;${value < 0 ? "right" : "left"}:50%` }));
}

function sharing(value) {
  return el("span", { class: "sharing" }, el("span", { class: "bar weight", style: `width:${100 * value}%` }), el("span", { class: "percent" }, percent(value)));
}

function mixture(head, i, tokens) {
  const order = [...tokens.keys()].sort((a, b) => head.weights.at(i, b) - head.weights.at(i, a));
  const largest = order.slice(0, LARGEST).filter((j) => head.weights.at(i, j) > 0);
  const parts = largest.map((j) => head.v.row(j).map((x) => x * head.weights.at(i, j)));
  const sum = head.z.row(i);
  const rest = sum.map((x, n) => x - parts.reduce((all, part) => all + part[n], 0));
  const most = Math.max(...[sum, rest, ...parts].flat().map(Math.abs));
  const row = (name, values, colour = "v") =>
    el("div", { class: "list" }, el("span", { class: "name", html: name }), bars(values, { colour, most, height: 30, label: name.replace(/<[^>]*>/g, "") }));
  const rows = largest.map((j, n) => row(`${percent(head.weights.at(i, j))} × v ${quoted(tokens[j])}`, parts[n]));
  const left = tokens.length - largest.length;
  return el(
    "div",
    { class: "mixture" },
    ...rows,
    left ? row(`+ ${t("walk.rest", { n: left })}`, rest) : null,
    el("div", { class: "total" }, list(head.z, i, "z", { label: "= z", most })),
  );
}
