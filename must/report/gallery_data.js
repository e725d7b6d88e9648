"use strict";
// The gallery in the browser, first part: the columns of numbers, the state in the address after "#", which images
// are selected in which order. All text from records goes through textContent.

const WORDS = ["positive", "ignored", "negative"], KINDS = ["pos", "ign", "neg"];
const MEANINGS = ["positive", "ignored", "negative"];
const DEFAULTS = { task: "", class: "", state: "", order: "uncertainty", view: "all", q: "", page: "1", open: "" };
const $ = (query, root = document) => root.querySelector(query);
let G, state, shown = [], position = new Map(), place, offsets, waiting = new Map(), chunks = new Map();

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") node.className = value; else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}
const number = (value) => value.toLocaleString("en");
const percent = (part) => (part > 0 && part < 0.01 ? "< 1 %" : Math.round(100 * part) + " %");

// ---- data ----

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

function prepare() {
  const count = G.ids.length;
  G.lost = new Set(G.unreadable);
  let first = G.ids[0], last = first, same = 0;
  for (const id of G.ids) {
    if (id < first) first = id;
    if (id > last) last = id;
  }
  while (same < first.length && first[same] === last[same]) same++;
  G.prefix = first.lastIndexOf("/", same - 1) + 1; // letters that all ids begin with, up to a slash
  // Pictures lie in the order of falling uncertainty; the place of an image there says which file holds it.
  const order = Array.from({ length: count }, (_, i) => i).sort((a, b) => G.uncertainty[b] - G.uncertainty[a] || a - b);
  place = new Int32Array(count);
  order.forEach((image, at) => { place[image] = at; });
  for (const task of G.tasks) {
    task.offsets = new Int32Array(count + 1);
    for (let i = 0; i < count; i++) task.offsets[i + 1] = task.offsets[i] + task.counts[i];
    const size = task.classes.length || 1, images = new Int32Array(2 * size);
    for (const key of task.predicted) images[key]++;
    task.images = images;
  }
}
const className = (task, id) => task.classes.length ? task.classes[id] ?? `class ${id}` : "";
const predictedOf = (task, image) => task.predicted.slice(task.offsets[image], task.offsets[image + 1]);
const taskNow = () => G.tasks.find((task) => task.name === state.task);

// ---- the address ----

function readHash() {
  const parameters = new URLSearchParams(location.hash.slice(1));
  state = Object.fromEntries(Object.keys(DEFAULTS).map((key) => [key, parameters.get(key) ?? DEFAULTS[key]]));
  if (!taskNow()) state.task = state.class = "";
  if (!["uncertainty", "record", ...(G.error ? ["worst"] : [])].includes(state.order)) state.order = "uncertainty";
  if (!["all", "photo", ...G.tasks.map((task) => "task " + task.name)].includes(state.view)) state.view = "all";
}

function writeHash() {
  const kept = new URLSearchParams();
  for (const [key, value] of Object.entries(state)) if (value !== DEFAULTS[key]) kept.set(key, value);
  history.replaceState(null, "", "#" + kept);
}

// ---- which images, in which order ----

function select() {
  const task = taskNow(), chosen = task ? task.classes.indexOf(state.class) : -1, sought = state.q.toLowerCase();
  const tasks = task ? [task] : G.tasks;
  const matches = (image) => {
    if (sought && !G.ids[image].toLowerCase().includes(sought)) return false;
    if (state.state === "lost") return G.lost.has(image);
    if (state.state === "none") return tasks.some((t) => t.uncertainty[image] < 0);
    const has = (bit) => tasks.some((t) => {
      for (let at = t.offsets[image]; at < t.offsets[image + 1]; at++) {
        const key = t.predicted[at];
        if ((chosen < 0 || key >> 1 === chosen) && (bit < 0 || (key & 1) === bit)) return true;
      }
      return false;
    });
    if (state.state === "nothing") return tasks.some((t) => t.uncertainty[image] >= 0) && !has(0);
    if (state.state) return has(state.state === "positive" ? 0 : 1);
    return chosen < 0 || has(-1);
  };
  shown = [];
  for (let image = 0; image < G.ids.length; image++) if (matches(image)) shown.push(image);
  if (state.order === "uncertainty") {
    shown.sort((a, b) => (task ? task.uncertainty[b] - task.uncertainty[a] : 0) || G.uncertainty[b] - G.uncertainty[a] || a - b);
  } else if (state.order === "worst") {
    const sign = task?.metric ? (task.metric.higher ? 1 : -1) : 0, last = Infinity;
    const bad = (image) => (sign ? (task.scores[image] === null ? last : sign * task.scores[image]) : -G.error[image]);
    shown.sort((a, b) => (bad(a) === bad(b) ? 0 : bad(a) - bad(b)) || a - b);
  }
  position = new Map(shown.map((image, at) => [image, at]));
}
