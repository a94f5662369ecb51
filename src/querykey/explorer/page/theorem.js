// What the theorem says of a head: whether attention is a reversible chain, and what the causal mask hides of it.

import { percent } from "./data.js";
import { el, quoted } from "./draw.js";
import { t } from "./strings.js";

const ROUNDING = 0.03; // of the sum of six scores

// Three tokens around which a head's weights differ most by direction: the pair with the largest difference of its two
// scores, and the third token that adds most to it.
export function oneWay({ scores }) {
  const n = scores.shape[0];
  const way = (i, j) => scores.at(i, j) - scores.at(j, i);
  const all = [...Array(n).keys()];
  if (n < 3) return null;
  let pair = [0, 1];
  for (const i of all) for (const j of all) if (way(i, j) > way(...pair)) pair = [i, j];
  const others = all.filter((l) => !pair.includes(l));
  const [i, j] = pair;
  const third = others.reduce((best, l) => (way(j, l) + way(l, i) > way(j, best) + way(best, i) ? l : best), others[0]);
  return [i, j, third];
}

// The products of the attention weights around a cycle and the other way round, and how many times the one is the other.
export function around({ scores, weights }, cycle) {
  const weight = (i, j) => {
    const open = scores.row(i).filter((_, l) => weights.has(i, l));
    return 1 / open.reduce((sum, score) => sum + Math.exp(score - scores.at(i, j)), 0);
  };
  const next = (n) => cycle[(n + 1) % cycle.length];
  const there = cycle.reduce((product, i, n) => product * weight(i, next(n)), 1);
  const back = cycle.reduce((product, i, n) => product * weight(next(n), i), 1);
  const log = cycle.reduce((sum, i, n) => sum + scores.at(i, next(n)) - scores.at(next(n), i), 0);
  return { there, back, times: Math.exp(log), equal: Math.abs(log) <= ROUNDING };
}

// A positive number with two digits: as it is, or as a power of ten.
export function short(value) {
  if (value >= 0.001 && value < 1000) return value < 10 ? String(Number(value.toPrecision(2))) : value.toFixed(0);
  const power = Math.floor(Math.log10(value));
  return `${(value / 10 ** power).toFixed(1)}\u00a0·\u00a010<sup>${power < 0 ? "−" : ""}${Math.abs(power)}</sup>`;
}

// What holds for the cycles of this head, and what this text shows of it. `cycle` are the tokens to go around.
export function law({ head, tokens }, about, intervention, { tied = {}, cycle = null } = {}) {
  if (head.factor.kind === "other") return null;
  const { scores } = about.interventions.find(({ name }) => name === intervention);
  const said = head.mask === "causal" ? [t("law.causal"), cost(tied)] : [cycles(head, scores), chain(head, tokens, cycle ?? oneWay(head))];
  return el("div", { class: "law" }, ...said.filter(Boolean).map((html) => el("p", { html })));
}

function cycles({ mask }, scores) {
  if (mask !== "self") return t(`law.${scores}`);
  return `${t("law.none")} ${t(scores === "tied" ? "law.symmetric" : `law.${scores}`)}`;
}

function chain(head, tokens, cycle) {
  if (!cycle || !cycle.every((i) => cycle.every((j) => i === j || head.weights.has(i, j)))) return "";
  const { there, back, times, equal } = around(head, cycle);
  const way = [...cycle, cycle[0]].map((i) => quoted(tokens[i])).join(" → ");
  return t(equal ? "law.reversible" : "law.oneway", { way, p: short(there), q: short(back), x: short(Math.max(times, 1 / times)) });
}

// What one matrix would lose of the scores that the mask leaves; nothing before the answer is there.
function cost({ width, scores, lost }) {
  if (!lost) return "";
  const [x, y] = lost.map((part) => percent(part));
  return t(lost[0] < 0.0005 ? "law.free" : "law.cost", { k: width, m: scores, double: 2 * width, x, y });
}
