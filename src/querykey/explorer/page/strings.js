// Every word on the page, in English and in Chinese. {name} is filled in.

const STRINGS = {
  title: ["Queries and keys, at work", "看见查询与键"],
  lead: [
    "In attention, every token looks for others with a <b class=q>query</b> and is found by its <b class=k>key</b>. Both are made from the same token, with two different matrices. Watch them in a real model, and make them the same.",
    "在注意力里，每个词元用<b class=q>查询</b>去找别人，又靠<b class=k>键</b>被别人找到。二者出自同一个词元，只是乘了两个不同的矩阵。这里是一个真实的模型：看看它们怎样工作，再把两个矩阵换成一个试试。",
  ],
  language: ["中文", "English"],
  theme: ["Light or dark", "切换明暗"],
  model: ["Model", "模型"],
  text: ["Text (edit it)", "文本（可以改）"],
  layer: ["Layer", "层"],
  head: ["Head", "头"],
  switch: ["Queries and keys", "查询与键"],
  scope: ["changed in", "改动范围"],
  "scope.head": ["this head", "这个头"],
  "scope.layer": ["this layer", "这一层"],
  "scope.all": ["all heads", "所有头"],
  views: ["Views", "视图"],
  "view.walk": ["Walk of one token", "跟着一个词元走"],
  "view.map": ["Map", "地图"],
  "view.compare": ["Side by side", "左右对照"],
  "view.heads": ["All heads", "所有头一览"],
  next: ["Next: {view} →", "下一步：{view} →"],
  tokens: ["Tokens: choose the one to follow", "词元：选一个跟着走"],
  tokensHint: [
    "Bars: how much {token} attends to each. Click or ← → to follow another token, hover to compare with one.",
    "下面的小条是 {token} 对每个词元的关注程度。点击或按 ← → 换一个词元，鼠标悬停可与另一个比较。",
  ],
  cut: ["Only the first {n} tokens are shown.", "只显示前 {n} 个词元。"],
  loading: ["Opening the model …", "正在打开模型……"],
  training: ["Training a small model, once: {share} %", "首次使用，正在训练一个小模型：{share} %"],
  gone: ["The server has stopped. Waiting for it to come back …", "服务器已停止，正等待它恢复……"],
  exported: [
    "An exported page: the text and the model are fixed, the switch acts on the head in focus.",
    "这是导出的页面：文本和模型是固定的，开关只作用于当前的头。",
  ],

  "model.minilm": ["MiniLM: sentences (6 layers, 12 heads each)", "MiniLM：句子模型（6 层，每层 12 个头）"],
  "model.cycle": ["Cycle task: one head, two matrices", "循环任务：一个头，两个矩阵"],
  "model.cycle-tied": ["Cycle task: one head, trained with one matrix", "循环任务：一个头，用单个矩阵训练"],
  "model.bytes": ["Small model of Python code, byte by byte", "小型 Python 代码模型，逐字节"],
  "about.sentence": ["Turns a sentence into a vector.", "把一句话变成一个向量。"],
  "about.language": ["Predicts the next token.", "预测下一个词元。"],
  "about.masked": ["Fills in hidden tokens.", "补全被遮住的词元。"],
  "about.bytes": ["Predicts the next byte. Each token is one byte.", "预测下一个字节，每个词元就是一个字节。"],
  "about.naming": [
    "Each token X→Y n has a name X, asks for Y and carries a number n; it must answer with the number of Y. Y asks a third, which asks X: a ring of three.",
    "每个词元 X→Y n 名叫 X，要找 Y，自带数字 n；它要答出 Y 的数字。Y 找第三个，第三个又找 X：三个一环。",
  ],
  "about.numbers": ["A model that querykey compare has trained.", "由 querykey compare 训练出的模型。"],

  "set.trained": ["as trained", "原样"],
  "set.copied": ["W<sub>K</sub> := W<sub>Q</sub>", "W<sub>K</sub> := W<sub>Q</sub>"],
  "set.tied": ["best tied", "最佳单矩阵"],
  "set.signed": ["signed core", "正负核"],
  "set.core": ["full core", "完整核"],
  "set.selfmask": ["self-mask", "屏蔽自身"],
  "set.cosine": ["cosine", "余弦"],
  "say.trained": ["Two matrices, as training left them.", "两个矩阵，保持训练后的样子。"],
  "say.copied": [
    "Keys are made with W<sub>Q</sub> too: one matrix, without any fit. Now q = k for every token.",
    "键也用 W<sub>Q</sub> 生成：只有一个矩阵，不做任何拟合。于是每个词元的 q = k。",
  ],
  "say.tied": [
    "One matrix W for both, the closest to the two there were. q = k for every token.",
    "查询和键共用一个矩阵 W，取最接近原来两个矩阵的那个。每个词元的 q = k。",
  ],
  "say.signed": [
    "One matrix W; the query is the key with some numbers turned negative. Scores stay symmetric.",
    "共用一个矩阵 W；把键里的一部分数反号就是查询。分数仍然对称。",
  ],
  "say.core": [
    "One matrix W and a small square matrix C for the query, q = kC. Directions may differ again.",
    "共用一个矩阵 W，查询再乘一个小方阵 C：q = kC。两个方向又可以不同了。",
  ],
  "say.selfmask": [
    "Two matrices as trained, but no token may attend to itself.",
    "仍是训练好的两个矩阵，只是不许词元关注自己。",
  ],
  "say.cosine": [
    "Two matrices as trained, but only the angle between query and key counts, not their length.",
    "仍是训练好的两个矩阵，但只看查询与键的夹角，不看长短。",
  ],
  changed: ["What becomes of this head:", "这个头的变化："],
  effect: ["What comes out of the model:", "模型的输出："],
  "effect.cosine": ["similarity to the original {x}", "与原来的相似度 {x}"],
  "effect.same": ["{x} of answers unchanged", "{x} 的回答不变"],
  "effect.right": ["right answers {a} → {b}", "答对率 {a} → {b}"],
  "effect.bits": ["bits per token {a} → {b}", "每个词元 {a} → {b} 比特"],
  "effect.none": ["unchanged, since nothing is changed", "没有改动，自然不变"],
  "effect.wait": ["…", "……"],

  "walk.1": ["The token is a list of numbers", "词元是一串数"],
  "walk.1.say": [
    "When {i} reaches layer {layer}, the model knows it as {dim} numbers, x. They hold what the word is and what the layers below have found out about it.",
    "{i} 来到第 {layer} 层时，模型眼中的它是 {dim} 个数，记作 x：既有这个词本身，也有前面各层从上下文里看出来的东西。",
  ],
  "walk.2": ["Three matrices make three short lists of it", "三个矩阵，变出三串短的数"],
  "walk.2.say": [
    "The head multiplies x by three matrices that it has learned. The <b class=q>query q</b> says what {i} looks for, the <b class=k>key k</b> by what {i} can be found, the <b class=v>value v</b> what {i} hands on to those who find it.",
    "这个头用学到的三个矩阵去乘 x。<b class=q>查询 q</b> 说明 {i} 在找什么，<b class=k>键 k</b> 说明别人凭什么找到 {i}，<b class=v>值 v</b> 是 {i} 交给找到它的人的东西。",
  ],
  "walk.2.rotary": [
    "Queries and keys are then turned by the token's position (rotary positions), so that scores also depend on distance. Shown is what comes out of that.",
    "查询和键随后按位置旋转（旋转位置编码），分数因此也与距离有关。图中是旋转之后的数。",
  ],
  "walk.numbers": ["the numbers", "查看数值"],
  "walk.same": ["the same list as q", "与 q 完全相同"],
  "walk.3": ["A query meets a key: the score", "查询遇上键：打分"],
  "walk.3.say": [
    "Does {i} find what it looks for in {j}? Multiply the query of {i} with the key of {j}, number by number, and add up: large if they point the same way. For the other direction, {j} to {i}, the roles are exchanged: now {j} asks and {i} is found.",
    "{i} 在 {j} 身上找得到想要的吗？把 {i} 的查询与 {j} 的键逐个相乘再相加：方向越一致，和越大。反过来 {j} 找 {i}，角色就对调了：这回是 {j} 出查询，{i} 出键。",
  ],
  "walk.3.self": ["Point at another token above to compare {i} with it.", "在上面指向另一个词元，就能与 {i} 比较。"],
  "walk.sum": ["sum of the products ≈ {sum}", "乘积之和 ≈ {sum}"],
  "walk.scaled": ["times {number} (one over √{size})", "乘以 {number}（即 1/√{size}）"],
  "walk.times": ["times {number}", "乘以 {number}"],
  "walk.cosine": ["cosine ≈ {sum}", "余弦 ≈ {sum}"],
  "walk.other": [
    "This model adds a term of its own, such as one for the distance of the tokens.",
    "这个模型还会加上自己的一项，例如与词元间距离有关的一项。",
  ],
  "walk.score": ["score", "分数"],
  "walk.differ": [
    "Two matrices let the two directions differ: here by {x}.",
    "两个矩阵让两个方向可以不同：这里相差 {x}。",
  ],
  "walk.differ.core": [
    "The core lets the two directions differ, although there is one matrix: here by {x}.",
    "矩阵只有一个，但有了核，两个方向就可以不同：这里相差 {x}。",
  ],
  "walk.one": [
    "Both directions are equal, and with one matrix they always will be: the same numbers are multiplied.",
    "两个方向分毫不差。只用一个矩阵时永远如此：相乘的本就是同样的数。",
  ],
  "walk.mirror": [
    "Both directions are equal: the signs of the core leave the scores symmetric.",
    "两个方向分毫不差：核里只有正负号，分数仍然对称。",
  ],
  "walk.4": ["The same with every token, then from scores to shares", "与每个词元都算一遍，再把分数变成份额"],
  "walk.4.say": [
    "Q Kᵀ / √d is the table of all scores. This is the row of {i}, and beside each score the one in the other direction. {mask} The softmax turns the scores into shares of 100 %: a score higher by 1 counts 2.7 times as much, and what all scores of a row have in common does not count.",
    "Q Kᵀ / √d 就是所有分数排成的表。下面是 {i} 的那一行，每个分数旁边是反方向的分数。{mask}softmax 把分数变成加起来 100 % 的份额：分数高 1，份额就是 2.7 倍；一行分数共有的部分则不起作用。",
  ],
  "walk.mask.none": ["Nothing is masked: {i} may look anywhere.", "没有掩码：{i} 想看哪里都行。"],
  "walk.mask.causal": [
    "The mask hides what comes after {i}: this model may only look back.",
    "掩码把 {i} 之后的内容都遮住：这个模型只能往回看。",
  ],
  "walk.mask.self": ["The mask hides {i} from itself.", "掩码不让 {i} 看自己。"],
  "walk.mask.some": ["The mask hides some tokens from {i}.", "掩码对 {i} 遮住了一部分词元。"],
  "walk.key": ["token", "词元"],
  "walk.out": ["{i} → token", "{i} → 词元"],
  "walk.in": ["token → {i}", "词元 → {i}"],
  "walk.masked": ["masked", "被遮住"],
  "walk.share": ["share", "份额"],
  "walk.order": ["Order", "排列"],
  "walk.order.text": ["as in the text", "按原文顺序"],
  "walk.order.share": ["largest share first", "份额从大到小"],
  "walk.more": ["show all {n} tokens", "显示全部 {n} 个词元"],
  "walk.5": ["The values, mixed by these shares", "按份额把值混合起来"],
  "walk.5.say": [
    "{i} collects the values of all tokens, each times its share. The sum z goes on, through W<sub>O</sub>, into what the next layer gets.",
    "{i} 收集所有词元的值，各乘以份额后相加。得到的 z 再经过 W<sub>O</sub>，成为下一层输入的一部分。",
  ],
  "walk.answer": ["In the end the model answers {a} at {i}.", "最后，模型在 {i} 处的回答是 {a}。"],
  "walk.right": ["That is right.", "答对了。"],
  "walk.wrong": ["Right would be {b}.", "正确的应是 {b}。"],
  "walk.rest": ["{n} others", "其余 {n} 个"],

  "map.say": [
    "Row by row: how much each token (left) attends to each other one (above). If queries and keys were the same, the table of scores would be its own mirror image along the diagonal.",
    "一行一行地看：左边每个词元对上方各词元的关注程度。如果查询和键相同，分数表就会沿对角线左右对称。",
  ],
  "map.show": ["Show", "显示"],
  "map.pattern": ["attention (after the softmax)", "注意力（softmax 之后）"],
  "map.scores": ["scores (before the softmax)", "分数（softmax 之前）"],
  "map.heat": ["Heat map: rows are queries, columns keys", "热图：行是查询，列是键"],
  "map.graph": ["Who attends most to whom", "谁最关注谁"],
  "map.graph.say": [
    "Each token points at the one that it attends to most. Follow the arrows: every path ends in a ring.",
    "每个词元都指向它最关注的那个。顺着箭头走，每条路最后都走进一个环。",
  ],
  "map.causal": [
    "Half of the map is empty because this model may only look back. For the same reason all paths lead back, and can only end in a token that looks at itself, whatever the weights are.",
    "这个模型只能往回看，所以地图有一半是空的。同理，所有的路都往回走，无论权重如何，终点只能是关注自己的词元。",
  ],
  "map.pair": ["score {i} → {j}: {a} ({p}); {j} → {i}: {b} ({q})", "分数 {i} → {j}：{a}（{p}）；{j} → {i}：{b}（{q}）"],
  "map.loops": ["{n} loop(s)", "{n} 个自环"],
  "map.pairs": ["{n} pair(s)", "{n} 个互指对"],
  "map.rings": ["{n} longer ring(s)", "{n} 个更长的环"],
  "map.longest": ["{n} longer ring(s), the longest of {most}", "{n} 个更长的环，最长的有 {most} 个成员"],
  "law.one": [
    "One matrix: q = k. Whoever a token prefers to itself has a longer key than it, so along the arrows keys only grow, and a path can only end in a token that looks at itself.",
    "一个矩阵，q = k。一个词元如果更看重别人，那人的键一定比它自己的长；顺着箭头走，键只会越来越长，所以终点只能是关注自己的词元。",
  ],
  "law.mirror": [
    "Symmetric scores: along a ring scores cannot fall, so they are all equal, and a ring has at most two members.",
    "分数对称：沿着环走，分数不会下降，只能处处相等，所以一个环最多两个成员。",
  ],
  "law.any": [
    "Two matrices, or one and a full core: nothing forbids longer rings, where A looks at B, B at C, and C at A.",
    "两个矩阵，或一个矩阵加完整核：更长的环也不受限制，A 看 B，B 看 C，C 又看 A。",
  ],
  "law.none": ["No token may look at itself, so there are no loops.", "不许看自己，也就没有自环。"],

  "compare.say": [
    "The same head on the same text, in two settings. Change either side.",
    "同一个头，同一段文本，两种设置。两边都可以换。",
  ],
  "compare.a": ["Left", "左"],
  "compare.b": ["Right", "右"],
  "compare.metric": ["measure", "指标"],
  "metric.symmetry": ["symmetry of the scores", "分数的对称程度"],
  "metric.symmetry.say": ["correlation of i→j with j→i; 1 is a mirror", "i→j 与 j→i 的相关系数，1 即完全对称"],
  "metric.self": ["attention to oneself", "对自己的关注"],
  "metric.self.say": ["an even spread would give {x}", "平均分配时是 {x}"],
  "metric.longest": ["longest ring", "最长的环"],
  "metric.output": ["output, {scope} changed", "输出（改动{scope}）"],

  "heads.say": [
    "Every head of the model on this text. Choose one to look into it.",
    "模型的所有头在这段文本上的样子。点一个就能看它的细节。",
  ],
  "heads.sort": ["Sort by", "排序"],
  "heads.place": ["layer and head", "层与头"],
  "heads.symmetry": ["symmetry of the scores", "分数的对称程度"],
  "heads.self": ["attention to oneself", "对自己的关注"],
  "heads.longest": ["longest ring", "最长的环"],
  "heads.one": ["layer {layer}, head {head}", "第 {layer} 层第 {head} 头"],

  claim: ["What this shows of the article's claims", "这说明了文章的哪条论断"],
  "claim.c1": ["C1: with one matrix the scores are symmetric", "C1：只用一个矩阵，分数必然对称"],
  "claim.c2": ["C2: which relations a head can express", "C2：一个头能表达哪些关系"],
  "claim.c4": ["C4: two matrices give more expressive power", "C4：两个矩阵的表达能力更强"],
  "claim.c6": ["C6: dot product or cosine", "C6：点积还是余弦"],
  "claim.c3": ["C3: what sharing costs", "C3：共用的代价"],
};

export let language = "en";

export function setLanguage(chosen) {
  language = chosen;
  document.documentElement.lang = chosen === "zh" ? "zh-Hans" : "en";
}

export function t(key, values = {}) {
  const both = STRINGS[key];
  if (!both) return key;
  const text = both[language === "zh" ? 1 : 0].replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
  return text.replace(/(\d+) ([a-z ]+)\(s\)/g, (_, count, noun) => `${count} ${noun}${count === "1" ? "" : "s"}`);
}

export function has(key) {
  return key in STRINGS;
}
