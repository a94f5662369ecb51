// What comes out of the model at one token: its likeliest answers, and what an intervention changes in all of them.

import { percent, printed } from "./data.js";
import { el, quoted } from "./draw.js";
import { t } from "./strings.js";

// The likeliest answers at token i as bars; `right` is the correct one, where it is known.
export function predictionsAt(predictions, i, right = null) {
  const row = ([name, probability]) =>
    el(
      "li",
      { class: name === right ? "right" : "" },
      el("span", { class: "answer", html: quoted(name) }),
      el("span", { class: "sharing" }, el("span", { class: "bar weight", style: `width:${100 * probability}%` }), el("span", { class: "percent" }, percent(probability))),
    );
  return el("ol", { class: "predictions" }, ...predictions[i].map(row));
}

export function rightAnswer(targets, i) {
  const right = targets?.[i];
  return right === null || right === undefined ? null : el("p", { class: "small", html: t("predict.right", { b: quoted(right) }) });
}

// The effect of an intervention on the whole output, in words.
export function effectText(effect, intervention) {
  if (intervention === "trained") return t("effect.none");
  if (!effect) return t("effect.wait");
  if (effect.cosine !== undefined) return t("effect.cosine", { x: printed(effect.cosine, 3) });
  const said = [t("effect.same", { x: percent(effect.same, 0) })];
  if (effect.before) {
    const [a, b] = [effect.before, effect.after];
    said.push(t("effect.right", { a: percent(a.right, 0), b: percent(b.right, 0) }), t("effect.bits", { a: printed(a.bits, 2), b: printed(b.bits, 2) }));
  }
  return said.join(t("effect.and"));
}
