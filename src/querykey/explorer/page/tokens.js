// Which tokens to begin with.

// A token with something to say: one that attends to another most, not the first.
export function firstToken({ head, tokens }) {
  const word = (i) => /\p{L}/u.test(tokens[i]) && !special(tokens[i]);
  const telling = (i) => (word(i) && word(head.whom[i]) && Math.abs(head.whom[i] - i) > 1 ? head.weights.at(i, head.whom[i]) : 0);
  const best = [...tokens.keys()].reduce((a, b) => (telling(b) > telling(a) ? b : a), 0);
  return telling(best) ? best : Math.min(1, tokens.length - 1);
}

export function mostAttended({ head, tokens }, i) {
  const whom = head.whom[i];
  if (whom !== i && !special(tokens[whom])) return whom;
  const others = [...tokens.keys()].filter((j) => j !== i && !special(tokens[j]));
  return others.reduce((best, j) => (head.weights.at(i, j) > head.weights.at(i, best) ? j : best), others[0] ?? whom);
}

// Marks such as [CLS], which stand for no word.
function special(token) {
  return /^(\[.+\]|<.+>)$/.test(token);
}
