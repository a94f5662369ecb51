// What every report does: tables sort by a click on a head, curves show their values under the pointer.
"use strict";
(() => {
  const number = (cell) => {
    const text = cell.dataset.sort ?? cell.firstChild?.textContent ?? "";
    const value = parseFloat(text.trim().replace("−", "-").replaceAll(",", ""));
    return Number.isNaN(value) ? null : value;
  };

  function compare(a, b, sign) {
    const [x, y] = [number(a), number(b)];
    if (x !== null && y !== null) return sign * (x - y);
    if (x !== null || y !== null) return x === null ? 1 : -1; // what has no number goes last, in both directions
    return sign * a.textContent.localeCompare(b.textContent);
  }

  for (const head of document.querySelectorAll(".scroll thead th")) {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const body = head.closest("table").tBodies[0], at = head.cellIndex;
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].sort((a, b) => compare(a.cells[at], b.cells[at], down ? -1 : 1));
      body.append(...rows);
    });
  }

  for (const plot of document.querySelectorAll("[data-curves]")) {
    const { x, lines } = JSON.parse(plot.dataset.curves);
    if (!x.length) continue;
    const tip = document.createElement("div"), cursor = document.createElement("i");
    tip.className = "tip";
    cursor.className = "cursor";
    const first = x[0], last = x[x.length - 1] > first ? x[x.length - 1] : first + 1;
    plot.addEventListener("pointermove", (event) => {
      const box = plot.getBoundingClientRect();
      const wanted = first + (last - first) * (event.clientX - box.left) / box.width;
      const nearest = x.reduce((a, b) => Math.abs(b - wanted) < Math.abs(a - wanted) ? b : a);
      tip.replaceChildren(Object.assign(document.createElement("b"), { textContent: nearest }));
      for (const [name, colour, values] of lines) {
        if (values[nearest] === undefined) continue;
        const line = document.createElement("span");
        line.className = `d${colour}`;
        line.textContent = `${name} ${values[nearest]}`;
        tip.append(line);
      }
      const share = (nearest - first) / (last - first);
      cursor.style.left = `${100 * share}%`;
      tip.style.left = tip.style.right = "";
      tip.style[share > 0.5 ? "left" : "right"] = ".3rem";
      plot.append(cursor, tip);
    });
    plot.addEventListener("pointerleave", () => { tip.remove(); cursor.remove(); });
  }
})();
