// Where the page's numbers come from: the server, or what an exported page brings along. Both give the same answers.

export class Trouble extends Error {} // a sentence to show
export class Gone extends Error {} // no server

// A packed array: whole numbers that are 10^digits times the values. `at` gives them, `print` as they are written.
export class Numbers {
  constructor(packed) {
    this.shape = packed.shape;
    this.digits = packed.digits;
    this.scale = 10 ** packed.digits;
    this.whole = packed.whole ?? wholeNumbers(bytesOf(packed.data), packed.type);
  }

  at(...place) {
    return this.whole[this.index(place)] / this.scale;
  }

  row(number) {
    const size = this.shape[this.shape.length - 1];
    return Array.from(this.whole.subarray(number * size, (number + 1) * size), (x) => x / this.scale);
  }

  print(...place) {
    return printed(this.at(...place), this.digits);
  }

  index(place) {
    return place.reduce((sum, x, axis) => sum * this.shape[axis] + x, 0);
  }
}

export function printed(value, digits) {
  const text = Math.abs(value).toFixed(digits);
  return value < 0 && Number(text) !== 0 ? `−${text}` : text;
}

export function percent(value, digits = 1) {
  return `${printed(100 * value, digits)}\u00a0%`;
}

function bytesOf(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i += 1) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

export function wholeNumbers(bytes, type) {
  const kinds = { i1: Int8Array, i2: Int16Array, i4: Int32Array };
  return new kinds[type](bytes.buffer, bytes.byteOffset, bytes.byteLength / kinds[type].BYTES_PER_ELEMENT);
}

// Packed arrays among the fields of an answer become Numbers.
function opened(answer) {
  for (const part of [answer.head, answer.overview]) {
    for (const [name, value] of Object.entries(part ?? {})) {
      if (value && value.shape) part[name] = new Numbers(value);
    }
  }
  return answer;
}

export class Server {
  constructor() {
    this.exported = false;
  }

  models() {
    return this.ask("api/models");
  }

  async about(id, waiting) {
    for (;;) {
      const answer = await this.ask(`api/model?id=${encodeURIComponent(id)}`);
      if (answer.layers) return answer;
      waiting(answer.share);
      await new Promise((done) => setTimeout(done, 300));
    }
  }

  async look(query) {
    return opened(await this.post("api/look", query));
  }

  effect(query) {
    return this.post("api/effect", query);
  }

  post(path, body) {
    const headers = { "content-type": "application/json" };
    return this.ask(path, { method: "POST", headers, body: JSON.stringify(body) });
  }

  async ask(path, options = {}) {
    let response;
    try {
      response = await fetch(path, options);
    } catch {
      throw new Gone();
    }
    const answer = await response.json().catch(() => ({}));
    if (!response.ok) throw new Trouble(answer.error ?? `status ${response.status}`);
    return answer;
  }
}
