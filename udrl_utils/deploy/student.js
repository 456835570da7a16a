// The student in a worker: an intent and a command come in as messages, the tokens and the text of a prompt go out.
// GPT-2 with a cache of keys and values on 8-bit weights, byte-level BPE, command tokens and sampling, as in Python.
"use strict";

let facts, tensors, vocabulary, ids, ranks, keys, values;

onmessage = ({ data }) => {
  if (data.facts) return load(data.facts, data.weights);
  const began = performance.now();
  const prefix = data.prefix ?? prefixOf(data.intent, data.command);
  const read = encode(prefix);
  const written = [...write(read, data, token => postMessage({ id: data.id, token, piece: pieceOf(token) }))];
  postMessage({ id: data.id, done: true, prefix, read, written, seconds: (performance.now() - began) / 1000 });
};

function load(given, weights) {
  facts = given;
  let place = 0;
  const take = (kind, count) => {
    const part = new kind(weights, place, count);
    place += Math.ceil(part.byteLength / 4) * 4;
    return part;
  };
  tensors = {};
  for (const { name, shape, bits } of facts.tensors) {
    const size = shape.reduce((a, b) => a * b, 1);
    tensors[name] = bits === 8
      ? { weight: take(Int8Array, size), scale: take(Float32Array, shape[0]), rows: shape[0], columns: shape[1] }
      : take(Float32Array, size);
  }
  vocabulary = facts.tokens;
  ids = new Map(vocabulary.map((token, id) => [token, id]));
  ranks = new Map(facts.merges.map((pair, rank) => [pair, rank]));
  const cache = () => Array.from({ length: facts.layers }, () => new Float32Array(facts.positions * facts.width));
  [keys, values] = [cache(), cache()];
  postMessage({ ready: true });
}

// ---- the model

function linear(input, { weight, scale, rows, columns }, bias, output = new Float32Array(rows)) {
  for (let row = 0, at = 0; row < rows; row++) {
    let a = 0, b = 0, c = 0, d = 0;
    for (let k = 0; k < columns; k += 4, at += 4) {
      a += weight[at] * input[k];
      b += weight[at + 1] * input[k + 1];
      c += weight[at + 2] * input[k + 2];
      d += weight[at + 3] * input[k + 3];
    }
    output[row] = (a + b + c + d) * scale[row] + (bias ? bias[row] : 0);
  }
  return output;
}

function normal(input, name) {
  const weight = tensors[`${name}.weight`], bias = tensors[`${name}.bias`], size = input.length;
  let mean = 0, square = 0;
  for (const value of input) mean += value / size;
  for (const value of input) square += (value - mean) ** 2 / size;
  const scale = 1 / Math.sqrt(square + facts.epsilon);
  return input.map((value, k) => (value - mean) * scale * weight[k] + bias[k]);
}

function attend(query, layer, position) {
  const size = facts.width / facts.heads, output = new Float32Array(facts.width);
  for (let head = 0; head < facts.heads; head++) {
    const start = head * size, scores = new Float64Array(position + 1);
    let highest = -Infinity, sum = 0;
    for (let t = 0; t <= position; t++) {
      let score = 0;
      for (let k = start; k < start + size; k++) score += query[k] * keys[layer][t * facts.width + k];
      scores[t] = score / Math.sqrt(size);
      highest = Math.max(highest, scores[t]);
    }
    for (let t = 0; t <= position; t++) sum += scores[t] = Math.exp(scores[t] - highest);
    for (let t = 0; t <= position; t++)
      for (let k = start; k < start + size; k++) output[k] += (scores[t] / sum) * values[layer][t * facts.width + k];
  }
  return output;
}

const gelu = x => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));

// Reads one token at a position; returns the logits of the next one, where they are wanted.
function step(token, position, wanted) {
  const { "wte.weight": wte, "wpe.weight": wpe } = tensors, width = facts.width;
  const stream = Float32Array.from({ length: width }, (_, k) =>
    wte.weight[token * width + k] * wte.scale[token] + wpe.weight[position * width + k] * wpe.scale[position]);
  const add = change => change.forEach((value, k) => { stream[k] += value; });
  for (let layer = 0; layer < facts.layers; layer++) {
    const of = name => tensors[`h.${layer}.${name}.weight`], bias = name => tensors[`h.${layer}.${name}.bias`];
    const mixed = linear(normal(stream, `h.${layer}.ln_1`), of("attn.c_attn"), bias("attn.c_attn"));
    keys[layer].set(mixed.subarray(width, 2 * width), position * width);
    values[layer].set(mixed.subarray(2 * width), position * width);
    add(linear(attend(mixed.subarray(0, width), layer, position), of("attn.c_proj"), bias("attn.c_proj")));
    const hidden = linear(normal(stream, `h.${layer}.ln_2`), of("mlp.c_fc"), bias("mlp.c_fc")).map(gelu);
    add(linear(hidden, of("mlp.c_proj"), bias("mlp.c_proj")));
  }
  return wanted ? linear(normal(stream, "ln_f"), wte) : null;
}

function* write(read, { command, temperature = 0, minP = 0, seed = 0 }, told) {
  const most = Math.min(facts.positions - read.length, facts.tokensPerWord * (command?.length || facts.longest || 60) + 16);
  const random = generator(seed);
  let logits;
  read.forEach((token, k) => { logits = step(token, k, k === read.length - 1); });
  for (let k = 0; k < most; k++) {
    const token = temperature > 0 ? sample(logits, temperature, minP, random) : logits.indexOf(logits.reduce((a, b) => Math.max(a, b)));
    if (token === facts.end) return;
    told(token);
    yield token;
    if (k + 1 < most) logits = step(token, read.length + k, true);
  }
}

function sample(logits, temperature, minP, random) {
  const highest = logits.reduce((a, b) => Math.max(a, b));
  const chances = logits.map(logit => Math.exp((logit - highest) / temperature)).map(chance => (chance < minP ? 0 : chance));
  let left = random() * chances.reduce((a, b) => a + b, 0);
  let last = 0;
  for (let token = 0; token < chances.length; token++) {
    if (!chances[token]) continue;
    last = token;
    if ((left -= chances[token]) < 0) return token;
  }
  return last;
}

// Mulberry32: numbers from 0 to 1.
function generator(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

// ---- text and tokens

const bytes = new Map(), characters = new Map();
for (let byte = 0, next = 256; byte < 256; byte++) {
  const shown = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  const character = String.fromCharCode(shown ? byte : next++);
  bytes.set(character, byte);
  characters.set(byte, character);
}
const PIECES = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

function encode(text) {
  const special = token => facts.special.includes(token);
  return text.split(/(<\|[^|]*\|>)/u).filter(Boolean).flatMap(part => {
    if (special(part)) return [ids.get(part)];
    const spaced = facts.spaced && !part.startsWith(" ") ? ` ${part}` : part;
    return spaced.match(PIECES).flatMap(merge);
  });
}

function merge(piece) {
  const parts = Array.from(new TextEncoder().encode(piece), byte => characters.get(byte));
  while (parts.length > 1) {
    let best = -1, lowest = Infinity;
    for (let k = 0; k + 1 < parts.length; k++) {
      const rank = ranks.get(`${parts[k]} ${parts[k + 1]}`) ?? Infinity;
      if (rank < lowest) [best, lowest] = [k, rank];
    }
    if (best < 0) break;
    parts.splice(best, 2, parts[best] + parts[best + 1]);
  }
  return parts.map(part => ids.get(part));
}

// The bytes of a token; none for a special one, such as those of the countdown of the length.
function pieceOf(token) {
  const text = vocabulary[token];
  return facts.special.includes(text) ? new Uint8Array() : Uint8Array.from(text, character => bytes.get(character));
}

function prefixOf(intent, command) {
  const asked = facts.form === "none" ? [] : facts.rewards.filter(name => command[name] != null).map(name =>
    [name, name === "length" ? command.length : binOf(command, name)]);
  const task = `<|task:${command.task}|>`;
  const said = facts.form === "text"
    ? asked.map(([name, value]) => ` ${name} ${value}`).join("") + " "
    : asked.map(([name, value]) => `<|${name}:${value}|>`).join("");
  const typed = fitting(clean(intent)), text = harmless(facts.cased ? typed : lower(typed));
  return facts.place === "last" ? `${task}${text}${said}<|prompt|>` : `${task}${said}${text}<|prompt|>`;
}

function binOf(command, name) {
  const bins = facts.bins[command.task][name];
  return bins[Math.min(Math.floor(command[name] * bins.length), bins.length - 1)];
}

const harmless = text => text.replace(/<(?=[|/a-zA-Z<])|\[(?=\/?INST\])/g, "$& ");
const line = text => text.trim().replace(/\s+/g, " ");

// An intent as it was typed, on one line: case, quotes and punctuation stay, control characters go.
const clean = text => line(text.replace(/[\u200b\u2060\ufeff\u00ad]/g, "").normalize("NFC").replace(/[\p{Cc}\p{Cs}\p{Co}]/gu, " "));

// An intent the way a search box would store it: one line, lower case, no closing punctuation or stray quotes.
function lower(text) {
  text = line(text.normalize("NFKC").replace(/[\p{C}\p{Z}]/gu, " ")).toLowerCase();
  for (let before = null; text !== before;) {
    before = text;
    text = text.replace(/^[ .!?]+|[ .!?]+$/g, "");
    for (const quote of ['"', "'"]) {
      const count = text.split(quote).length - 1;
      if ((text.startsWith(quote) && text.endsWith(quote) && count === 2) || count % 2)
        text = text.replace(new RegExp(`^${quote}+|${quote}+$`, "g"), "");
    }
  }
  return text;
}

// An intent that fits into half of the context; what is longer is cut.
function fitting(text) {
  const room = facts.positions >> 1, read = encode(harmless([...text].slice(0, 16 * room).join("")));
  if (read.length <= room) return text;
  return new TextDecoder().decode(Uint8Array.from(read.slice(0, room).flatMap(token => [...pieceOf(token)]))).trim();
}
