// The page's pure functions, under node; test_explore_functions.py runs this beside a copy of the page.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Numbers, opened, percent, printed } from "./page/data.js";
import { escaped, shading } from "./page/draw.js";
import { kindOfCycle, kinds, shortened } from "./page/graph.js";
import { arranged } from "./page/heads.js";
import { stride } from "./page/map.js";
import { effectText } from "./page/predictions.js";
import { DEFAULTS, fitted, fromHash, queries, scopes, toHash } from "./page/state.js";
import { explained, plain, setLanguage, t } from "./page/strings.js";
import { around, oneWay, short } from "./page/theorem.js";
import { firstToken, mostAttended } from "./page/tokens.js";

const ABOUT = {
  layers: [{ heads: 3 }, { heads: 5 }],
  interventions: ["trained", "copied", "cosine"].map((name) => ({ name, matrices: { q: "W<sub>Q</sub>", k: "K", v: "V" } })),
  first: [1, 4],
  example: "an example",
};

test("numbers are printed with a minus sign and never as −0", () => {
  assert.equal(printed(-1.25, 1), "−1.3");
  assert.equal(printed(-0.001, 2), "0.00");
  assert.equal(percent(0.1234), "12.3\u00a0%");
});

test("a rounded array gives its values row by row", () => {
  const numbers = new Numbers({ shape: [2, 3], digits: 1, values: [1, -2, 3, null, 5, -60] });
  assert.equal(numbers.at(1, 2), -6);
  assert.equal(numbers.print(0, 1), "−0.2");
  assert.deepEqual(numbers.row(0), [0.1, -0.2, 0.3]);
  assert.deepEqual([numbers.has(1, 0), numbers.has(1, 1), numbers.at(1, 0)], [false, true, 0]);
  assert.equal(numbers.largest(), 6);
});

test("answers are opened where they hold arrays, and only there", () => {
  const { head, tokens } = opened({ head: { q: { shape: [1], digits: 0, values: [7] }, cycles: [[0]] }, tokens: ["a"] });
  assert.equal(head.q.at(0), 7);
  assert.deepEqual([head.cycles, tokens], [[[0]], ["a"]]);
});

test("a state comes back from its address", () => {
  const pick = (values) => values[Math.floor(Math.random() * values.length)];
  for (let round = 0; round < 200; round += 1) {
    const state = {
      ...DEFAULTS, view: pick(["walk", "map"]), model: pick(["cycle", "run:text:q=k,v+core=full"]), text: pick(["a & b=c", "注意 #1", "", "100 %"]),
      layer: pick([0, 7]), least: pick([null, -0.25]), masked: pick([true, false]), scope: pick(["head", "all"]),
    };
    assert.deepEqual({ ...DEFAULTS, ...fromHash(`#${toHash(state)}`) }, state);
  }
});

test("defaults are left out of the address, and what is no state is passed over", () => {
  assert.equal(toHash({ ...DEFAULTS, text: "an example" }, { text: "an example" }), "");
  assert.deepEqual(fromHash("#view=map&layer=x&head=&odd=1&i=3"), { view: "map", i: 3 });
});

test("a state is made to fit the model", () => {
  const found = fitted({ ...DEFAULTS, layer: 9, head: -3, intervention: "core", b: "tied", scope: "all" }, ABOUT);
  assert.deepEqual([found.layer, found.head, found.intervention, found.a, found.b], [1, 0, "trained", "trained", "copied"]);
  assert.deepEqual([found.text, found.scope], ["an example", "all"]);
  assert.deepEqual([fitted(DEFAULTS, ABOUT).layer, fitted(DEFAULTS, ABOUT).head], [1, 4]);
  const one = { ...ABOUT, layers: [{ heads: 1 }], first: [0, 0] };
  assert.deepEqual(scopes(one), ["head"]);
  assert.equal(fitted({ ...DEFAULTS, scope: "all" }, one).scope, "head");
});

test("around three tokens the products of weights differ only as the scores do", () => {
  const rows = [[5, 3, 0], [1, 2, 4], [2.5, 0.5, 1]];
  const array = (values) => new Numbers({ shape: [3, 3], digits: 2, values: values.flat().map((x) => Math.round(100 * x)) });
  const head = { scores: array(rows), weights: array(rows) };
  const p = rows.map((row) => row.map((x) => Math.exp(x) / row.reduce((sum, y) => sum + Math.exp(y), 0)));
  const cycle = oneWay(head);
  assert.deepEqual([...cycle].sort(), [0, 1, 2]);
  const [i, j, l] = cycle;
  const found = around(head, cycle);
  assert.ok(Math.abs(found.there / (p[i][j] * p[j][l] * p[l][i]) - 1) < 1e-9);
  assert.ok(Math.abs(found.back / (p[i][l] * p[l][j] * p[j][i]) - 1) < 1e-9);
  assert.ok(found.there > found.back && !found.equal && Math.abs(found.times / (found.there / found.back) - 1) < 1e-9);
  const even = rows.map((row, a) => row.map((x, b) => x + rows[b][a]));
  assert.ok(around({ scores: array(even), weights: array(even) }, cycle).equal);
  assert.deepEqual([0.123, 0.0999, 12.6, 350.2, 4.2e-7, 1234].map(short), ["0.12", "0.1", "13", "350", "4.2\u00a0·\u00a010<sup>−7</sup>", "1.2\u00a0·\u00a010<sup>3</sup>"]);
});

test("the comparison asks for two looks, the other views for one", () => {
  const state = fitted({ ...DEFAULTS, a: "trained", b: "cosine", intervention: "copied" }, ABOUT);
  assert.deepEqual(queries(state).map((query) => query.intervention), ["trained", "cosine"]);
  assert.deepEqual(queries({ ...state, view: "heads" }).map((query) => [query.intervention, query.overview]), [["copied", true]]);
});

const look = (weights, { special = [], tokens = [..."abcd"] } = {}) => {
  const size = tokens.length;
  const values = weights.flat().map((x) => Math.round(1000 * x));
  const whom = weights.map((row) => row.indexOf(Math.max(...row)));
  return { tokens, special: tokens.map((_, i) => special.includes(i)), head: { whom, weights: new Numbers({ shape: [size, size], digits: 3, values }) } };
};

test("the first token is one that attends far, and special tokens are not chosen", () => {
  const weights = [[1, 0, 0, 0], [0.9, 0.1, 0, 0], [0.8, 0, 0.2, 0], [0.6, 0.4, 0, 0]];
  assert.equal(firstToken(look(weights)), 2);
  assert.equal(firstToken(look(weights, { special: [0] })), 1);
  assert.equal(mostAttended(look(weights), 2), 0);
  assert.equal(mostAttended(look(weights, { special: [0] }), 3), 1);
  assert.equal(mostAttended(look([[1]], { tokens: ["a"] }), 0), 0);
});

test("arrows are named by what they are part of", () => {
  assert.deepEqual(kinds(6, [[0], [1, 2], [3, 4, 5]]), ["loop", "pair", "pair", "cycle", "cycle", "cycle"]);
  assert.deepEqual(kinds(2, [[1]]), ["path", "loop"]);
  assert.equal(kindOfCycle([1, 2, 3, 4]), "cycle");
});

test("long names are cut between characters", () => {
  assert.equal(shortened("sister"), "sister");
  assert.equal(shortened("🚣🚣🚣🚣", 3), "🚣🚣…");
});

test("a heat map never has more names than places for them", () => {
  for (const size of [1, 12, 36, 37, 100, 512]) assert.ok(Math.ceil(size / stride(size)) <= 36);
  assert.deepEqual([stride(36), stride(37)], [1, 2]);
});

test("heads stand by layer, or those that pass the largest first", () => {
  const overview = { heads: [[0, 0], [0, 1], [1, 0]], self: [0.2, 0.9, 0.5] };
  assert.deepEqual(arranged(overview, { measure: "self", arrange: "place" }, 0.5), [0, 1, 2]);
  assert.deepEqual(arranged(overview, { measure: "self", arrange: "largest" }, 0.5), [1, 2]);
});

test("colours follow weights, or scores by the largest one; what is masked has none", () => {
  const head = { scores: new Numbers({ shape: [2, 2], digits: 0, values: [4, 2, -1, 0] }), weights: new Numbers({ shape: [2, 2], digits: 2, values: [100, null, 25, 75] }) };
  assert.deepEqual([shading(head, "weights")(1, 0), shading(head, "weights")(0, 1)], [0.25, null]);
  assert.deepEqual([shading(head, "scores")(1, 0), shading(head, "scores")(0, 1)], [-0.25, null]);
});

test("text is no markup", () => {
  assert.equal(escaped('<b a="1">&'), "&lt;b a=&quot;1&quot;&gt;&amp;");
});

test("words are filled in, in the language that is chosen", () => {
  assert.equal(t("map.loops", { n: 1 }), "1 self-loop");
  assert.equal(t("map.loops", { n: 2 }), "2 self-loops");
  assert.equal(explained("trained", ABOUT), "The weights as trained: q = x W<sub>Q</sub>, k = x K, v = x V.");
  assert.equal(plain("set.copied"), "W_K := W_Q");
  setLanguage("zh");
  assert.equal(t("map.loops", { n: 2 }), "2 个自环");
  setLanguage("en");
});

test("an effect is said with what is known of it", () => {
  assert.equal(effectText(undefined, "trained"), "unchanged");
  assert.equal(effectText({ cosine: 0.98765 }, "tied"), "cosine to the original vector 0.988");
  const effect = { same: 0.5, before: { right: 1, bits: 0 }, after: { right: 0.25, bits: 3.14159 } };
  assert.match(effectText(effect, "tied"), /^50\u00a0% of answers unchanged; correct answers 100\u00a0% → 25\u00a0%; loss 0.00 → 3.14/);
});
