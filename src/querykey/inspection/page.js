(() => {
  const { words, checkpoints: data } = JSON.parse(document.getElementById("data").textContent);
  const say = (key, values) => words[key].replace(/{(\w+)}/g, (_, name) => values[name]);
  const $ = (id) => document.getElementById(id);
  const chosen = { checkpoint: 0, layer: 0, number: 0 };
  const text = (x) => x === null || x === undefined ? "–" : (Math.abs(x) >= 100 ? x.toFixed(0) : Number.isInteger(x) ? String(x) : x.toFixed(Math.abs(x) < 0.01 && x !== 0 ? 4 : 2)).replace("-", "−");
  const different = (one, at) => [...new Set(one.heads.map((row) => row[at]))].sort((a, b) => a - b);
  const called = (one, layer, number) => say("called", { layer: one.layers[layer], head: number });
  const place = (one, layer, number) => one.heads.findIndex((row) => row[0] === layer && row[1] === number);

  // The head that a row of a ranking is about.
  const named = (one, row) => row && one.heads.find(([layer, number]) => called(one, layer, number) === row.cells[0].textContent.trim());

  function fill(select, values, value) {
    if (!select) return;
    select.replaceChildren(...values.map(([key, words]) => new Option(words, key, false, key === value)));
  }

  function draw(where, values, random, label) {
    const high = Math.max(...values, ...random, 0.001) * 1.06, low = Math.min(...values, ...random, 0) * 1.06;
    const y = (v) => 100 * (high - v) / (high - low), wide = 100 / values.length;
    const bars = values.map((v, i) => `<i class="bar ${v < 0 ? "d2" : "d1"}" style="left:${(wide * (i + .1)).toFixed(2)}%;width:${(.8 * wide).toFixed(2)}%;top:${y(Math.max(v, 0)).toFixed(2)}%;height:${Math.abs(y(v) - y(0)).toFixed(2)}%;bottom:auto"></i>`).join("");
    const line = random.map((v, i) => `${(100 * (i + .5) / random.length).toFixed(1)},${y(v).toFixed(2)}`).join(" ");
    const ticks = [high / 1.06, 0, low / 1.06].filter((v, i) => i === 1 || Math.abs(v) > .02).map((v) => `<span style="top:${y(v)}%">${text(v)}</span>`).join("");
    where.innerHTML = `<div class="chart" role="img" aria-label="${label}"><div class="area"><div class="ys">${ticks}</div><div class="plot">${bars}<i class="grid" style="top:${y(0)}%"></i><svg viewBox="0 0 100 100" preserveAspectRatio="none"><polyline class="d0" stroke-dasharray="2 3" points="${line}"/></svg></div></div></div>`;
  }

  function show() {
    const one = data[chosen.checkpoint];
    const layers = different(one, 0);
    if (!layers.includes(chosen.layer)) chosen.layer = layers[0];
    const numbers = one.heads.filter((row) => row[0] === chosen.layer).map((row) => row[1]);
    if (!numbers.includes(chosen.number)) chosen.number = numbers[0];
    fill($("checkpoint"), data.map((each, i) => [i, each.name]), chosen.checkpoint);
    fill($("layer"), layers.map((n) => [n, one.layers[n]]), chosen.layer);
    fill($("number"), numbers.map((n) => [n, n]), chosen.number);
    const at = place(one, chosen.layer, chosen.number);
    const key = one.heads[at][2], n = one.heads.filter((row) => row[0] === chosen.layer && row[2] === key).length - 1;
    $("keys").textContent = n ? say(n > 1 ? "script.keys.more" : "script.keys.one", { key, n }) : "";
    const random = one.random[one.sizes[at].join(",")];
    const name = called(one, chosen.layer, chosen.number);
    $("eigenvalues").parentElement.hidden = !one.eigenvalues[at].length; // of cross-attention
    if (one.eigenvalues[at].length) draw($("eigenvalues"), one.eigenvalues[at], random[0], say("script.eigenvalues", { name }));
    draw($("singular"), one.singular[at], random[1], say("script.singular", { name }));
    $("measures").tBodies[0].replaceChildren(...one.described.map(([title, about], i) => {
      const row = document.createElement("tr"), head = document.createElement("th"), why = document.createElement("small");
      head.scope = "row"; why.textContent = about; head.append(title, why); row.append(head);
      for (const value of [one.values[at][i], one.nulls[one.null[at]][i]]) row.insertCell().textContent = text(value);
      return row;
    }));
    mark();
  }

  function choose(checkpoint, layer, number) {
    Object.assign(chosen, { checkpoint, layer, number });
    show();
    $("head").scrollIntoView({ block: "start" });
  }

  // The box of a map within its element, in percent, and the head under the pointer.
  function frame(map) {
    const one = data[Number(map.dataset.checkpoint)], image = map.querySelector("img");
    const box = image.getBoundingClientRect(), around = map.getBoundingClientRect();
    return { one, box, around, layers: different(one, 0), numbers: different(one, 1) };
  }

  function mark() {
    for (const map of document.querySelectorAll(".head-map")) {
      map.querySelector(".here")?.remove();
      if (Number(map.dataset.checkpoint) !== chosen.checkpoint) continue;
      const { box, around, layers, numbers } = frame(map);
      const here = document.createElement("div"), size = [box.width / numbers.length, box.height / layers.length];
      here.className = "here";
      here.style.left = `${100 * (box.left - around.left + size[0] * numbers.indexOf(chosen.number)) / around.width}%`;
      here.style.top = `${100 * (box.top - around.top + size[1] * layers.indexOf(chosen.layer)) / around.height}%`;
      here.style.width = `${100 * size[0] / around.width}%`;
      here.style.height = `${100 * size[1] / around.height}%`;
      map.append(here);
    }
  }

  function under(map, event) {
    const { one, box, layers, numbers } = frame(map);
    const layer = layers[Math.floor((event.clientY - box.top) / box.height * layers.length)];
    const number = numbers[Math.floor((event.clientX - box.left) / box.width * numbers.length)];
    const at = place(one, layer, number);
    return at < 0 ? null : { layer, number, name: called(one, layer, number), value: one.values[at][one.measures.indexOf(map.dataset.measure)] };
  }

  for (const name of ["checkpoint", "layer", "number"]) {
    const select = $(name);
    if (select) select.addEventListener("change", () => { chosen[name] = Number(select.value); show(); });
  }
  for (const map of document.querySelectorAll(".head-map")) {
    const tip = document.createElement("div");
    tip.className = "tip";
    map.addEventListener("pointermove", (event) => {
      const found = under(map, event);
      if (!found) return tip.remove();
      tip.textContent = `${found.name}: ${text(found.value)}`;
      tip.style.left = `${Math.min(60, 100 * event.offsetX / map.clientWidth)}%`;
      map.append(tip);
    });
    map.addEventListener("pointerleave", () => tip.remove());
    map.addEventListener("click", (event) => {
      const found = under(map, event);
      if (found) choose(Number(map.dataset.checkpoint), found.layer, found.number);
    });
  }
  for (const ranking of document.querySelectorAll(".ranking")) {
    ranking.addEventListener("click", (event) => {
      const at = Number(ranking.dataset.checkpoint), row = named(data[at], event.target.closest("tbody tr"));
      if (row) choose(at, row[0], row[1]);
    });
  }
  const first = named(data[0], document.querySelector(".ranking tbody tr"));
  if (first) Object.assign(chosen, { layer: first[0], number: first[1] });
  show();
})();
