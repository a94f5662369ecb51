// Small pieces of drawing: elements, bars, heat maps, the graph of who attends most to whom.

const SVG = "http://www.w3.org/2000/svg";
let unique = 0;

export function el(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "html") element.innerHTML = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function escaped(text) {
  return text.replace(/[&<>"]/g, (sign) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[sign]);
}

// A token as it stands in a sentence: isolated, so that right-to-left text leaves the sentence alone.
export function quoted(token) {
  return `<bdi class=token>${escaped(token)}</bdi>`;
}

export function bars(values, { colour, most, height = 40, label, tall = false }) {
  const top = most || Math.max(...values.map(Math.abs), 1e-9);
  const middle = height / 2;
  const path = values
    .map((value, i) => {
      const length = Math.max(-1, Math.min(1, value / top)) * (middle - 1);
      return `M${(i + 0.1).toFixed(2)} ${middle}h.8v${(-length).toFixed(2)}h-.8z`;
    })
    .join("");
  return svg(
    "svg",
    { class: tall ? "bars tall" : "bars", viewBox: `0 0 ${values.length} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
    svg("path", { d: `M0 ${middle}H${values.length}`, class: "zero", "vector-effect": "non-scaling-stroke" }),
    svg("path", { d: path, class: `fill-${colour}` }),
  );
}

function colourOf(name) {
  const text = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16));
}

// `share(i, j)` is in −1 … 1; null where nothing may be.
export function heat(canvas, size, share) {
  const [ground, high, low, closed] = ["--ground", "--heat", "--cold", "--closed"].map(colourOf);
  canvas.width = size;
  canvas.height = size;
  const context = canvas.getContext("2d");
  const image = context.createImageData(size, size);
  for (let i = 0, at = 0; i < size; i += 1) {
    for (let j = 0; j < size; j += 1, at += 4) {
      const value = share(i, j);
      const goal = value === null ? closed : value < 0 ? low : high;
      const part = value === null ? 1 : Math.sqrt(Math.min(1, Math.abs(value)));
      for (let c = 0; c < 3; c += 1) image.data[at + c] = ground[c] + (goal[c] - ground[c]) * part;
      image.data[at + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
}

// The share of a heat map's colour for each pair of tokens of a head.
export function shading(head, show) {
  const { scores, weights } = head;
  let most = 1e-9;
  const size = scores.shape[0];
  if (show === "scores") {
    for (const whole of scores.values) most = Math.max(most, Math.abs(whole));
  }
  return (i, j) => {
    const at = i * size + j;
    if (weights.values[at] === null) return null;
    return show === "scores" ? scores.values[at] / most : weights.values[at] / weights.scale;
  };
}

export function kindOfRing(ring) {
  return ring.length === 1 ? "loop" : ring.length === 2 ? "pair" : "ring";
}

export function graph(tokens, head, { chosen = -1, choose = null, label }) {
  const count = tokens.length;
  const middle = 210;
  const radius = count > 60 ? 190 : 150;
  const small = count > 60;
  const place = (i, r) => {
    const angle = (2 * Math.PI * i) / count - Math.PI / 2;
    return [middle + r * Math.cos(angle), middle + r * Math.sin(angle), angle];
  };
  const kind = new Array(count).fill("path");
  for (const ring of head.rings) for (const i of ring) kind[i] = kindOfRing(ring);
  unique += 1;
  const mark = (name) => `arrow-${name}-${unique}`;
  const root = svg("svg", { class: "graph", viewBox: "0 0 420 420", role: "img", "aria-label": label });
  const heads = svg("defs");
  for (const name of ["path", "pair", "ring"]) {
    const arrow = svg("marker", { id: mark(name), viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 8, markerHeight: 8, markerUnits: "userSpaceOnUse", orient: "auto" });
    arrow.append(svg("path", { d: "M0 .5 8 4 0 7.5z", class: `fill-${name}` }));
    heads.append(arrow);
  }
  root.append(heads);
  const order = [...Array(count).keys()].sort((a, b) => weight(a) - weight(b));
  function weight(i) {
    return (kind[i] === "path" ? 0 : 1) + (i === chosen ? 2 : 0);
  }
  for (const i of order) {
    const name = kind[i];
    const chosenClass = i === chosen ? " chosen" : "";
    if (head.whom[i] === i) {
      const [x, y] = place(i, radius - 11);
      root.append(svg("circle", { cx: x, cy: y, r: 8, class: `edge loop${chosenClass}` }));
      continue;
    }
    const [x1, y1] = place(i, radius - 5);
    const [x2, y2] = place(head.whom[i], radius - 7);
    const distance = Math.min(Math.abs(i - head.whom[i]), count - Math.abs(i - head.whom[i])) / (count / 2);
    const pull = 0.75 - 0.55 * distance;
    const side = name === "pair" ? 16 : 0; // there and back side by side
    const length = Math.hypot(x2 - x1, y2 - y1) || 1;
    const bx = (x1 + x2) / 2 + ((middle - (x1 + x2) / 2) * (1 - pull)) / 1.3 - ((y2 - y1) / length) * side;
    const by = (y1 + y2) / 2 + ((middle - (y1 + y2) / 2) * (1 - pull)) / 1.3 + ((x2 - x1) / length) * side;
    root.append(svg("path", { d: `M${x1} ${y1}Q${bx} ${by} ${x2} ${y2}`, class: `edge ${name}${chosenClass}`, "marker-end": `url(#${mark(name)})` }));
  }
  tokens.forEach((token, i) => {
    const [x, y] = place(i, radius);
    const [tx, ty, angle] = place(i, radius + 9);
    const node = svg("g", { class: `node ${kind[i]}${i === chosen ? " chosen" : ""}` });
    node.append(svg("circle", { cx: x, cy: y, r: small ? 2 : 4 }));
    if (!small || kind[i] === "ring" || i === chosen) {
      const flipped = Math.cos(angle) < -0.01;
      const turn = ((angle * 180) / Math.PI + (flipped ? 180 : 0)).toFixed(1);
      const text = svg("text", { x: tx, y: ty, transform: `rotate(${turn} ${tx} ${ty})`, "text-anchor": flipped ? "end" : "start", dy: "0.35em" });
      text.textContent = token.length > 9 ? `${token.slice(0, 8)}…` : token;
      node.append(text);
    }
    node.append(svg("title", {}, token));
    if (choose) node.addEventListener("click", () => choose(i));
    root.append(node);
  });
  return root;
}
