// The gallery in the browser: controls, one page of cards at a time, pictures as they come into sight, and the start.

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
    ...classes.map(([name, positive, ignored]) => [name, `${name} (${number(positive)} positive, ${number(ignored)} ignored)`])]);
  options("state", [["", "any"], ["positive", "a positive label"], ["ignored", "an ignored label"],
    ["nothing", "no positive label"], ["none", "not labeled"], ...(G.lost.size ? [["lost", "unreadable"]] : [])]);
  options("order", [["uncertainty", "most uncertain first"], ...(G.error ? [["worst", "worst first"]] : []),
    ["record", "order of the records"]]);
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
    const labeled = task.uncertainty.reduce((sum, value) => sum + (value >= 0), 0);
    return make("tr", {}, make("th", { scope: "row" }, task.name), make("td", {}, stack),
      ...task.shares.map((part) => make("td", {}, percent(part))), make("td", {}, number(labeled)));
  });
  const heads = ["task", "", ...MEANINGS, "images"].map((head) => make("th", { scope: "col" }, head));
  const note = make("p", { class: "soft" }, "Shares of predicted classes, boxes or pixels, mean over images. " +
    "The uncertainty of an image is the ignored share, mean over its tasks.");
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
    node.append(task.uncertainty[image] < 0 ? "no label" : `${percent(task.uncertainty[image] / 255)} uncertain`);
    return node;
  }
  for (const key of predictedOf(task, image)) names[key & 1].push(className(task, key >> 1));
  if (task.uncertainty[image] < 0) node.append("no label");
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
  const keys = predictedOf(task, image).sort((a, b) => (a & 1) - (b & 1));
  const lines = keys.slice(0, 5).map((key) =>
    make("span", { class: KINDS[key & 1] }, make("i", { class: "dot" }), className(task, key >> 1)));
  if (keys.length > 5) lines.push(make("span", { class: "ign" }, `and ${keys.length - 5} more`));
  if (!lines.length) lines.push(make("span", { class: "ign" }, "no positive label"));
  const node = make("span", { class: "tile text" }, ...lines);
  node.title = keys.map((key) => `${className(task, key >> 1)}: ${key & 1 ? "ignored" : "positive"}`).join("\n");
  return node;
}

function figuresOf(image) {
  const task = taskNow(), uncertain = task?.uncertainty[image] >= 0 ? task.uncertainty[image] / 255 : G.uncertainty[image] / 65535;
  const parts = [`uncertain ${percent(uncertain)}`];
  if (task?.metric && task.scores[image] !== null) parts.unshift(`${task.metric.name} ${scoreText(task, image)}`);
  else if (G.error) parts.unshift(`worse than ${Math.round(G.error[image] / 10)} % of the images`);
  return parts.join(" · ");
}
const scoreText = (task, image) => task.scores[image] + (task.metric.unit ? " " + task.metric.unit : "");

function card(image) {
  const id = make("span", { class: "id", title: G.ids[image] }, G.ids[image].slice(G.prefix));
  const line = make("span", { class: "line" }, id, make("span", { class: "num" }, figuresOf(image)));
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
    const none = make("span", { class: "tile lost text" }, make("span", { class: "ign" }, "no label"));
    if (task.uncertainty[image] < 0) cell.append(none);
    else if (drawn || alone !== null) cell.append(tile(image, t + 1, `${task.name} of ${G.ids[image]}`));
    else cell.append(textTile(task, image));
    if (alone === null) cell.append(make("b", {}, task.name));
    if (task.uncertainty[image] >= 0 && (drawn || alone !== null)) cell.append(words(task, image));
    node.append(cell);
  });
  return node;
}

function render() {
  readHash();
  fillControls();
  select();
  const pages = Math.max(1, Math.ceil(shown.length / G.perPage));
  const page = Math.min(pages, Math.max(1, parseInt(state.page) || 1));
  state.page = String(page);
  const list = $("#list"), field = $("#controls").elements.page;
  watcher.disconnect();
  waiting = new Map();
  list.className = state.view === "all" ? "rows" : "single";
  list.replaceChildren(...shown.slice((page - 1) * G.perPage, page * G.perPage).map(card));
  if (!shown.length) list.append(make("p", { class: "empty" }, "No image matches."));
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
    if (!by) return;
    change({ page: String(parseInt(state.page) + by) });
    scrollTo(0, 0);
    $("#list").focus({ preventScroll: true });
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
    const reason = `This page cannot be opened here: ${error.message}. It needs a browser of 2023 or later.`;
    $("#list").append(make("p", { class: "empty" }, reason));
    return;
  }
  prepare();
  summary();
  listen();
  render();
  document.documentElement.dataset.ready = Math.round(performance.now() - began); // milliseconds
}
start();
