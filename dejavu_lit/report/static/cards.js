"use strict";
// The cards of the most memorized pairs: sort, filter and page over the index, load only the chunks that are shown.

const CHOICES = { sort: "gap", object: "", text: "", size: "10", page: "1", boxes: "on" }; // kept in the address after #

function chip(kind, label, note) {
  return make("li", { class: `chip ${kind}` }, foreign(label), make("span", { class: "hidden" }, ` (${note})`));
}

const NOTES = {
  right: "right: in the training picture", wrong: "wrong: not in the training picture",
  missed: "in the training picture, missed", told: "right, but the caption names it",
};

// How the predicted object `code` of `card` is shown: what the caption names proves nothing.
function kind(card, code) {
  if (!card.objects.includes(code)) return "wrong";
  return card.named.includes(code) ? "told" : "right";
}

// A picture with the boxes of its objects above it; boxes are in the picture's own pixels, as the drawing's view box.
function framed(picture, boxes, kindOf, labels) {
  if (!boxes) return picture;
  const [width, height, ...places] = boxes;
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "xMidYMid slice", "aria-hidden": "true" });
  for (const [code, x, y, w, h] of places) {
    const which = kindOf(code);
    const title = drawn("title", {});
    title.textContent = `${labels[code]} (${NOTES[which]})`;
    const place = { x, y, width: w, height: h, "vector-effect": "non-scaling-stroke" };
    const box = drawn("g", { class: `box ${which}` });
    box.append(title, drawn("rect", { ...place, class: "under" }), drawn("rect", place));
    svg.append(box);
  }
  return make("span", { class: "framed" }, picture, svg);
}

function drawn(name, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

function neighbor(card, [key, thumb, objects, boxes], distance, labels, root) {
  const right = objects?.filter((code) => card.objects.includes(code)) ?? [];
  const wrong = objects?.filter((code) => !card.objects.includes(code)) ?? [];
  const said = objects === null ? `public picture ${key}`
    : `public picture ${key}; right: ${right.map((c) => labels[c]).join(", ") || "none"}; wrong: ${wrong.map((c) => labels[c]).join(", ") || "none"}`;
  const picture = thumb ? make("img", { src: `${root}thumbs/${thumb}`, alt: said, title: said, loading: "lazy", decoding: "async", width: 96, height: 96 })
    : make("span", { class: "blank", title: said }, foreign(key));
  const marks = objects === null ? null : make("span", {}, `✓${right.length} ✗${wrong.length}`);
  return make("li", {}, thumb ? framed(picture, boxes, (code) => kind(card, code), labels) : picture,
    make("span", { class: "marks" }, make("span", {}, distance.toFixed(3)), " ", marks));
}

const TITLES = { target: "Target model (trained on this pair)", reference: "Reference model (did not see it)" };

function side(name, card, chunk, labels, root, title = TITLES[name]) {
  const found = card[name];
  const numbers = `${found.hits} right · precision ${found.precision.toFixed(2)} · recall ${found.recall.toFixed(2)}`;
  const node = make("section", { class: `side ${name}` }, make("h4", {}, title, " ", make("span", {}, numbers)));
  if (!found.near) return node;
  node.append(make("ol", { class: "strip", "aria-label": `Nearest public pictures, ${name} model` },
    found.near.map((place, i) => neighbor(card, chunk.pictures[place], found.distances[i], labels, root))));
  const order = { right: 0, told: 1, wrong: 2, missed: 3 };
  const chips = found.predicted.map((code) => [kind(card, code), code]);
  chips.push(...card.objects.filter((code) => !found.predicted.includes(code)).map((code) => ["missed", code]));
  chips.sort((a, b) => order[a[0]] - order[b[0]]);
  node.append(make("ul", { class: "chips", "aria-label": `Objects predicted with the ${name} model` },
    chips.map(([which, code]) => chip(which, labels[code], NOTES[which]))));
  return node;
}

// The training picture, its caption and its objects.
function ownOf(card, labels, root) {
  const said = `training picture with ${card.objects.map((code) => labels[code]).join(", ")}`;
  const picture = card.picture
    ? make("img", { src: `${root}thumbs/${card.picture}`, alt: said, loading: "lazy", decoding: "async" })
    : make("span", { class: "blank" }, "picture not at hand");
  const chips = card.objects.map((code) => (card.named.includes(code)
    ? chip("told", labels[code], "the caption names it") : make("li", { class: "chip" }, foreign(labels[code]))));
  // In the training picture itself: what the target found, what the caption names anyway, and what was missed.
  const own = (code) => (card.named.includes(code) ? "told" : card.target.predicted.includes(code) ? "right" : "missed");
  return make("div", { class: "own" }, card.picture ? framed(picture, card.boxes, own, labels) : picture, make("p", { class: "caption" }, foreign(card.caption)),
    make("ul", { class: "chips", "aria-label": "Objects in the training picture" }, chips));
}

function cardOf(card, chunk, place, labels, root) {
  const gap = card.target.hits - card.reference.hits;
  const facts = [`gap ${gap > 0 ? "+" : ""}${gap} hits`.replace("-", "−")];
  if (card.target.distances) facts.push(`distance ${card.target.distances[0].toFixed(3)}`);
  if (card.exposure !== null) facts.push(`seen ${card.exposure} times`);
  const head = make("header", {}, make("h3", {}, `${place}. `, foreign(card.key)), facts.map((text) => make("span", {}, text)));
  const body = make("div", { class: "body" });
  if (card.objects) body.append(ownOf(card, labels, root));
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
  let lowered = null; // captions for searching, loaded when they are first needed
  let shown = 0; // number of the latest drawing; an older one that finishes late is dropped

  function choices() {
    const given = new URLSearchParams(location.hash.slice(1));
    return Object.fromEntries(Object.entries(CHOICES).map(([name, value]) => [name, given.get(name) ?? value]));
  }

  async function choose(changes) {
    const kept = Object.entries({ ...choices(), ...changes }).filter(([name, value]) => String(value) !== CHOICES[name]);
    history.replaceState(null, "", `#${new URLSearchParams(kept.map(([n, v]) => [n, String(v)]))}`);
    return draw();
  }

  async function matching({ sort, object, text }) {
    let rows = Object.hasOwn(orders, sort) ? orders[sort] : orders.gap;
    const wanted = object.trim();
    if (wanted) {
      const code = index.labels.findIndex((label) => label.toLowerCase() === wanted.toLowerCase());
      rows = rows.filter((row) => index.objects[row].includes(code));
    }
    if (text.trim() && !index.redacted) {
      lowered ??= (await load(folder, "text")).map(([key, caption]) => `${key} ${caption}`.toLowerCase());
      const part = text.trim().toLowerCase();
      rows = rows.filter((row) => lowered[row].includes(part));
    } else if (text.trim()) {
      rows = rows.filter((row) => index.key[row].toLowerCase().includes(text.trim().toLowerCase()));
    }
    return rows;
  }

  async function draw() {
    const turn = ++shown;
    const now = choices();
    const rows = await matching(now);
    const size = Math.max(1, Number(now.size) || 10);
    const pages = Math.max(1, Math.ceil(rows.length / size));
    const page = Math.min(pages, Math.max(1, Math.floor(Number(now.page)) || 1));
    const part = rows.slice((page - 1) * size, page * size);
    const chunks = await Promise.all(part.map((row) => load(folder, `cards-${String(Math.floor(row / index.chunk)).padStart(4, "0")}`)));
    if (turn !== shown) return;
    list.replaceChildren(...part.map((row, i) =>
      cardOf(chunks[i].cards[row % index.chunk], chunks[i], (page - 1) * size + i + 1, index.labels, root)));
    list.classList.toggle("unboxed", now.boxes === "off");
    if (query("boxes")) query("boxes").checked = now.boxes !== "off";
    for (const name of ["sort", "object", "text", "size"]) if (query(name).value !== now[name]) query(name).value = now[name];
    query("page").value = page;
    query("page").max = pages;
    box.querySelector(".pages").textContent = `of ${pages.toLocaleString("en")}`;
    box.querySelector("[name=back]").disabled = page === 1;
    box.querySelector("[name=next]").disabled = page === pages;
    const first = part.length ? (page - 1) * size + 1 : 0;
    box.querySelector(".status").textContent =
      `Pairs ${first}–${(page - 1) * size + part.length} of ${rows.length.toLocaleString("en")}` +
      (rows.length < index.count ? ` that match (${index.count.toLocaleString("en")} in all)` : "");
  }

  const said = (error) => { box.querySelector(".status").textContent = error.message; };
  const attempt = (action) => () => action().catch(said);
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
