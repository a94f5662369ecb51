// Small pieces of drawing: elements, bars, heat maps and their colour scale.

const SVG = "http://www.w3.org/2000/svg";

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

// A select of [value, text] pairs.
export function select(id, options, chosen, change, attributes = {}) {
  const entries = options.map(([value, text]) => el("option", { value, selected: value === chosen }, text));
  return el("select", { id, onchange: (event) => change(event.target.value), ...attributes }, ...entries);
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

// The colours of a heat map, as they are in this theme: for 0, for 1, for −1, for what is masked.
function palette() {
  const probe = document.documentElement.appendChild(el("i"));
  const found = ["--ground", "--heat", "--cold", "--closed"].map((name) => {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3).map(Number);
  });
  probe.remove();
  return found;
}

// `value(i, j)` is in −1 … 1; null where nothing may be. The root makes small values visible.
export function heat(canvas, height, width, value) {
  const [ground, high, low, closed] = palette();
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let i = 0, at = 0; i < height; i += 1) {
    for (let j = 0; j < width; j += 1, at += 4) {
      const here = value(i, j);
      const goal = here === null ? closed : here < 0 ? low : high;
      const part = here === null ? 1 : Math.sqrt(Math.min(1, Math.abs(here)));
      for (let c = 0; c < 3; c += 1) image.data[at + c] = ground[c] + (goal[c] - ground[c]) * part;
      image.data[at + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
}

// The scale of a heat map, from `low` (0 or −1) to 1, with the texts of its marks below it.
export function colourScale(low, marks) {
  const steps = 100;
  const canvas = el("canvas", { class: "heat", "aria-hidden": true });
  heat(canvas, 1, steps, (_, j) => low + ((1 - low) * j) / (steps - 1));
  return el("div", { class: "scale" }, canvas, el("div", { class: "marks" }, ...marks.map((text) => el("span", {}, text))));
}

// The value of a heat map's colour for each pair of tokens of a head.
export function shading({ scores, weights }, show) {
  const most = scores.largest() || 1e-9;
  return (i, j) => {
    if (!weights.has(i, j)) return null;
    return show === "scores" ? scores.at(i, j) / most : weights.at(i, j);
  };
}
