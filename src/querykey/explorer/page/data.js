// Where the page's numbers come from: the server, or what an exported page brings along. Both give the same answers.

export class Trouble extends Error {} // a sentence to show
export class Gone extends Error {} // no server

// A rounded array: whole numbers that are 10^digits times the values. `at` gives them, `print` as they are written;
// a value that is not there counts as 0.
export class Numbers {
  constructor({ shape, digits, values }) {
    Object.assign(this, { shape, digits, values, scale: 10 ** digits });
  }

  at(...place) {
    return this.values[this.index(place)] / this.scale;
  }

  has(...place) {
    return this.values[this.index(place)] !== null;
  }

  row(number) {
    const size = this.shape[this.shape.length - 1];
    return this.values.slice(number * size, (number + 1) * size).map((x) => x / this.scale);
  }

  print(...place) {
    return printed(this.at(...place), this.digits);
  }

  largest() {
    return this.values.reduce((most, x) => Math.max(most, Math.abs(x)), 0) / this.scale;
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

// Rounded arrays among the fields of an answer become Numbers.
export function opened(answer) {
  for (const part of [answer.head, answer.overview]) {
    for (const [name, value] of Object.entries(part ?? {})) {
      if (value?.shape) part[name] = new Numbers(value);
    }
  }
  return answer;
}

export class Server {
  exported = false;

  models() {
    return this.ask("api/models");
  }

  // `waiting` is called with how far the opening is, again and again.
  async about(id, waiting) {
    for (;;) {
      const answer = await this.ask(`api/model?id=${encodeURIComponent(id)}`);
      if (answer.layers) return answer;
      waiting(answer);
      await new Promise((done) => setTimeout(done, 300));
    }
  }

  async look(query) {
    return opened(await this.post("api/look", query));
  }

  effect(query) {
    return this.post("api/effect", query);
  }

  tied(query) {
    return this.post("api/tied", query);
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
