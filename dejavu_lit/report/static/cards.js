"use strict";
// The cards of the most memorized pairs: sort, filter and page through the index; load only the chunks that are shown.

const CHOICES = { sort: "gap", object: "", text: "", size: "10", page: "1", boxes: "on" }; // the defaults; changes are stored in the URL after #

function chip(kind, label, note) {
  return make("li", { class: `chip ${kind}` }, isolated(label), make("span", { class: "hidden" }, ` (${note})`));
}

const NOTES = {
  right: "correct: in the training image", wrong: "wrong: not in the training image",
  missed: "missed: in the training image, but not predicted", named: "correct, but named in the caption",
};

// How the predicted object `code` of `card` is shown: an object named in the caption is not evidence of memorization.
function kind(card, code) {
  if (!card.objects.includes(code)) return "wrong";
  return card.named.includes(code) ? "named" : "right";
}

// An image with the boxes of its objects on top; boxes are in the image's own pixels, which are the SVG's view box.
function framed(image, boxes, kindOf, labels) {
  if (!boxes) return image;
  const [width, height, ...rectangles] = boxes;
  const svg = svgElement("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "xMidYMid slice", "aria-hidden": "true" });
  for (const [code, x, y, w, h] of rectangles) {
    const which = kindOf(code);
    const title = svgElement("title", {});
    title.textContent = `${labels[code]} (${NOTES[which]})`;
    const shape = { x, y, width: w, height: h, "vector-effect": "non-scaling-stroke" };
    const box = svgElement("g", { class: `box ${which}` });
    box.append(title, svgElement("rect", { ...shape, class: "under" }), svgElement("rect", shape));
    svg.append(box);
  }
  return make("span", { class: "framed" }, image, svg);
}

function svgElement(name, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

function neighbor(card, [key, thumb, objects, boxes], distance, labels, root) {
  const right = objects?.filter((code) => card.objects.includes(code)) ?? [];
  const wrong = objects?.filter((code) => !card.objects.includes(code)) ?? [];
  const text = objects === null ? `public image ${key}`
    : `public image ${key}; correct: ${right.map((c) => labels[c]).join(", ") || "none"}; wrong: ${wrong.map((c) => labels[c]).join(", ") || "none"}`;
  const image = thumb ? make("img", { src: `${root}thumbs/${thumb}`, alt: text, title: text, loading: "lazy", decoding: "async", width: 96, height: 96 })
    : make("span", { class: "blank", title: text }, isolated(key));
  const marks = objects === null ? null : make("span", {}, `✓${right.length} ✗${wrong.length}`);
  return make("li", {}, thumb ? framed(image, boxes, (code) => kind(card, code), labels) : image,
    make("span", { class: "marks" }, make("span", {}, distance.toFixed(3)), " ", marks));
}

const TITLES = { target: "Target model (trained on this pair)", reference: "Reference model (not trained on this pair)" };

function side(name, card, chunk, labels, root, title = TITLES[name]) {
  const result = card[name];
  const numbers = `${result.hits} correct · precision ${result.precision.toFixed(2)} · recall ${result.recall.toFixed(2)}`;
  const node = make("section", { class: `side ${name}` }, make("h4", {}, title, " ", make("span", {}, numbers)));
  if (!result.near) return node;
  node.append(make("ol", { class: "strip", "aria-label": `Nearest public images, ${name} model` },
    result.near.map((position, i) => neighbor(card, chunk.pictures[position], result.distances[i], labels, root))));
  const order = { right: 0, named: 1, wrong: 2, missed: 3 };
  const chips = result.predicted.map((code) => [kind(card, code), code]);
  chips.push(...card.objects.filter((code) => !result.predicted.includes(code)).map((code) => ["missed", code]));
  chips.sort((a, b) => order[a[0]] - order[b[0]]);
  node.append(make("ul", { class: "chips", "aria-label": `Objects predicted by the ${name} model` },
    chips.map(([which, code]) => chip(which, labels[code], NOTES[which]))));
  return node;
}

// The training image, its caption and its objects.
function trainingPair(card, labels, root) {
  const text = `training image with ${card.objects.map((code) => labels[code]).join(", ")}`;
  const image = card.picture
    ? make("img", { src: `${root}thumbs/${card.picture}`, alt: text, loading: "lazy", decoding: "async" })
    : make("span", { class: "blank" }, "image not available");
  const chips = card.objects.map((code) => (card.named.includes(code)
    ? chip("named", labels[code], "named in the caption") : make("li", { class: "chip" }, isolated(labels[code]))));
  // In the training image: what the caption names, what the target model predicted, and what it missed.
  const ownKind = (code) => (card.named.includes(code) ? "named" : card.target.predicted.includes(code) ? "right" : "missed");
  return make("div", { class: "own" }, card.picture ? framed(image, card.boxes, ownKind, labels) : image, make("p", { class: "caption" }, isolated(card.caption)),
    make("ul", { class: "chips", "aria-label": "Objects in the training image" }, chips));
}

function cardElement(card, chunk, rank, labels, root) {
  const gap = card.target.hits - card.reference.hits;
  const facts = [`gap ${gap > 0 ? "+" : ""}${gap} hits`.replace("-", "−")];
  if (card.target.distances) facts.push(`distance ${card.target.distances[0].toFixed(3)}`);
  if (card.exposure !== null) facts.push(`seen ${card.exposure} times`);
  const head = make("header", {}, make("h3", {}, `${rank}. `, isolated(card.key)), facts.map((text) => make("span", {}, text)));
  const body = make("div", { class: "body" });
  if (card.objects) body.append(trainingPair(card, labels, root));
  body.append(make("div", {}, side("target", card, chunk, labels, root), side("reference", card, chunk, labels, root)));
  return make("article", { class: "card", "data-key": card.key }, head, body);
}

async function startCards(box) {
  const { folder, root } = box.dataset;
  const index = await load(folder, "index");
  const query = (name) => box.querySelector(`[name="${name}"]`);
  const list = box.querySelector(".cards");
  const count = [...Array(index.count).keys()];
  const orders = {
    gap: count,
    hits: [...count].sort((a, b) => index.target[b] - index.target[a] || a - b),
    distance: [...count].sort((a, b) => index.distance[a] - index.distance[b] || a - b),
  };
  let lowered = null; // keys and captions in lower case, loaded for the first text search
  let latest = 0; // number of the latest drawing; an older one that finishes later is discarded

  function choices() {
    const parameters = new URLSearchParams(location.hash.slice(1));
    return Object.fromEntries(Object.entries(CHOICES).map(([name, value]) => [name, parameters.get(name) ?? value]));
  }

  async function choose(changes) {
    const changed = Object.entries({ ...choices(), ...changes }).filter(([name, value]) => String(value) !== CHOICES[name]);
    history.replaceState(null, "", `#${new URLSearchParams(changed.map(([n, v]) => [n, String(v)]))}`);
    return draw();
  }

  async function matching({ sort, object, text }) {
    let rows = Object.hasOwn(orders, sort) ? orders[sort] : orders.gap;
    const name = object.trim().toLowerCase();
    if (name) {
      const code = index.labels.findIndex((label) => label.toLowerCase() === name);
      rows = rows.filter((row) => index.objects[row].includes(code));
    }
    if (text.trim() && !index.redacted) {
      lowered ??= (await load(folder, "text")).map(([key, caption]) => `${key} ${caption}`.toLowerCase());
      const query = text.trim().toLowerCase();
      rows = rows.filter((row) => lowered[row].includes(query));
    } else if (text.trim()) {
      rows = rows.filter((row) => index.key[row].toLowerCase().includes(text.trim().toLowerCase()));
    }
    return rows;
  }

  async function draw() {
    const turn = ++latest;
    const current = choices();
    const rows = await matching(current);
    const size = Math.max(1, Number(current.size) || 10);
    const pages = Math.max(1, Math.ceil(rows.length / size));
    const page = Math.min(pages, Math.max(1, Math.floor(Number(current.page)) || 1));
    const part = rows.slice((page - 1) * size, page * size);
    const chunks = await Promise.all(part.map((row) => load(folder, `cards-${String(Math.floor(row / index.chunk)).padStart(4, "0")}`)));
    if (turn !== latest) return;
    list.replaceChildren(...part.map((row, i) =>
      cardElement(chunks[i].cards[row % index.chunk], chunks[i], (page - 1) * size + i + 1, index.labels, root)));
    list.classList.toggle("unboxed", current.boxes === "off");
    if (query("boxes")) query("boxes").checked = current.boxes !== "off";
    for (const name of ["sort", "object", "text", "size"]) if (query(name).value !== current[name]) query(name).value = current[name];
    query("page").value = page;
    query("page").max = pages;
    box.querySelector(".pages").textContent = `of ${pages.toLocaleString("en")}`;
    box.querySelector("[name=back]").disabled = page === 1;
    box.querySelector("[name=next]").disabled = page === pages;
    const first = part.length ? (page - 1) * size + 1 : 0;
    box.querySelector(".status").textContent =
      `Pairs ${first}–${(page - 1) * size + part.length} of ${rows.length.toLocaleString("en")}` +
      (rows.length < index.count ? ` that match (${index.count.toLocaleString("en")} in total)` : "");
  }

  const showError = (error) => { box.querySelector(".status").textContent = error.message; };
  const attempt = (action) => () => action().catch(showError);
  box.querySelector("datalist").append(...index.labels.map((label) => make("option", { value: label })));
  for (const name of ["sort", "size", "object"]) query(name).addEventListener("change", attempt(() => choose({ [name]: query(name).value, page: 1 })));
  let timer;
  query("text").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(attempt(() => choose({ text: query("text").value, page: 1 })), 150);
  });
  if (!index.boxes) query("boxes")?.closest("label").remove(); // nothing to draw
  query("boxes")?.addEventListener("change", attempt(() => choose({ boxes: query("boxes").checked ? "on" : "off" })));
  query("page").addEventListener("change", attempt(() => choose({ page: query("page").value })));
  const step = (by) => choose({ page: Number(query("page").value) + by }).then(() => box.scrollIntoView());
  query("back").addEventListener("click", attempt(() => step(-1)));
  query("next").addEventListener("click", attempt(() => step(1)));
  query("reset").addEventListener("click", attempt(() => choose(CHOICES)));
  addEventListener("hashchange", attempt(draw));
  await draw();
  box.dataset.ready = "true";
}

document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".pairs").forEach((box) => startCards(box).catch((error) => {
  box.querySelector(".status").textContent = error.message;
})));
