"use strict";
// The cards: one pair with what both models find for its caption. On an evaluation's page they are sorted, filtered and paged.

const CHOICES = { object: "", text: "", size: "10", page: "1", boxes: "right" }; // defaults; changes are stored in the URL after #
const NEAREST = 5; // public images shown at once; the others are folded
const FEW_WRONG = 4; // wrong objects shown at once, likewise

const NOTES = {
  right: "correct: in the training image", wrong: "wrong: not in the training image",
  missed: "missed: in the training image, but not predicted", named: "correct, but named in the caption",
};
const TITLES = { target: "Target model (trained on this pair)", reference: "Reference model (not trained on this pair)" };

function chip(kind, label, note = NOTES[kind]) {
  return make("li", { class: `chip ${kind}` }, isolated(label), make("span", { class: "hidden" }, ` (${note})`));
}

// How the predicted object `code` of `card` is shown: an object named in the caption is not evidence of memorization.
function kind(card, code) {
  if (!card.objects.includes(code)) return "wrong";
  return card.named.includes(code) ? "named" : "right";
}

// An image with the boxes of its objects on top; boxes are in the image's own pixels, which are the SVG's view box.
function framed(image, boxes, kindOf, labels) {
  if (!boxes) return image;
  const [width, height, ...rectangles] = boxes;
  const drawn = rectangles.map(([code, x, y, w, h]) => {
    const which = kindOf(code);
    const shape = { x, y, width: w, height: h, "vector-effect": "non-scaling-stroke" };
    return make("g", { class: `box ${which}` }, make("title", {}, `${labels[code]} (${NOTES[which]})`),
      make("rect", { ...shape, class: "under" }), make("rect", shape));
  });
  const view = { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "xMidYMid slice", "aria-hidden": "true" };
  return make("span", { class: "framed" }, image, make("svg", view, drawn));
}

function neighbor(card, [key, thumb, objects, boxes], distance, labels, root) {
  const right = objects?.filter((code) => card.objects.includes(code)) ?? [];
  const wrong = objects?.filter((code) => !card.objects.includes(code)) ?? [];
  const text = objects === null ? `public image ${key}`
    : `public image ${key}; correct: ${right.map((c) => labels[c]).join(", ") || "none"}; wrong: ${wrong.map((c) => labels[c]).join(", ") || "none"}`;
  const image = thumb ? make("img", { src: `${root}thumbs/${thumb}`, alt: text, title: text, loading: "lazy", decoding: "async", width: 160, height: 160 })
    : make("span", { class: "blank", title: text }, isolated(key));
  const marks = objects === null ? null : make("span", {}, `✓${right.length} ✗${wrong.length}`);
  return make("li", { class: right.length ? "hit" : null }, thumb ? framed(image, boxes, (code) => kind(card, code), labels) : image,
    make("span", { class: "marks" }, make("span", {}, distance.toFixed(3)), " ", marks));
}

function side(name, card, data, root, title = TITLES[name]) {
  const { labels, pictures } = data;
  const result = card[name];
  const numbers = `${result.hits} correct · precision ${result.precision.toFixed(2)} · recall ${result.recall.toFixed(2)}`;
  const node = make("section", { class: `side ${name}` }, make("h4", {}, title, " ", make("span", {}, numbers)));
  if (!result.near) return node;
  const near = result.near.map((position, i) => neighbor(card, pictures[position], result.distances[i], labels, root));
  const order = { right: 0, named: 1, missed: 2, wrong: 3 };
  const chips = result.predicted.map((code) => [kind(card, code), code]);
  chips.push(...card.objects.filter((code) => !result.predicted.includes(code)).map((code) => ["missed", code]));
  chips.sort((a, b) => order[a[0]] - order[b[0]]);
  const last = chips.length - Math.max(0, chips.filter(([which]) => which === "wrong").length - FEW_WRONG);
  const list = (part, label) => make("ul", { class: "chips", "aria-label": label }, part.map(([which, code]) => chip(which, labels[code])));
  node.append(make("ol", { class: "strip", "aria-label": `Nearest public images, ${name} model` }, near.slice(0, NEAREST)),
    list(chips.slice(0, last), `Objects predicted by the ${name} model`));
  if (chips.length > last || near.length > NEAREST) {
    const others = [[chips.length - last, "other"], [near.length - NEAREST, "image"]]
      .map(([n, name]) => n > 0 ? `+${n} ${name}${n > 1 ? "s" : ""}` : "");
    node.append(make("details", {}, make("summary", {}, others.filter(Boolean).join(", ")), list(chips.slice(last), "Other wrong objects"),
      make("ol", { class: "strip more", "aria-label": `Further public images, ${name} model` }, near.slice(NEAREST))));
  }
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

// A figure with its standard error, each of which may be unknown.
function withError(value, error, digits, unit) {
  if (value === null) return null;
  return `${signed(value, digits)}${error === null ? "" : ` ± ${error.toFixed(digits)}`} ${unit}`;
}

function gapOf(card) {
  return card.target.hits - card.reference.hits;
}

function cardElement(card, data, rank, root) {
  const facts = [`gap ${signed(gapOf(card), 0)} hits`];
  if (card.memorization) {
    const { hits, hits_se, alignment, alignment_se, halves } = card.memorization;
    const measured = [withError(hits, hits_se, 2, "hits"), withError(alignment, alignment_se, 3, "in alignment")].filter(Boolean);
    facts.unshift(`counterfactual memorization ${measured.join(", ")} (± standard error, ${halves} halves)`);
  }
  if (card.objects) facts.push(`distance ${card.distance.toFixed(3)}`);
  if (card.exposure !== null) facts.push(`times seen: ${card.exposure}`);
  const head = make("header", {}, make("h3", {}, `${rank}. `, isolated(card.key)), facts.map((text) => make("span", {}, text)));
  const body = make("div", { class: "body" });
  if (card.objects) body.append(trainingPair(card, data.labels, root));
  body.append(make("div", { class: "models" }, side("target", card, data, root), side("reference", card, data, root)));
  return make("article", { class: "card", "data-key": card.key }, head, body);
}

async function startCards(box) {
  const { folder, root } = box.dataset;
  const data = await load(`${folder}/cards.js`);
  const { cards } = data;
  const query = (name) => box.querySelector(`[name="${name}"]`);
  const list = box.querySelector(".cards");
  const main = query("sort").options[0].value; // the order of the file
  const defaults = { sort: main, ...CHOICES };
  const orders = { // sorting is stable, so ties stay in the order of the file
    [main]: cards,
    gap: [...cards].sort((a, b) => gapOf(b) - gapOf(a)),
    hits: [...cards].sort((a, b) => b.target.hits - a.target.hits),
    distance: [...cards].sort((a, b) => a.distance - b.distance),
  };

  function choices() {
    const parameters = new URLSearchParams(location.hash.slice(1));
    return Object.fromEntries(Object.entries(defaults).map(([name, value]) => [name, parameters.get(name) ?? value]));
  }

  function choose(changes) {
    const changed = Object.entries({ ...choices(), ...changes }).filter(([name, value]) => String(value) !== defaults[name]);
    history.replaceState(null, "", `#${new URLSearchParams(changed.map(([n, v]) => [n, String(v)]))}`);
    draw();
  }

  function matching({ sort, object, text }) {
    let chosen = Object.hasOwn(orders, sort) ? orders[sort] : cards;
    const [name, words] = [object.trim().toLowerCase(), text.trim().toLowerCase()];
    if (name) {
      const code = data.labels.findIndex((label) => label.toLowerCase() === name);
      chosen = chosen.filter((card) => card.objects?.includes(code));
    }
    if (words) chosen = chosen.filter((card) => `${card.key} ${card.caption ?? ""}`.toLowerCase().includes(words));
    return chosen;
  }

  function draw() {
    const current = choices();
    const chosen = matching(current);
    const size = Math.max(1, Number(current.size) || 10);
    const pages = Math.max(1, Math.ceil(chosen.length / size));
    const page = Math.min(pages, Math.max(1, Math.floor(Number(current.page)) || 1));
    const first = (page - 1) * size;
    const part = chosen.slice(first, first + size);
    list.replaceChildren(...part.map((card, i) => cardElement(card, data, first + i + 1, root)));
    list.dataset.boxes = current.boxes;
    for (const name of ["sort", "object", "text", "size", "boxes"]) {
      if (query(name) && query(name).value !== current[name]) query(name).value = current[name];
    }
    query("page").value = page;
    query("page").max = pages;
    box.querySelector(".pages").textContent = `of ${pages.toLocaleString("en")}`;
    box.querySelector("[name=back]").disabled = page === 1;
    box.querySelector("[name=next]").disabled = page === pages;
    box.querySelector(".status").textContent =
      `Pairs ${part.length ? first + 1 : 0}–${first + part.length} of ${chosen.length.toLocaleString("en")}` +
      (chosen.length < cards.length ? ` that match (${cards.length.toLocaleString("en")} in total)` : "");
  }

  box.querySelector("datalist").append(...data.labels.map((label) => make("option", { value: label })));
  if (!data.boxes) query("boxes")?.closest("label").remove(); // nothing to draw
  for (const name of ["sort", "size", "object"]) query(name).addEventListener("change", () => choose({ [name]: query(name).value, page: 1 }));
  let timer;
  query("text").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => choose({ text: query("text").value, page: 1 }), 150);
  });
  query("boxes")?.addEventListener("change", () => choose({ boxes: query("boxes").value }));
  query("page").addEventListener("change", () => choose({ page: query("page").value }));
  const step = (by) => { choose({ page: Number(query("page").value) + by }); box.scrollIntoView(); };
  query("back").addEventListener("click", () => step(-1));
  query("next").addEventListener("click", () => step(1));
  query("reset").addEventListener("click", () => choose(defaults));
  addEventListener("hashchange", draw);
  draw();
  box.dataset.ready = "true";
}

async function startExamples(box) {
  const { folder, root, count } = box.dataset;
  const data = await load(`${folder}/cards.js`);
  const list = box.querySelector(".cards");
  list.dataset.boxes = "right";
  list.replaceChildren(...data.cards.slice(0, Number(count)).map((card, i) => cardElement(card, data, i + 1, root)));
  box.dataset.ready = "true";
}

document.addEventListener("DOMContentLoaded", () => {
  for (const [selector, start] of [[".pairs", startCards], [".examples", startExamples]]) {
    for (const box of document.querySelectorAll(selector)) {
      start(box).catch((error) => { (box.querySelector(".status") ?? box.querySelector(".cards")).textContent = error.message; });
    }
  }
});
