// The page as one file: the answers are in it, a piece for each layer.

import { opened } from "./data.js";
import { start } from "./main.js";

async function inflated(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (sign) => sign.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).json();
}

class Embedded {
  constructor(common) {
    Object.assign(this, common, { exported: true, pieces: {} });
  }

  async models() {
    const { model, title } = this.about_;
    return { model, text: this.text, models: [{ id: model, title }] };
  }

  async about() {
    return this.about_;
  }

  async look({ layer, head, setting }) {
    const { first, heads } = await this.piece(layer);
    return opened(structuredClone({ ...this.look_, head: { ...first, ...heads[`trained ${head}`], ...heads[`${setting} ${head}`] } }));
  }

  async effect({ layer, head, setting }) {
    const { effects } = await this.piece(layer);
    return { head: effects[`${setting} ${head}`], layer: effects[setting], all: this.effects[setting] };
  }

  piece(layer) {
    this.pieces[layer] ??= inflated(`layer-${layer}`);
    return this.pieces[layer];
  }
}

async function open() {
  const { about, look, ...rest } = await inflated("common");
  await start(new Embedded({ about_: about, look_: look, ...rest }));
}

open();
