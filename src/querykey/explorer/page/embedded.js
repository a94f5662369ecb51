// The page as one file: the answers are in it, a piece for each layer.

import { opened } from "./data.js";
import { start } from "./main.js";

async function inflated(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (sign) => sign.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).json();
}

class Embedded {
  exported = true;
  pieces = {};

  constructor(common) {
    this.common = common;
  }

  async models() {
    const { model, title } = this.common.about;
    return { model, text: this.common.text, models: [{ id: model, title }] };
  }

  async about() {
    return this.common.about;
  }

  async look({ layer, head, intervention, masked }) {
    const { first, heads } = await this.piece(layer);
    const found = [`trained ${head}`, `${intervention} ${head}`, masked ? "" : `${intervention} ${head} unmasked`].map((key) => heads[key]);
    return opened(structuredClone({ ...this.common.look, head: Object.assign({}, first, ...found) }));
  }

  async effect({ layer, head, intervention, scope }) {
    const { effects } = await this.piece(layer);
    return { head: effects[`${intervention} ${head}`], layer: effects[intervention], all: this.common.effects[intervention] }[scope];
  }

  async tied({ layer, head }) {
    return (await this.piece(layer)).tied[head];
  }

  piece(layer) {
    this.pieces[layer] ??= inflated(`layer-${layer}`);
    return this.pieces[layer];
  }
}

inflated("common").then((common) => start(new Embedded(common)));
