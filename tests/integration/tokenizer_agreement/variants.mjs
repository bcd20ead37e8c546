// The reference tokenizer with settings that the shipped ones do not use: odd added tokens, GPT-2's expression with a prefix
// space, several splits, engine-dependent regular expressions.
export function makeVariants(reference) {
  const copy = () => JSON.parse(JSON.stringify(reference));
  let id = 8192;
  const added = (content, options = {}) => ({
    id: id++, content, special: false, normalized: false, lstrip: false, rstrip: false, single_word: false, ...options,
  });
  const split = (regex, invert = false) => ({ type: "Split", pattern: { Regex: regex }, behavior: "Isolated", invert });
  const byteLevel = (add_prefix_space, use_regex) => ({ type: "ByteLevel", add_prefix_space, trim_offsets: true, use_regex });

  // No token of white space here: behind a token with rstrip the original finds it a second time in white space already taken.
  const addedTokens = copy();
  addedTokens.added_tokens.push(
    added("<l>", { lstrip: true }), added("<r>", { rstrip: true }), added("<lr>", { lstrip: true, rstrip: true }),
    added("cat", { single_word: true }), added("caf\u00e9", { normalized: true }), added("e\u0323\u0301", { normalized: true }),
    added("cafe\u0301!"), added("<l><r>"), added("=="), added("magic", { single_word: true, lstrip: true, rstrip: true, normalized: true }),
    added("\u65e5\u672c"), added("number", { normalized: true }));

  const gpt2 = JSON.parse(JSON.stringify(addedTokens));
  gpt2.normalizer = null;
  gpt2.pre_tokenizer = byteLevel(true, true);

  const severalSplits = copy();
  severalSplits.pre_tokenizer.pretokenizers = [
    split("\\p{N}{1,3}|\\w+|\\d"), split("[^\\s\\w]+|\\p{Han}|(?i:s|k)", true), byteLevel(true, true),
  ];
  const engines = copy();
  engines.pre_tokenizer.pretokenizers = [
    split("[\\S]+?|a*|^.|\\v|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}++|\\u0061|$"), byteLevel(false, false),
  ];
  const words = copy();
  words.pre_tokenizer.pretokenizers = [split("\\w+|[\\d\\s]+|\\W"), byteLevel(true, false)];
  return { addedTokens, gpt2, severalSplits, engines, words };
}
