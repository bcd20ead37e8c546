// The texts of the agreement test: a fixed list and seeded random mixtures.
//
// Two characters are left out because JavaScript's \s and the one that tokenizer files mean (Unicode's White_Space) differ on
// them: U+0085 and U+FEFF. Scripts are taken from blocks that all Unicode versions of the last years assign alike.

export const SEED = 20260117;

function generator(seed) {  // mulberry32
  let a = seed >>> 0;
  return (n) => {
    a = (a + 0x6d2b79f5) >>> 0;
    let t = Math.imul(a ^ (a >>> 15), a | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 4294967296) * n);
  };
}

const SCRIPTS = [
  [0x61, 0x7a], [0x41, 0x5a], [0xc0, 0x17e], [0x391, 0x3c9], [0x410, 0x44f], [0x531, 0x556], [0x5d0, 0x5ea],
  [0x620, 0x64a], [0x904, 0x939], [0x985, 0x9b9], [0xa05, 0xa39], [0xb85, 0xbb9], [0xc05, 0xc39], [0xe01, 0xe30],
  [0xe81, 0xeb0], [0xf40, 0xf6c], [0x1000, 0x102a], [0x10d0, 0x10f0], [0x1200, 0x1248], [0x13a0, 0x13f4],
  [0x1780, 0x17b3], [0x1820, 0x1878], [0x3041, 0x3096], [0x30a1, 0x30fa], [0x4e00, 0x9fa5], [0xac00, 0xd7a3],
  [0x1100, 0x1112], [0x1161, 0x1175], [0x11a8, 0x11c2], [0x1f00, 0x1f15], [0x20000, 0x20100], [0x10330, 0x10340],
  [0xff21, 0xff5a], [0xf900, 0xfa00], [0x2f00, 0x2f20],
];
const MARKS = [[0x300, 0x33f], [0x591, 0x5a0], [0x64b, 0x65f], [0x93c, 0x94d], [0x5b0, 0x5bd], [0x1dc0, 0x1dcf], [0x3099, 0x309a]];
const DIGITS = [[0x30, 0x39], [0x660, 0x669], [0x966, 0x96f], [0xff10, 0xff19], [0x2160, 0x2188], [0xb2, 0xb3], [0x2460, 0x2473]];
const PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~¡¿«»–—‘’“”…•‰€£¥©®™°±×÷→⇒∀∑√∞≈≤≥①★♠♫✓、。「」，！？・؛،।";
const SPACES = [" ", "  ", "   ", "        ", "\n", "\n\n", "\r\n", "\r", "\t", "\t\t", " \n", "\n ", " \n \n", "\u00a0", "\u2003",
  "\u3000", "\u2028", "\u202f", "\u180e", "\u200b", "\u200d", "\u000b", "\u000c", " \t \n\t"];
const EMOJI = ["😀", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇯🇵", "❤️", "☃", "🧑🏿‍🚀", "1️⃣", "🫠", "\u{1f3fb}", "⌚️"];
const CODE = [
  "for (int i = 0; i < n; ++i) {\n    a[i] += b[i] * 2;\n}\n", "def f(x):\n\treturn [y**2 for y in x if y != None]\n",
  "<div class=\"a b\">&nbsp;</div>\r\n", "SELECT * FROM t WHERE x='it''s';", "#include <vector>\n\n\n", "0xDEADBEEF 1e-10 3.14159 1,000,000",
  "https://example.org/a?b=c&d=%20#e", "foo_bar->BazQux::operator<<(std::move(x));", "$HOME/.config  --flag=\"v\"", "\\alpha_{i}^{2} \\frac{1}{2}",
];
const ENGLISH = ["the", "I'm", "don't", "WE'LL", "they've", "it's", "O'Clock", "he'd", "you're", "'s", "'S", "'tis", "Hello", "world", "magic",
  "number", "tokenization", "naïve", "café", "cafe\u0301", "Zürich", "e\u0323\u0301", "q\u0307\u0323", "\u1e9b\u0323", "\ufb01ne", "Å", "\u212b",
  "internationalisation", "antidisestablishmentarianism", "x", "A", "ABC", "iPhone", "3rd", "2nd"];

export const FIXED = [
  "", " ", "\n", "a", "Hello, world!", "Hello world", " Hello world ", "  leading", "trailing  ", "a\n\n\nb", "a \n b", "a\r\n\r\nb", "\t\tx",
  "I'm can't won't it's WE'LL They'Re y'all'd've", "'sample 'tis 'twas ''s 'S'T", "1 12 123 1234 12345 1234567 3.14 1,000", "a1b2c3", "１２３４", "٣٤٥",
  "naïve café", "cafe\u0301", "\u0301\u0300", "a\u0316\u0301\u0315\u0300", "\u0344", "\u1100\u1161\u11a8\u11a8", "각\u11a8", "ﬁ ﬂ", "Å\u212b\u2126",
  "ẛ\u0323", "q\u0307\u0323", "\u0958", "\u2adc", "\ufb1d", "\u0f73\u0f75", "\u{1d15e}", "\uf900\ufa0e", "가나다", "日本語のテキスト。", "中文文本，没有空格", "ภาษาไทย",
  "עברית", "العربية", "हिन्दी भाषा", "বাংলা", "தமிழ்", "Русский язык", "Ελληνικά", "ქართული", "አማርኛ", "ខ្មែរ", "မြန်မာ", "བོད་སྐད", "ᏣᎳᎩ", "ᠮᠣᠩᠭᠣᠯ",
  "a\u180eb", "a\u200bb", "a\u200db", "a\u00a0b", "\u3000\u3000x", "x\u2028y\u2029z", "\u000b\u000c", "\u0000", "a\u0000b", "\u0001\u001f\u007f\u0080\u009f",
  "😀😀😀", "👨‍👩‍👧‍👦 family", "🏳️‍🌈", "🇩🇪", "1️⃣2️⃣", "(╯°□°）╯︵ ┻━┻", "<|", "<|im_", "<|endoftext|", "|>", "<|endoftext|>", "<|im_start|>user\nhi<|im_end|>\n",
  "<|endoftext|><|endoftext|>", "a<|im_end|>b", " <|im_end|> ", "<|<|im_end|>|>", "<|IM_END|>", "<|im_end|>\u0301", "e<|im_end|>\u0301x", "<think>", "</think>\n\n",
  "<tool_call>{}</tool_call>", "<|begin_of_text|>", "<|eot_id|>", "<|reserved_special_token_1|>", "<|reserved_special_token_10|>", "<|reserved_special_token_1", "<|fim_prefix|>",
  "x".repeat(1000), "ab".repeat(2000), " ".repeat(1000), " ".repeat(999) + "x", "\n".repeat(500), "=".repeat(777), "1".repeat(500), "é".repeat(300), "e\u0301".repeat(300),
  "a" + "\u0301".repeat(200), "a" + "\u0301\u0323".repeat(100), "😀".repeat(200), "字".repeat(500), "-_".repeat(400), " \n".repeat(200), "\uffff\ufffd\u{10ffff}", "\ue000",
];

function mixture(rand, addedTokens) {
  const pick = (list) => list[rand(list.length)];
  const from = (ranges, most) => {
    const [low, high] = pick(ranges);
    let s = "";
    for (let n = 1 + rand(most); n > 0; --n) s += String.fromCodePoint(low + rand(high - low + 1));
    return s;
  };
  const pieces = [
    () => pick(ENGLISH), () => pick(ENGLISH) + " ", () => " " + pick(ENGLISH), () => from(SCRIPTS, 8), () => from(SCRIPTS, 3) + from(MARKS, 3),
    () => from(MARKS, 5), () => from(DIGITS, 6), () => pick([...PUNCTUATION]), () => pick([...PUNCTUATION]).repeat(1 + rand(5)), () => pick(SPACES),
    () => pick(SPACES) + pick(SPACES), () => pick(EMOJI), () => pick(CODE), () => pick(addedTokens), () => pick(addedTokens).slice(0, -1),
    () => " ", () => " ", () => "\n",
  ];
  let s = "";
  for (let n = 1 + rand(30); n > 0; --n) s += pick(pieces)();
  return s;
}

// `books`: texts to take passages from.
export function makeStrings(count, addedTokens, books) {
  const rand = generator(SEED);
  const out = [...FIXED];
  for (const book of books) {
    for (let i = 0; i < 100; ++i) {
      const begin = rand(book.length), length = 1 + rand(i < 95 ? 500 : 20000);
      out.push(book.slice(begin, begin + length));
    }
  }
  while (out.length < count) out.push(mixture(rand, addedTokens));
  // Half a character at a cut cannot be written as UTF-8; the two characters of the comment above are not compared.
  return out.map((s) => s.replace(/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]|[\u0085\ufeff]/g, ""));
}

// For the original implementation only: where JavaScript's classes and case folding differ.
export const ONLY_ORIGINAL = [
  "\u0085", "a\u0085b", "\ufeffabc", "a\ufeff b", "'\u017f x'S \u017f", "\u212a k", "a\u0085\u0085  b", "x\u180ey", "\u0130'\u0131", "<l><r>",
  " \u0085<l> \u3000", "a<r>\ufeff", "cat cats \u200dcat", "\u24b6cat \u2160cat", "2nd\u00b3\u00b2\u00bd", "\u0085<|im_end|>\ufeff", "caf\u00e9\u0301", "concat cat\u00e9",
];
