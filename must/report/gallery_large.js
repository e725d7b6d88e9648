// The gallery in the browser: one image large, with all of its labels.

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
  const rank = where === undefined ? "" : `${number(where + 1)} of ${number(shown.length)} · `;
  $("#large-facts").textContent = rank + figuresOf(image);
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
  const files = [`-r${String(row).padStart(2, "0")}.jpg`, "-c.webp"];
  const [sheet, captions] = await Promise.all(files.map((rest) => picture(file(chunk, rest))));
  if (state.open !== id) return;
  const names = ["", ...G.tasks.map((task) => task.name)];
  const pieces = names.map((name, view) => figure(record, sheet, captions, name, view, image));
  const wide = $("#figures").clientWidth - 32, [width, height] = record.size;
  const least = record.captions.length > 1 ? 230 : Math.max(170, Math.min(420, 0.4 * innerHeight * width / height));
  const rows = Math.ceil(pieces.length / Math.ceil(wide / least)); // filled evenly
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
    const true_ = canvas(record, sheet, captions, 1, view, `true ${name} of ${G.ids[image]}`);
    node.append(make("p", { class: "truth" }, "truth" + score), true_);
  }
  if (name && record.rows[view - 1]) node.append(predictions(task, record.rows[view - 1]));
  return node;
}

function canvas(record, sheet, captions, row, view, what) {
  const [width, height] = record.size, below = captions ? record.captions[row][view] : 0;
  const node = make("canvas", { width, height: height + below, role: "img", "aria-label": what });
  const pen = node.getContext("2d");
  const plain = record.plain[row][view]; // then the photo, which is stored once
  pen.drawImage(sheet, plain ? 0 : view * width, plain ? 0 : row * height, width, height, 0, 0, width, height);
  const top = record.top + (row ? Math.max(...record.captions[0]) : 0);
  if (below) pen.drawImage(captions, view * width, top, width, below, 0, height, width, below);
  return node;
}

function predictions(task, rows) {
  const pixels = rows.length && !Array.isArray(rows[0][2]);
  const head = pixels ? [make("li", { class: "head" }, "share of the pixels · mean score")] : [];
  return make("ul", { class: "predictions" }, ...head, ...rows.map(([id, kind, what, more]) => {
    let how;
    if (Array.isArray(what)) {
      how = what.map((score) => (score / 1000).toFixed(2)).join(" ");
      if (more > what.length) how += ` and ${more - what.length} more`;
    } else {
      how = `${percent(what / 1000)} · ${(more / 1000).toFixed(2)}`;
    }
    const name = make("span", { class: "name" }, className(task, id) || MEANINGS[kind]);
    const dot = make("i", { class: "dot", role: "img", "aria-label": MEANINGS[kind] });
    return make("li", { class: KINDS[kind], title: MEANINGS[kind] }, dot, name, make("span", { class: "how" }, how));
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
