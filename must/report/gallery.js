"use strict";
// The gallery in the browser: filters and order over columns of numbers, one page of cards at a time, pictures as they come
// into sight, one image large. All text from records goes through textContent; the state is in the address after "#".

const WORDS = ["taken", "ignored", "absent"], KINDS = ["pos", "ign", "neg"];
const MEANINGS = ["taken as true", "ignored", "taken as absent"];
const DEFAULTS = { task: "", class: "", state: "", order: "doubt", view: "all", q: "", page: "1", open: "" };
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
  const [first, last] = G.ids.reduce(([low, high], id) => [id < low ? id : low, id > high ? id : high], [G.ids[0], G.ids[0]]);
  let same = 0;
  while (same < first.length && first[same] === last[same]) same++;
  G.prefix = first.lastIndexOf("/", same - 1) + 1; // letters that all ids begin with, up to a slash
  // Pictures lie in the order of falling doubt; the place of an image there says which file holds it.
  const order = Array.from({ length: count }, (_, i) => i).sort((a, b) => G.doubt[b] - G.doubt[a] || a - b);
  place = new Int32Array(count);
  order.forEach((image, at) => { place[image] = at; });
  for (const task of G.tasks) {
    task.offsets = new Int32Array(count + 1);
    for (let i = 0; i < count; i++) task.offsets[i + 1] = task.offsets[i] + task.counts[i];
    const size = task.classes.length || 1, images = new Int32Array(2 * size);
    for (const key of task.said) images[key]++;
    task.images = images;
  }
}
const className = (task, id) => task.classes.length ? task.classes[id] ?? `class ${id}` : "";
const saidOf = (task, image) => task.said.slice(task.offsets[image], task.offsets[image + 1]);
const taskNow = () => G.tasks.find((task) => task.name === state.task);

// ---- the address ----

function readHash() {
  const given = new URLSearchParams(location.hash.slice(1));
  state = Object.fromEntries(Object.keys(DEFAULTS).map((key) => [key, given.get(key) ?? DEFAULTS[key]]));
  if (!taskNow()) state.task = state.class = "";
  if (!["doubt", "record", ...(G.error ? ["worst"] : [])].includes(state.order)) state.order = "doubt";
  if (!["all", "photo"].includes(state.view) && !G.tasks.some((task) => "task " + task.name === state.view)) state.view = "all";
}

function writeHash() {
  const kept = new URLSearchParams();
  for (const [key, value] of Object.entries(state)) if (value !== DEFAULTS[key]) kept.set(key, value);
  history.replaceState(null, "", "#" + kept);
}

// ---- which images, in which order ----

function select() {
  const task = taskNow(), wanted = task ? task.classes.indexOf(state.class) : -1, sought = state.q.toLowerCase();
  const tasks = task ? [task] : G.tasks;
  const matches = (image) => {
    if (sought && !G.ids[image].toLowerCase().includes(sought)) return false;
    if (state.state === "lost") return G.lost.has(image);
    if (state.state === "none") return tasks.some((t) => t.doubt[image] < 0);
    const has = (bit) => tasks.some((t) => {
      for (let at = t.offsets[image]; at < t.offsets[image + 1]; at++) {
        const key = t.said[at];
        if ((wanted < 0 || key >> 1 === wanted) && (bit < 0 || (key & 1) === bit)) return true;
      }
      return false;
    });
    if (state.state === "nothing") return tasks.some((t) => t.doubt[image] >= 0) && !has(0);
    if (state.state) return has(state.state === "taken" ? 0 : 1);
    return wanted < 0 || has(-1);
  };
  shown = [];
  for (let image = 0; image < G.ids.length; image++) if (matches(image)) shown.push(image);
  if (state.order === "doubt") {
    shown.sort((a, b) => (task ? task.doubt[b] - task.doubt[a] : 0) || G.doubt[b] - G.doubt[a] || a - b);
  } else if (state.order === "worst") {
    const sign = task?.metric ? (task.metric.higher ? 1 : -1) : 0, last = Infinity;
    const bad = (image) => (sign ? (task.scores[image] === null ? last : sign * task.scores[image]) : -G.error[image]);
    shown.sort((a, b) => (bad(a) === bad(b) ? 0 : bad(a) - bad(b)) || a - b);
  }
  position = new Map(shown.map((image, at) => [image, at]));
}

// ---- controls ----

function options(name, entries) {
  const field = $("#controls").elements[name];
  field.replaceChildren(...entries.map(([value, text]) => make("option", { value }, text)));
  field.value = state[name];
  if (field.selectedIndex < 0) { field.selectedIndex = 0; state[name] = field.value; }
  field.disabled = entries.length < 2;
}

function fillControls() {
  const task = taskNow(), form = $("#controls").elements;
  options("task", [["", "all"], ...G.tasks.map((t) => [t.name, t.name])]);
  const classes = (task?.classes ?? []).map((name, id) => [name, task.images[2 * id], task.images[2 * id + 1]]);
  classes.sort((a, b) => b[1] + b[2] - a[1] - a[2]);
  options("class", [["", task ? "all" : "choose a task"],
    ...classes.map(([name, taken, ignored]) => [name, `${name} (${number(taken)} taken, ${number(ignored)} ignored)`])]);
  options("state", [["", "any"], ["taken", "something taken as true"], ["ignored", "something ignored"],
    ["nothing", "nothing taken as true"], ["none", "without a label"], ...(G.lost.size ? [["lost", "unreadable"]] : [])]);
  options("order", [["doubt", "most uncertain first"], ...(G.error ? [["worst", "worst first"]] : []), ["record", "as in the records"]]);
  options("view", [["all", "all tasks"], ["photo", "photo"], ...G.tasks.map((t) => ["task " + t.name, t.name])]);
  if (document.activeElement !== form.q) form.q.value = state.q;
}

function summary() {
  const tasks = G.tasks.length, many = G.ids.length;
  const lost = G.lost.size ? ` · ${number(G.lost.size)} unreadable` : "";
  $("#scope").textContent = `${number(many)} image${many === 1 ? "" : "s"} · ${tasks} task${tasks === 1 ? "" : "s"}${lost}`;
  const rows = G.tasks.map((task) => {
    const stack = make("div", { class: "stack" }, ...task.shares.map((part, s) => {
      const piece = make("i", { class: "s-" + WORDS[s] });
      piece.style.width = 100 * part + "%";
      return piece;
    }));
    const labelled = task.doubt.reduce((sum, value) => sum + (value >= 0), 0);
    return make("tr", {}, make("th", { scope: "row" }, task.name), make("td", {}, stack),
      ...task.shares.map((part) => make("td", {}, percent(part))), make("td", {}, number(labelled)));
  });
  const heads = ["task", "", "taken as true", "ignored", "taken as absent", "images"].map((head) => make("th", { scope: "col" }, head));
  const note = make("p", { class: "soft" }, "Means over images of the shares of what a label says: classes, boxes or pixels. " +
    "The uncertainty of an image is the share that is ignored, mean over its tasks.");
  $("#summary div").append(make("table", {}, make("tr", {}, ...heads), ...rows), note);
}

// ---- cards ----

const file = (chunk, rest) =>
  `pictures/${String(Math.floor(chunk / G.chunks)).padStart(4, "0")}/${String(chunk).padStart(6, "0")}${rest}`;

const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const load = entry.isIntersecting && waiting.get(entry.target);
    if (!load) continue;
    waiting.delete(entry.target);
    watcher.unobserve(entry.target);
    load();
  }
}, { rootMargin: "500px" });

function tile(image, view, what) {
  const node = make("span", { class: "tile", role: "img", "aria-label": what });
  const at = place[image], chunk = Math.floor(at / G.per), cell = at % G.per;
  const url = file(chunk, `-${G.sheets[chunk] >> view & 1 ? view : 0}.webp`);
  waiting.set(node, () => {
    const sheet = new Image();
    sheet.onload = () => {
      node.style.backgroundImage = `url("${url}")`;
      node.style.backgroundPosition = `-${(cell % G.across) * G.cell}px -${Math.floor(cell / G.across) * G.cell}px`;
    };
    sheet.onerror = () => { node.classList.add("lost"); node.title = "this picture is missing"; };
    sheet.src = url;
  });
  watcher.observe(node);
  return node;
}

function words(task, image) {
  const node = make("span", { class: "words" }), names = [[], []];
  if (!task.classes.length) {
    node.append(task.doubt[image] < 0 ? "no label" : `${percent(task.doubt[image] / 255)} uncertain`);
    return node;
  }
  for (const key of saidOf(task, image)) names[key & 1].push(className(task, key >> 1));
  if (task.doubt[image] < 0) node.append("no label");
  else if (!names[0].length && !names[1].length) node.append("nothing");
  if (names[0].length) node.append(names[0].join(", "));
  if (names[1].length) {
    if (names[0].length) node.append(" · ");
    node.append(make("span", { class: "ign" }, `ignored: ${names[1].join(", ")}`));
  }
  node.title = node.textContent;
  return node;
}

function textTile(task, image) {
  const keys = saidOf(task, image).sort((a, b) => (a & 1) - (b & 1));
  const lines = keys.slice(0, 5).map((key) => make("span", { class: KINDS[key & 1] }, make("i", { class: "dot" }), className(task, key >> 1)));
  if (keys.length > 5) lines.push(make("span", { class: "ign" }, `and ${keys.length - 5} more`));
  if (!lines.length) lines.push(make("span", { class: "ign" }, "nothing taken as true"));
  const node = make("span", { class: "tile text" }, ...lines);
  node.title = keys.map((key) => `${className(task, key >> 1)}: ${key & 1 ? "ignored" : "taken as true"}`).join("\n");
  return node;
}

function figuresOf(image) {
  const task = taskNow(), doubt = task?.doubt[image] >= 0 ? task.doubt[image] / 255 : G.doubt[image] / 65535;
  const parts = [`uncertain ${percent(doubt)}`];
  if (task?.metric && task.scores[image] !== null) parts.unshift(`${task.metric.name} ${scoreText(task, image)}`);
  else if (G.error) parts.unshift(`worse than ${Math.round(G.error[image] / 10)} % of the images`);
  return parts.join(" · ");
}
const scoreText = (task, image) => task.scores[image] + (task.metric.unit ? " " + task.metric.unit : "");

function card(image) {
  const line = make("span", { class: "line" }, make("span", { class: "id", title: G.ids[image] }, G.ids[image].slice(G.prefix)),
    make("span", { class: "num" }, figuresOf(image)));
  const node = make("button", { class: "card", type: "button", "data-image": image }, line);
  if (G.lost.has(image)) {
    node.append(make("span", { class: "tile lost text" }, make("span", {}, "this picture cannot be read")));
    return node;
  }
  const alone = state.view.startsWith("task ") ? state.view.slice(5) : null;
  const chunk = Math.floor(place[image] / G.per);
  if (alone === null) node.append(make("span", { class: "cell" }, tile(image, 0, `photo ${G.ids[image]}`)));
  G.tasks.forEach((task, t) => {
    if (state.view !== "all" && task.name !== alone) return;
    const drawn = G.sheets[chunk] >> (t + 1) & 1, cell = make("span", { class: "cell" });
    if (task.doubt[image] < 0) cell.append(make("span", { class: "tile lost text" }, make("span", { class: "ign" }, "no label")));
    else if (drawn || alone !== null) cell.append(tile(image, t + 1, `${task.name} of ${G.ids[image]}`));
    else cell.append(textTile(task, image));
    if (alone === null) cell.append(make("b", {}, task.name));
    if (task.doubt[image] >= 0 && (drawn || alone !== null)) cell.append(words(task, image));
    node.append(cell);
  });
  return node;
}

function render() {
  readHash();
  fillControls();
  select();
  const pages = Math.max(1, Math.ceil(shown.length / G.perPage)), page = Math.min(pages, Math.max(1, parseInt(state.page) || 1));
  state.page = String(page);
  const list = $("#list"), field = $("#controls").elements.page;
  watcher.disconnect();
  waiting = new Map();
  list.className = state.view === "all" ? "rows" : "single";
  list.replaceChildren(...shown.slice((page - 1) * G.perPage, page * G.perPage).map(card));
  if (!shown.length) list.append(make("p", { class: "empty" }, "No image is like that."));
  field.max = pages;
  field.value = page;
  $("#pages").textContent = `of ${number(pages)}`;
  $("#found").textContent = `${number(shown.length)} of ${number(G.ids.length)} images`;
  $("[data-go='-1']").disabled = page === 1;
  $("[data-go='1']").disabled = page === pages;
  writeHash();
  open(state.open);
}

function change(values) {
  Object.assign(state, values);
  writeHash();
  render();
}

// ---- one image large ----

function load(number_) {
  if (!chunks.has(number_)) {
    if (chunks.size > 20) chunks.clear();
    chunks.set(number_, new Promise((done) => {
      const script = make("script", { src: file(number_, ".js") });
      arrivals.set(number_, done);
      script.onerror = () => done(null);
      document.head.append(script);
      script.onload = () => script.remove();
    }));
  }
  return chunks.get(number_);
}
const arrivals = new Map();
window.chunk = (number_, records) => arrivals.get(number_)?.(records); // what a chunk's file calls

async function open(id) {
  const dialog = $("#large"), image = id === "" ? -1 : G.ids.indexOf(id);
  if (image < 0) { if (dialog.open) dialog.close(); return; }
  const at = place[image], chunk = Math.floor(at / G.per), row = at % G.per, where = position.get(image);
  $("#large-id").textContent = G.ids[image];
  $("#large-facts").textContent = (where === undefined ? "" : `${number(where + 1)} of ${number(shown.length)} · `) + figuresOf(image);
  $("[data-step='-1']").disabled = !(where > 0);
  $("[data-step='1']").disabled = where === undefined || where === shown.length - 1;
  if (!dialog.open) dialog.showModal();
  const records = await load(chunk);
  if (state.open !== id) return;
  const record = records?.[row];
  if (!record?.size) {
    $("#figures").replaceChildren(make("p", { class: "lost" }, record?.problems[""] ?? "this picture is missing"));
    return;
  }
  const files = [`-r${String(row).padStart(2, "0")}.webp`, "-c.webp"];
  const [sheet, captions] = await Promise.all(files.map((rest) => picture(file(chunk, rest))));
  if (state.open !== id) return;
  const pieces = ["", ...G.tasks.map((task) => task.name)].map((name, v) => figure(record, sheet, captions, name, v, image));
  const wide = $("#figures").clientWidth - 32, [width, height] = record.size;
  const wanted = record.captions.length > 1 ? 230 : Math.max(170, Math.min(420, 0.4 * innerHeight * width / height));
  const rows = Math.ceil(pieces.length / Math.ceil(wide / wanted)); // filled evenly
  $("#figures").style.gridTemplateColumns = `repeat(${Math.ceil(pieces.length / rows)}, minmax(0, 1fr))`;
  $("#figures").replaceChildren(...pieces);
  dialog.scrollTop = 0;
}

function picture(url) { // a promise of it, of null when it is missing or damaged
  return new Promise((done) => {
    const image = new Image();
    image.onload = () => done(image);
    image.onerror = () => done(null);
    image.src = url;
  });
}

function figure(record, sheet, captions, name, view, image) {
  const task = G.tasks[view - 1], node = make("figure", {}, make("h3", {}, name || "photo"));
  const problem = record.problems[name];
  if (name && record.captions[0][view] < 0) {
    node.append(make("div", { class: "lost" }, problem ? `cannot be shown: ${problem}` : "no label"));
  } else if (!sheet) {
    node.append(make("div", { class: "lost" }, "this picture is missing"));
  } else {
    node.append(canvas(record, sheet, captions, 0, view, `${name || "photo"} of ${G.ids[image]}`));
  }
  if (name && sheet && record.captions[1]?.[view] >= 0) {
    const score = task.metric && task.scores[image] !== null ? ` (${task.metric.name} ${scoreText(task, image)})` : "";
    node.append(make("p", { class: "truth" }, "truth" + score), canvas(record, sheet, captions, 1, view, `true ${name} of ${G.ids[image]}`));
  }
  if (name && record.rows[view - 1]) node.append(said(task, record.rows[view - 1]));
  return node;
}

function canvas(record, sheet, captions, row, view, what) {
  const [width, height] = record.size, below = captions ? record.captions[row][view] : 0;
  const node = make("canvas", { width, height: height + below, role: "img", "aria-label": what }), pen = node.getContext("2d");
  const plain = record.plain[row][view]; // then the photo, which is there once
  pen.drawImage(sheet, plain ? 0 : view * width, plain ? 0 : row * height, width, height, 0, 0, width, height);
  const top = record.top + (row ? Math.max(...record.captions[0]) : 0);
  if (below) pen.drawImage(captions, view * width, top, width, below, 0, height, width, below);
  return node;
}

function said(task, rows) {
  const pixels = rows.length && !Array.isArray(rows[0][2]);
  const head = pixels ? [make("li", { class: "head" }, "share of the pixels · mean score")] : [];
  return make("ul", { class: "said" }, ...head, ...rows.map(([id, kind, what, more]) => {
    let how;
    if (Array.isArray(what)) {
      how = what.map((score) => (score / 1000).toFixed(2)).join(" ") + (more > what.length ? ` and ${more - what.length} more` : "");
    } else {
      how = `${percent(what / 1000)} · ${(more / 1000).toFixed(2)}`;
    }
    const name = make("span", { class: "name" }, className(task, id) || MEANINGS[kind]);
    return make("li", { class: KINDS[kind], title: MEANINGS[kind] }, make("i", { class: "dot", role: "img", "aria-label": MEANINGS[kind] }),
      name, make("span", { class: "how" }, how));
  }));
}

function step(by) {
  const where = position.get(G.ids.indexOf(state.open));
  const next = where === undefined ? undefined : shown[where + by];
  if (next === undefined) return;
  state.open = G.ids[next];
  const page = String(Math.floor((where + by) / G.perPage) + 1);
  if (page !== state.page) change({ page }); else { writeHash(); open(state.open); }
}

// ---- start ----

function listen() {
  const form = $("#controls");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", (event) => {
    const { name, value } = event.target;
    if (name === "q") return;
    change({ page: "1", [name]: value, ...(name === "task" ? { class: "", view: value ? "task " + value : "all" } : {}) });
    if (name === "page") scrollTo(0, 0);
  });
  let timer;
  form.elements.q.addEventListener("input", (event) => {
    clearTimeout(timer);
    timer = setTimeout(() => change({ q: event.target.value, page: "1" }), 150);
  });
  form.addEventListener("click", (event) => {
    const by = parseInt(event.target.dataset?.go);
    if (by) { change({ page: String(parseInt(state.page) + by) }); scrollTo(0, 0); $("#list").focus({ preventScroll: true }); }
  });
  $("#list").addEventListener("click", (event) => {
    const found = event.target.closest("[data-image]");
    if (found) { state.open = G.ids[found.dataset.image]; writeHash(); open(state.open); }
  });
  const dialog = $("#large");
  dialog.addEventListener("close", () => {
    const last = G.ids.indexOf(state.open);
    if (state.open !== "") { state.open = ""; writeHash(); }
    $(`[data-image="${last}"]`)?.focus();
  });
  dialog.addEventListener("click", (event) => {
    const by = parseInt(event.target.dataset?.step);
    if (by) step(by);
    else if (event.target === dialog || event.target.id === "close") dialog.close();
  });
  document.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || event.target.closest?.("input, select") || event.altKey || event.ctrlKey || event.metaKey) return;
    if (dialog.open) { event.preventDefault(); step(by); }
  });
  addEventListener("hashchange", render);
}

async function start() {
  const began = performance.now();
  try {
    G = await unpack($("#data").textContent);
  } catch (error) {
    $("#list").append(make("p", { class: "empty" }, `This page cannot be opened here: ${error.message}. It needs a browser of 2023 or later.`));
    return;
  }
  prepare();
  summary();
  listen();
  render();
  document.documentElement.dataset.ready = Math.round(performance.now() - began); // milliseconds
}
start();
