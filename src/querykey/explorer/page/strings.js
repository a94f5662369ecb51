// Every word on the page, in English and in Chinese. {name} is filled in.

const STRINGS = {
  title: ["Queries and keys: two matrices or one?", "查询与键：两个矩阵，还是一个？"],
  language: ["中文", "English"],
  theme: ["Light or dark", "切换明暗"],
  help: ["What the controls do", "各个控件的作用"],
  model: ["Model", "模型"],
  text: ["Text", "文本"],
  layer: ["Layer", "层"],
  head: ["Head", "头"],
  switch: ["Intervention", "干预方式"],
  scope: ["Where the intervention is made", "作用范围"],
  "scope.in": ["in {scope}", "作用于{scope}"],
  mask: ["causal mask", "因果掩码"],
  "scope.head": ["this head", "这个头"],
  "scope.layer": ["this layer", "这一层"],
  "scope.all": ["all heads", "所有头"],
  "help.model": ["The model whose attention is shown.", "要查看的模型。"],
  "help.text": ["The input of the model. Edit it, and everything is computed again.", "模型的输入。修改后会全部重新计算。"],
  "help.layer": ["Every layer has several attention heads. The page shows one of them.", "每一层有若干个注意力头，页面一次显示其中一个。"],
  "help.scope": [
    "Where the intervention is made: in this head, in all heads of this layer, or in all heads of the model.",
    "干预作用在哪里：只有这个头、这一层的所有头，还是整个模型的所有头。",
  ],
  "help.mask": [
    "This model masks the tokens that come later. Turn the mask off to see what this head would attend to without it.",
    "这个模型会遮住后面的词元。关掉掩码，可以看到没有它时这个头会关注什么。",
  ],
  "help.tokens": ["Choose the token to follow: click it, or use ← and →.", "选择要跟踪的词元：点击，或按 ← →。"],
  views: ["Views", "视图"],
  "view.compare": ["Two matrices or one", "两个还是一个"],
  "view.walk": ["Step by step", "逐步计算"],
  "view.map": ["Attention map", "注意力图"],
  "view.heads": ["All heads", "所有头"],
  next: ["Next: {view} →", "下一步：{view} →"],
  tokens: ["Tokens", "词元"],
  tokensHint: ["The bar below each token is the attention weight that {token} gives it.", "词元下面的横条表示 {token} 对它的注意力权重。"],
  cut: ["Only the first {n} tokens are shown.", "只显示前 {n} 个词元。"],
  unknown: ["{n} token(s) marked ? are not in the vocabulary of this model.", "标有 ? 的 {n} 个词元不在模型的词表里。"],
  opening: ["Opening the model …", "正在打开模型……"],
  "step.train": ["Training a small model, only the first time …", "首次使用，正在训练一个小模型……"],
  "step.load": ["Reading the weights …", "正在读取权重……"],
  "step.sample": ["Running the model on a sample text …", "正在用一段示例文本运行模型……"],
  gone: ["The server has stopped. The page continues when it is back.", "服务器已停止。恢复后页面会自动继续。"],
  exported: [
    "Exported page: model and text are fixed, and interventions are made in one head.",
    "这是导出的页面：模型和文本固定，干预只作用于一个头。",
  ],

  "model.minilm": ["MiniLM: sentence vectors, 72 heads", "MiniLM：句向量模型，72 个头"],
  "model.cycle": ["Cycle task: one head, two matrices", "循环任务：一个头，两个矩阵"],
  "model.cycle-tied": ["Cycle task: one head, trained with one matrix", "循环任务：一个头，用一个矩阵训练"],
  "model.bytes": ["Python code, byte by byte: 8 heads", "Python 代码，逐字节：8 个头"],
  "about.sentence": ["This model turns a sentence into a vector.", "这个模型把句子变成向量。"],
  "about.language": ["This model predicts the next token.", "这个模型预测下一个词元。"],
  "about.masked": ["This model fills in masked tokens.", "这个模型补全被遮住的词元。"],
  "about.bytes": ["This model predicts the next byte; each token is one byte.", "这个模型预测下一个字节，每个词元是一个字节。"],
  "about.naming": [
    "A token A→C 3 is named A, asks for token C, and holds the number 3. Its answer should be the number that C holds. C asks for a third token, which asks for A.",
    "词元 A→C 3 的名字是 A，要找的是 C，自己带着数字 3；它应当答出 C 带的数字。C 又找第三个词元，第三个再找回 A。",
  ],
  "about.converted": [
    "The converted model {model} is shown beside its original, {original}, on the same text.",
    "同一段文本上，并排显示转换后的模型 {model} 与原模型 {original}。",
  ],
  "about.numbers": ["This model was trained by querykey compare.", "这个模型由 querykey compare 训练。"],

  "set.trained": ["as trained", "原样"],
  "set.copied": ["W<sub>K</sub> := W<sub>Q</sub>", "W<sub>K</sub> := W<sub>Q</sub>"],
  "set.tied": ["one matrix", "一个矩阵"],
  "set.signed": ["signed core", "带符号的核"],
  "set.core": ["full core", "完整核"],
  "set.key_value": ["K = V", "K = V"],
  "set.selfmask": ["self-mask", "屏蔽自身"],
  "set.cosine": ["cosine", "余弦"],
  "set.converted": ["converted model", "转换后的模型"],
  "say.trained": ["The weights as trained: q = x {q}, k = x {k}, v = x {v}.", "训练后的权重：q = x {q}，k = x {k}，v = x {v}。"],
  "say.copied": [
    "Keys use the query matrix: q = k = x {k}. Nothing is fitted.",
    "键也用查询的矩阵：q = k = x {k}，不做拟合。",
  ],
  "say.tied": [
    "One matrix for queries and keys, q = k = x {k}, fitted to give the closest scores.",
    "查询和键共用一个矩阵：q = k = x {k}，按分数最接近来拟合。",
  ],
  "say.signed": [
    "One matrix and a sign per dimension: k = x {k}, q = k C with C diagonal, ±1. The scores are symmetric.",
    "共用一个矩阵，每一维再乘正负号：k = x {k}，q = k C，C 为对角阵，元素为 ±1。分数仍然对称。",
  ],
  "say.core": [
    "One matrix and a small square matrix C (the core): k = x {k}, q = k C. The scores need not be symmetric.",
    "共用一个矩阵，再加一个小方阵 C（核）：k = x {k}，q = k C。分数不必对称。",
  ],
  "say.key_value": [
    "Keys and values share one matrix, so that one tensor is cached: k = x {k}, v = x {v}, fitted to keep scores and outputs.",
    "键和值共用一个矩阵，只需缓存一个张量：k = x {k}，v = x {v}，按分数和输出最接近来拟合。",
  ],
  "say.selfmask": ["Weights as trained, but a token may not attend to itself.", "权重不变，但词元不能关注自己。"],
  "say.cosine": [
    "Weights as trained, but the score is the cosine of query and key, so that their lengths do not count.",
    "权重不变，但分数改为查询与键的余弦，长度不起作用。",
  ],
  "say.converted": [
    "{model}, which querykey convert has made of {original}: q = x {q}, k = x {k}, v = x {v}. In each layer the latent x B is shared by all heads.",
    "{model}，由 querykey convert 从 {original} 转换而来：q = x {q}，k = x {k}，v = x {v}。每一层的所有头共用一个潜向量 x B。",
  ],
  changed: ["This head:", "这个头："],
  effect: ["Output of the model, intervention in", "模型的输出，干预作用于"],
  "effect.cosine": ["cosine to the original vector {x}", "与原向量的余弦 {x}"],
  "effect.same": ["{x} of answers unchanged", "{x} 的回答不变"],
  "effect.right": ["correct answers {a} → {b}", "正确率 {a} → {b}"],
  "effect.bits": ["loss {a} → {b} bits per token", "每个词元的损失 {a} → {b} 比特"],
  "effect.none": ["unchanged", "不变"],
  "effect.wait": ["…", "……"],
  "effect.and": ["; ", "；"],

  "compare.say": [
    "Each token points at the token that it attends to most. With separate matrices W<sub>Q</sub> and W<sub>K</sub>, the arrows can end in a cycle of any length. With one matrix for both, every path ends in a token that attends to itself. This is a theorem: it holds for all weights.",
    "每个词元都用箭头指向它最关注的词元。W<sub>Q</sub> 与 W<sub>K</sub> 分开时，沿箭头走可以进入任意长度的环；两者共用一个矩阵时，每条路的终点都是关注自己的词元。这是定理，对任何权重都成立。",
  ],
  "compare.causal": [
    "Each token points at the token that it attends to most. The causal mask lets this model attend to earlier tokens only, so every path leads back, with two matrices or one. Turn the causal mask off to see the difference between them.",
    "每个词元都用箭头指向它最关注的词元。这个模型有因果掩码，只能关注前面的词元，所以无论用两个矩阵还是一个，箭头都只往回走。关掉因果掩码，就能看到两者的差别。",
  ],
  "compare.converted": [
    "The same text goes through the original model and through the converted one. Compare the attention of a head, the likeliest answers at a token, and, below, the output on the whole text.",
    "同一段文本分别输入原模型和转换后的模型。可以比较一个头的注意力、某个词元处最可能的回答，以及下方整段文本上的输出。",
  ],
  "compare.a": ["Left:", "左："],
  "compare.b": ["Right:", "右："],
  "compare.measure": ["measure", "指标"],
  "finding.cycle": ["Longest cycle: {a} token(s) on the left, {b} on the right.", "最长的环：左边 {a} 个词元，右边 {b} 个。"],
  "measure.symmetry": ["symmetry of the scores", "分数的对称性"],
  "measure.symmetry.say": ["correlation of score i→j with score j→i; 1 means equal", "i→j 与 j→i 两个分数的相关系数，1 表示相等"],
  "measure.self": ["attention to itself", "对自身的关注"],
  "measure.self.say": ["mean weight; an even spread gives {x}", "平均权重；均匀分配时为 {x}"],
  "measure.longest": ["longest cycle", "最长的环"],
  "measure.output": ["output, intervention in {scope}", "输出（干预{scope}）"],
  "finding.output": ["Output of the model: {x}.", "模型的输出：{x}。"],
  predict: ["Likeliest answers at “{token}”", "在“{token}”处最可能的回答"],
  "predict.right": ["The correct answer is {b}.", "正确答案是 {b}。"],

  "walk.1": ["The token is a vector x", "词元是一个向量 x"],
  "walk.1.say": [
    "At layer {layer} the token {i} is a vector x of {dim} numbers. It encodes the token and what the layers below have added from the text around it.",
    "到第 {layer} 层时，词元 {i} 是 {dim} 维向量 x，既包含词元本身，也包含前面各层从上下文中加入的信息。",
  ],
  "walk.2": ["Projections: x becomes a query, a key and a value", "投影：由 x 得到查询、键和值"],
  "walk.2.say": [
    "The head multiplies x by matrices. The <b class=q>query q</b> is what {i} looks for, the <b class=k>key k</b> is how others find {i}, and the <b class=v>value v</b> is what {i} passes on. {said}",
    "这个头用矩阵去乘 x：<b class=q>查询 q</b> 表示 {i} 要找什么，<b class=k>键 k</b> 表示别的词元凭什么找到 {i}，<b class=v>值 v</b> 是 {i} 提供的内容。{said}",
  ],
  "walk.2.rotary": [
    "Queries and keys are then rotated by the position of the token (rotary embedding), so that scores depend on distance too. The bars show them after the rotation.",
    "查询和键随后按位置旋转（旋转位置编码），因此分数也与距离有关。图中是旋转之后的值。",
  ],
  "walk.numbers": ["show numbers", "显示数值"],
  "walk.same": ["the same numbers as q", "与 q 完全相同"],
  "walk.3": ["Score: the dot product of a query and a key", "分数：查询与键的点积"],
  "walk.3.say": [
    "The score of {i} → {j} is the query of {i} times the key of {j}: multiply number by number and add up. For {j} → {i} the roles are exchanged: the query of {j} times the key of {i}.",
    "{i} → {j} 的分数是 {i} 的查询与 {j} 的键的点积：逐个相乘再相加。{j} → {i} 则角色对调：用 {j} 的查询乘 {i} 的键。",
  ],
  "walk.3.self": ["Point at another token above to compare {i} with it.", "把鼠标移到上面另一个词元上，就能与 {i} 比较。"],
  "walk.sum": ["sum of the products ≈ {sum}", "乘积之和 ≈ {sum}"],
  "walk.scaled": ["times {number} (1/√{size})", "乘以 {number}（即 1/√{size}）"],
  "walk.times": ["times {number}", "乘以 {number}"],
  "walk.cosine": ["cosine ≈ {sum}", "余弦 ≈ {sum}"],
  "walk.other": ["The model adds a term of its own, for example for the distance of the tokens", "模型还会加上自己的一项，例如与词元间距离有关的偏置"],
  "walk.score": ["score", "分数"],
  "walk.differ.separate": ["Two matrices let the two directions differ: here by {x}.", "用两个矩阵，两个方向的分数可以不同：这里相差 {x}。"],
  "walk.differ.core": [
    "The core lets the two directions differ although queries and keys share a matrix: here by {x}.",
    "查询和键虽然共用矩阵，但有了核，两个方向的分数可以不同：这里相差 {x}。",
  ],
  "walk.differ.tied": ["Without the term that the model adds, both directions would be equal; they differ by {x}.", "若没有模型另加的一项，两个方向的分数相等；这里相差 {x}。"],
  "walk.differ.symmetric": ["Without the term that the model adds, both directions would be equal; they differ by {x}.", "若没有模型另加的一项，两个方向的分数相等；这里相差 {x}。"],
  "walk.same.separate": ["Both directions happen to be equal here.", "这两个方向的分数恰好相等。"],
  "walk.same.core": ["Both directions happen to be equal here.", "这两个方向的分数恰好相等。"],
  "walk.same.tied": [
    "Both directions are equal. With one matrix they always are, because the same numbers are multiplied.",
    "两个方向的分数相等。只用一个矩阵时总是如此，因为相乘的是同样的数。",
  ],
  "walk.same.symmetric": ["Both directions are equal: with a signed core the scores are symmetric.", "两个方向的分数相等：核是对角阵时，分数总是对称的。"],
  "walk.4": ["Softmax: scores become attention weights", "softmax：由分数得到注意力权重"],
  "walk.4.say": [
    "This table shows the scores of {i} with every token, and beside each the score in the other direction. {mask} The softmax turns each row of Q Kᵀ / √d into weights that sum to 100 %. A score that is higher by 1 gives 2.7 times the weight.",
    "下表是 {i} 对每个词元的分数，旁边是反方向的分数。{mask}softmax 把 Q Kᵀ / √d 的每一行变成总和为 100 % 的权重：分数每高 1，权重就是原来的 2.7 倍。",
  ],
  "walk.mask.none": ["There is no mask: {i} may attend to every token.", "没有掩码：{i} 可以关注任何词元。"],
  "walk.mask.causal": ["The causal mask hides the tokens after {i}.", "因果掩码遮住了 {i} 之后的词元。"],
  "walk.mask.self": ["The self-mask hides {i} from itself.", "掩码使 {i} 不能关注自己。"],
  "walk.mask.some": ["The mask hides some tokens from {i}.", "掩码对 {i} 遮住了一部分词元。"],
  "walk.key": ["token", "词元"],
  "walk.out": ["{i} → token", "{i} → 词元"],
  "walk.in": ["token → {i}", "词元 → {i}"],
  "walk.masked": ["masked", "被遮住"],
  "walk.weight": ["attention weight", "注意力权重"],
  "walk.order": ["Order", "排列"],
  "walk.order.text": ["as in the text", "按原文顺序"],
  "walk.order.weight": ["largest weight first", "权重从大到小"],
  "walk.more": ["show all {n} tokens", "显示全部 {n} 个词元"],
  "walk.5": ["Output: the weighted sum of the values", "输出：值的加权和"],
  "walk.5.say": [
    "The output z of the head at {i} is the sum of all values, each times its attention weight. W<sub>O</sub> maps z into the input of the next layer.",
    "这个头在 {i} 处的输出 z 是所有值按注意力权重的加权和，再经过 W<sub>O</sub> 进入下一层的输入。",
  ],
  "walk.rest": ["{n} others", "其余 {n} 个"],
  "walk.6": ["Answer: what the model predicts", "回答：模型的预测"],
  "walk.6.say": ["After all layers, these are the likeliest answers of the model at {i}.", "经过所有层之后，模型在 {i} 处最可能的回答如下。"],

  "map.say": [
    "Each row is a query, each column a key. With one matrix for both, the scores are the same on both sides of the diagonal.",
    "每一行是一个查询，每一列是一个键。如果两者共用一个矩阵，分数关于对角线对称。",
  ],
  "map.show": ["Show", "显示"],
  "map.weights": ["attention weights (after the softmax)", "注意力权重（softmax 之后）"],
  "map.scores": ["scores (before the softmax)", "分数（softmax 之前）"],
  "map.heat": ["Heat map", "热图"],
  "map.graph": ["Who attends most to whom", "谁最关注谁"],
  "map.graph.say": ["Each token points at the token that it attends to most. Every path ends in a cycle.", "每个词元指向它最关注的词元。沿箭头走，每条路最后都进入一个环。"],
  "map.pair": ["score {i} → {j}: {a} (weight {p}); {j} → {i}: {b} (weight {q})", "分数 {i} → {j}：{a}（权重 {p}）；{j} → {i}：{b}（权重 {q}）"],
  "map.loops": ["{n} self-loop(s)", "{n} 个自环"],
  "map.pairs": ["{n} cycle(s) of two", "{n} 个二元环"],
  "map.cycles": ["{n} longer cycle(s)", "{n} 个更长的环"],
  "map.longest": ["{n} longer cycle(s), up to {most} tokens", "{n} 个更长的环，最长 {most} 个词元"],
  "law.tied": [
    "One matrix, q = k: if a token prefers another to itself, the other has the longer key. Along the arrows keys grow, so every path ends in a token that attends to itself.",
    "一个矩阵，q = k：词元若更关注别的词元，对方的键一定更长。沿箭头走，键越来越长，所以终点只能是关注自己的词元。",
  ],
  "law.symmetric": [
    "Symmetric scores: along a cycle the scores cannot fall, so they are all equal, and a cycle has at most two tokens.",
    "分数对称：沿着环走，分数不会下降，只能处处相等，所以一个环最多两个词元。",
  ],
  "law.separate": ["Two matrices: cycles of any length are possible, where A attends to B, B to C, and C to A.", "两个矩阵：任意长度的环都可能出现，例如 A 关注 B，B 关注 C，C 又关注 A。"],
  "law.core": ["One matrix and a full core: cycles of any length are possible, as with two matrices.", "一个矩阵加完整核：与两个矩阵一样，任意长度的环都可能出现。"],
  "law.none": ["No token may attend to itself, so there are no self-loops.", "词元不能关注自己，所以没有自环。"],
  "law.causal": [
    "Causal mask: all arrows lead back and end in self-loops, whatever the matrices are. The mask hides the grey half of the table, where symmetry would show.",
    "因果掩码：无论矩阵怎样，箭头都往回走，终点都是自环。掩码遮住了表中灰色的一半，对称性正是在那里才看得出来。",
  ],
  "law.free": [
    "Within this text symmetry costs nothing: one matrix of width {k} can give all {m} scores that are left, if no token attends to itself. But it has to serve all texts.",
    "在这段文本里，对称没有代价：如果词元不关注自身，一个宽 {k} 的矩阵就能给出剩下的全部 {m} 个分数。但同一个矩阵还得适用于所有文本。",
  ],
  "law.cost": [
    "Within this text symmetry costs this much: one matrix of width {k}, fitted to the {m} scores that are left, with self-scores free, misses {x} of their variance within rows; one of width {double}, with as many parameters as two matrices, misses {y}.",
    "在这段文本里，对称的代价是：用一个宽 {k} 的矩阵拟合剩下的 {m} 个分数（不计对自身的分数），行内方差有 {x} 无法拟合；宽 {double} 的矩阵（参数量与两个矩阵相同）有 {y} 无法拟合。",
  ],
  "law.reversible": [
    "Around {way} the weights multiply to {p} in both directions, and so for every cycle: attention is a reversible chain.",
    "沿 {way} 各步权重之积为 {p}，反方向也一样。每个环都如此：注意力是可逆的马尔可夫链。",
  ],
  "law.oneway": [
    "Around {way} the weights multiply to {p}, the other way round to {q}, a factor of {x}. With one matrix both are equal for every cycle.",
    "沿 {way} 各步权重之积为 {p}，反方向为 {q}，相差 {x} 倍。只用一个矩阵时，任何环的两个方向都相等。",
  ],

  "heads.say": ["Every head of the model on this text, with its attention map. Choose one to see it large.", "模型的每个头在这段文本上的注意力图。点击任意一个可以放大查看。"],
  "heads.measure": ["Measure", "指标"],
  "heads.arrange": ["Arrange", "排列"],
  "heads.place": ["by layer and head", "按层和头"],
  "heads.largest": ["largest first", "从大到小"],
  "heads.least": ["At least", "不低于"],
  "heads.passing": ["{x}: {n} of {all} heads", "{x}：{all} 个头中的 {n} 个"],
  "heads.layer": ["layer {layer}", "第 {layer} 层"],
  "heads.one": ["layer {layer}, head {head}", "第 {layer} 层第 {head} 头"],

  claim: ["What this shows of the article's claims", "与文章论断的关系"],
  "claim.c1": ["C1: with one matrix the scores are symmetric", "C1：只用一个矩阵，分数必然对称"],
  "claim.c2": ["C2: which relations one head can express", "C2：一个头能表达哪些关系"],
  "claim.c3": ["C3: what sharing costs", "C3：共用的代价"],
  "claim.c4": ["C4: two matrices are more expressive", "C4：两个矩阵的表达能力更强"],
  "claim.c6": ["C6: dot product or cosine", "C6：点积还是余弦"],
};

export let language = "en";

export function setLanguage(chosen) {
  language = chosen;
  if (globalThis.document) document.documentElement.lang = chosen === "zh" ? "zh-Hans" : "en";
}

export function t(key, values = {}) {
  const both = STRINGS[key];
  if (!both) return key;
  const text = both[language === "zh" ? 1 : 0].replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
  return text.replace(/(\d+) ([a-z- ]+)\(s\)/g, (_, count, noun) => `${count} ${noun}${count === "1" ? "" : "s"}`);
}

export function has(key) {
  return key in STRINGS;
}

// A string without markup, for a select.
export function plain(key) {
  return t(key).replace(/<sub>(.)<\/sub>/g, "_$1");
}

// What an intervention is, with the matrices of the model.
export function explained(name, { interventions, converted }) {
  return t(`say.${name}`, { ...interventions.find((one) => one.name === name).matrices, ...converted });
}
