// Which tokens to begin with. A special token such as [CLS] stands for no word; the server says which ones do not.

// A token that attends most to another one, not beside it.
export function firstToken({ head, tokens, special }) {
  const word = (i) => !special[i] && /[\p{L}\p{N}]/u.test(tokens[i]);
  const telling = (i) => (word(i) && word(head.whom[i]) && Math.abs(head.whom[i] - i) > 1 ? head.weights.at(i, head.whom[i]) : 0);
  const best = [...tokens.keys()].reduce((a, b) => (telling(b) > telling(a) ? b : a), 0);
  return telling(best) ? best : Math.min(1, tokens.length - 1);
}

// The token that i attends to most, among others that stand for words.
export function mostAttended({ head, tokens, special }, i) {
  const whom = head.whom[i];
  if (whom !== i && !special[whom]) return whom;
  const others = [...tokens.keys()].filter((j) => j !== i && !special[j]);
  return others.reduce((best, j) => (head.weights.at(i, j) > head.weights.at(i, best) ? j : best), others[0] ?? whom);
}
