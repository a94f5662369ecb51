// The graph of who attends most to whom: an arrow for each token, and the cycles that the arrows end in.

import { svg } from "./draw.js";

const SIZE = 420;
const MANY = 60; // tokens, above which only some have their names
let unique = 0;

export function kindOfCycle(cycle) {
  return cycle.length === 1 ? "loop" : cycle.length === 2 ? "pair" : "cycle";
}

// For each token what its arrow is part of: a cycle, by its kind, or a path to one.
export function kinds(count, cycles) {
  const kind = new Array(count).fill("path");
  for (const cycle of cycles) for (const i of cycle) kind[i] = kindOfCycle(cycle);
  return kind;
}

export function shortened(token, most = 9) {
  const signs = [...token];
  return signs.length > most ? `${signs.slice(0, most - 1).join("")}…` : token;
}

export function graph(tokens, { whom, cycles }, { chosen = -1, choose = null, label }) {
  const count = tokens.length;
  const kind = kinds(count, cycles);
  const longest = count > MANY ? 3 : Math.max(...tokens.map((token) => shortened(token).length));
  const radius = SIZE / 2 - 14 - 6.5 * longest;
  unique += 1;
  const mark = (name) => `arrow-${name}-${unique}`;
  const root = svg("svg", { class: "graph", viewBox: `0 0 ${SIZE} ${SIZE}`, role: "img", "aria-label": label }, arrows(mark));
  const weight = (i) => (kind[i] === "path" ? 0 : 1) + (i === chosen ? 2 : 0);
  for (const i of [...Array(count).keys()].sort((a, b) => weight(a) - weight(b))) {
    root.append(edge(i, whom[i], count, radius, kind[i], i === chosen ? " chosen" : "", mark));
  }
  tokens.forEach((token, i) => root.append(node(token, i, count, radius, kind[i], i === chosen, choose)));
  return root;
}

function arrows(mark) {
  const shape = { viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 8, markerHeight: 8, markerUnits: "userSpaceOnUse", orient: "auto" };
  return svg("defs", {}, ...["path", "pair", "cycle"].map((name) => svg("marker", { id: mark(name), ...shape }, svg("path", { d: "M0 .5 8 4 0 7.5z", class: `fill-${name}` }))));
}

function place(i, count, radius) {
  const angle = (2 * Math.PI * i) / count - Math.PI / 2;
  return [SIZE / 2 + radius * Math.cos(angle), SIZE / 2 + radius * Math.sin(angle), angle];
}

function edge(i, j, count, radius, kind, chosen, mark) {
  if (i === j) {
    const [cx, cy] = place(i, count, radius - 11);
    return svg("circle", { cx, cy, r: 8, class: `edge loop${chosen}` });
  }
  const [x1, y1] = place(i, count, radius - 5);
  const [x2, y2] = place(j, count, radius - 7);
  const apart = Math.min(Math.abs(i - j), count - Math.abs(i - j)) / (count / 2);
  const inward = (0.25 + 0.55 * apart) / 1.3; // neighbours bend towards the middle less
  const side = kind === "pair" ? 16 : 0; // there and back side by side
  const length = Math.hypot(x2 - x1, y2 - y1) || 1;
  const bend = (a, b) => (a + b) / 2 + (SIZE / 2 - (a + b) / 2) * inward;
  const [bx, by] = [bend(x1, x2) - ((y2 - y1) / length) * side, bend(y1, y2) + ((x2 - x1) / length) * side];
  return svg("path", { d: `M${x1} ${y1}Q${bx} ${by} ${x2} ${y2}`, class: `edge ${kind}${chosen}`, "marker-end": `url(#${mark(kind)})` });
}

function node(token, i, count, radius, kind, chosen, choose) {
  const [cx, cy] = place(i, count, radius);
  const [x, y, angle] = place(i, count, radius + 9);
  const drawn = svg("g", { class: `node ${kind}${chosen ? " chosen" : ""}` }, svg("circle", { cx, cy, r: count > MANY ? 2 : 4 }), svg("title", {}, token));
  if (count <= MANY || kind === "cycle" || chosen) {
    const flipped = Math.cos(angle) < -0.01;
    const turn = ((angle * 180) / Math.PI + (flipped ? 180 : 0)).toFixed(1);
    drawn.append(svg("text", { x, y, transform: `rotate(${turn} ${x} ${y})`, "text-anchor": flipped ? "end" : "start", dy: "0.35em" }, shortened(token)));
  }
  if (choose) drawn.addEventListener("click", () => choose(i));
  return drawn;
}
