// The form, and the prompts as they come. `write` is the student's: in this page, or behind a server.
"use strict";

const page = JSON.parse(document.getElementById("page").textContent);
const $ = id => document.getElementById(id);
// Split at white space; in scripts that put no space between words, each character is a word.
const UNSPACED = ["Han", "Hiragana", "Thai", "Lao", "Khmer", "Myanmar"].map(script => `\\p{sc=${script}}`).join("");
const WORD = new RegExp(`[^\\p{L}\\p{N}\\s]*[${UNSPACED}][^\\p{L}\\p{N}\\s]*|[^\\s${UNSPACED}]+`, "gu");
const countWords = text => text.match(WORD)?.length ?? 0;
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const shown = (name, value) => (name === "length" ? `${value} ${value === 1 ? "word" : "words"}` : Number(value).toFixed(2));
let latest = 0;

for (const [k, { name, title }] of page.tasks.entries())
  $("tasks").append(make("label", {}, make("input", { type: "radio", name: "task", value: name, checked: !k }), make("span", { textContent: title })));

const task = () => page.tasks.find(each => each.name === document.forms[0].task.value);

// One line per reward that the task knows: whether it is commanded, and its value.
function levers() {
  $("levers").replaceChildren(...Object.entries(task().rewards).map(([name, { low, high, step, value }]) => {
    const commanded = make("input", { type: "checkbox", checked: value !== null, id: `use-${name}` });
    const slider = make("input", { type: "range", min: low, max: high, step, id: `at-${name}`, name });
    slider.value = value ?? (low + high) / 2;
    slider.setAttribute("aria-label", name);
    const said = make("output", {});
    const tell = () => {
      said.textContent = commanded.checked ? shown(name, slider.value) : "open";
      slider.setAttribute("aria-valuetext", said.textContent);
      slider.classList.toggle("open", !commanded.checked);
    };
    commanded.oninput = tell;
    slider.oninput = () => { commanded.checked = true; tell(); };
    tell();
    return make("div", { className: "lever" }, make("label", {}, commanded, make("span", { textContent: name })), slider, said);
  }));
}
levers();
$("tasks").oninput = levers;
$("temperature").oninput = () => { $("warm").textContent = Number($("temperature").value).toFixed(1); };
$("temperature").value = page.temperature;
$("temperature").oninput();

function commandOf() {
  const asked = Object.keys(task().rewards).filter(name => $(`use-${name}`).checked);
  return { task: task().name, ...Object.fromEntries(asked.map(name => [name, Number($(`at-${name}`).value)])) };
}

// What was commanded and what was achieved: a ring and a dot on one line, and both in words.
function meter(name, asked, got) {
  const { low, high } = task().rewards[name] ?? { low: 0, high: 1 };
  const place = value => `${Math.max(0, Math.min(100, (100 * (value - low)) / (high - low)))}%`;
  const track = make("span", { className: "track" });
  for (const [kind, value] of [["asked", asked], ["got", got]])
    if (value != null) track.append(make("span", { className: kind })), (track.lastChild.style.left = place(value));
  const words = `${shown(name, got)} achieved${asked == null ? "" : `, ${shown(name, asked)} commanded`}`;
  return make("div", { className: "meter" }, make("span", { className: "name", textContent: name }), track, make("span", { textContent: words }));
}

document.forms[0].onsubmit = async submitted => {
  submitted.preventDefault();
  const turn = ++latest, command = commandOf(), n = Number($("count").value);
  const cards = Array.from({ length: n }, () => {
    const text = make("p", { className: "prompt" }), meters = make("div", { className: "meters" });
    const copy = make("button", { type: "button", className: "copy", textContent: "Copy" });
    copy.onclick = async () => {
      await navigator.clipboard.writeText(text.textContent);
      copy.textContent = "Copied";
      setTimeout(() => { copy.textContent = "Copy"; }, 1500);
    };
    return { text, meters, item: make("li", { hidden: true }, make("div", { className: "row" }, text, copy), meters) };
  });
  const show = (k, text, achieved = null, asked = command) => {
    if (turn !== latest) return;
    const { item, meters, text: line } = cards[k];
    item.hidden = false;
    item.classList.toggle("writing", !achieved);
    line.textContent = text.trim();
    const got = { length: countWords(text), ...achieved };
    const names = Object.keys(task().rewards).filter(name => got[name] != null);
    meters.replaceChildren(...names.map(name => meter(name, asked[name], got[name])));
  };
  $("prompts").replaceChildren(...cards.map(({ item }) => item));
  $("prompts").setAttribute("aria-busy", "true");
  $("status").textContent = "Writing …";
  $("status").className = "";
  try {
    if (!/[\p{L}\p{N}\p{So}]/u.test($("intent").value)) throw new Error("Type an intent first: a few words about what is wanted.");
    const options = { n, temperature: Number($("temperature").value), stale: () => turn !== latest };
    const said = await write($("intent").value, command, options, show);
    if (turn === latest) $("status").textContent = said;
  } catch (error) {
    if (turn !== latest) return;
    $("status").textContent = error.message;
    $("status").className = "error";
  }
  $("prompts").setAttribute("aria-busy", "false");
};
