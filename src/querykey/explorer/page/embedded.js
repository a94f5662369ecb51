// The page as one file: the answers are in it.

import { Numbers, wholeNumbers } from "./data.js";
import { start } from "./main.js";

const DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;,=>?@^_`{|}~";

function base85(text) {
  const values = new Uint8Array(128);
  for (let i = 0; i < DIGITS.length; i += 1) values[DIGITS.charCodeAt(i)] = i;
  const length = Math.floor((text.length * 4) / 5);
  const bytes = new Uint8Array(length + 4);
  for (let at = 0, to = 0; at < text.length; at += 5, to += 4) {
    let number = 0;
    for (let i = 0; i < 5; i += 1) number = number * 85 + (at + i < text.length ? values[text.charCodeAt(at + i)] : 84);
    for (let i = 3; i >= 0; i -= 1) {
      bytes[to + i] = number % 256;
      number = Math.floor(number / 256);
    }
  }
  return bytes.subarray(0, length);
}

async function inflated(id) {
  const bytes = base85(document.getElementById(id).textContent);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// The arrays of each size lie together, all first bytes before all second ones.
function apart(bytes, index) {
  const count = (entry) => entry.shape.reduce((product, x) => product * x, 1);
  const found = new Array(index.length);
  let from = 0;
  for (const size of [1, 2, 4]) {
    const mine = [...index.keys()].filter((n) => Number(index[n].type[1]) === size);
    const total = mine.reduce((sum, n) => sum + count(index[n]), 0);
    let start = 0;
    for (const n of mine) {
      const length = count(index[n]);
      const whole = new Uint8Array(length * size);
      for (let b = 0; b < size; b += 1) for (let i = 0; i < length; i += 1) whole[i * size + b] = bytes[from + b * total + start + i];
      found[n] = new Numbers({ ...index[n], whole: wholeNumbers(whole, index[n].type) });
      start += length;
    }
    from += total * size;
  }
  return found;
}

class Embedded {
  constructor(content, arrays) {
    this.exported = true;
    this.content = content;
    this.arrays = arrays;
  }

  async models() {
    const { model, title, text } = this.content;
    return { model, text, models: [{ id: model, title }] };
  }

  async about() {
    return this.content.about;
  }

  async look({ layer, head, setting }) {
    const found = this.whole(this.content.looks[`${setting} ${layer} ${head}`]);
    return { ...this.content.common, head: found, overview: this.whole(this.content.overview) };
  }

  async effect({ layer, head, setting }) {
    const { effects } = this.content;
    return { head: effects[`${setting} ${layer} ${head}`], layer: effects[`${setting} ${layer}`], all: effects[setting] };
  }

  whole(answer) {
    const named = Object.entries(answer).map(([name, value]) => [name, value?.array === undefined ? value : this.arrays[value.array]]);
    const found = Object.fromEntries(named);
    const signs = found.q?.signs;
    if (signs) found.q = new Numbers({ ...found.k, whole: found.k.whole.map((x, at) => x * signs[at % signs.length]) });
    return found;
  }
}

async function open() {
  const content = JSON.parse(new TextDecoder().decode(await inflated("answers")));
  const arrays = apart(await inflated("arrays"), content.arrays);
  await start(new Embedded(content, arrays));
}

open();
