"use strict";
// Two settings of a study, compared pair by pair on the pairs that both show: what the second makes the model forget.

const PAGE = 10;

async function open(label) {
  const folder = `settings/${label}/data`;
  const index = await load(folder, "index");
  const keys = index.redacted ? index.key : (await load(folder, "text")).map(([key]) => key);
  return { label, folder, index, rows: new Map(keys.map((key, row) => [key, row])), gap: (row) => index.target[row] - index.reference[row] };
}

async function cardIn(setting, row) {
  const chunk = await load(setting.folder, `cards-${String(Math.floor(row / setting.index.chunk)).padStart(4, "0")}`);
  return { card: chunk.cards[row % setting.index.chunk], chunk };
}

function right({ card }, labels) {
  return new Set(card.objects ? card.target.predicted.filter((code) => card.objects.includes(code)).map((code) => labels[code]) : []);
}

function change(title, words, kindOfChip) {
  if (!words.length) return null;
  return make("div", {}, make("strong", {}, title), make("ul", { class: "chips" }, words.map((word) => chip(kindOfChip, word, title))));
}

async function pairOf(first, second, key, place) {
  const [a, b] = await Promise.all([cardIn(first, first.rows.get(key)), cardIn(second, second.rows.get(key))]);
  const lost = first.gap(first.rows.get(key)) - second.gap(second.rows.get(key));
  const head = make("header", {}, make("h3", {}, `${place}. `, foreign(key)),
    make("span", {}, `gap ${signed(first.gap(first.rows.get(key)), 0)} → ${signed(second.gap(second.rows.get(key)), 0)} hits (${signed(-lost, 0)})`));
  const body = make("div", { class: "body" });
  if (a.card.objects) {
    const [before, after] = [right(a, first.index.labels), right(b, second.index.labels)];
    body.append(ownOf(a.card, first.index.labels, ""));
    head.append(...[change("no longer recalled", [...before].filter((word) => !after.has(word)), "missed"),
      change("newly recalled", [...after].filter((word) => !before.has(word)), "right")].filter(Boolean));
  }
  body.append(make("div", {}, side("target", a.card, a.chunk, first.index.labels, "", `Target of ${first.label}`),
    side("target", b.card, b.chunk, second.index.labels, "", `Target of ${second.label}`)));
  return make("article", { class: "card", "data-key": key }, head, body);
}

function startComparison(box) {
  const query = (name) => box.querySelector(`[name="${name}"]`);
  const status = box.querySelector(".status");
  const list = box.querySelector(".cards");
  let state = null;

  async function draw() {
    const { first, second, keys, page } = state;
    const part = keys.slice(page * PAGE, (page + 1) * PAGE);
    list.replaceChildren(...await Promise.all(part.map((key, i) => pairOf(first, second, key, page * PAGE + i + 1))));
    query("back").disabled = page === 0;
    query("next").disabled = (page + 1) * PAGE >= keys.length;
    const change = keys.map((key) => second.gap(second.rows.get(key)) - first.gap(first.rows.get(key)));
    const count = (test) => change.filter(test).length.toLocaleString("en");
    status.textContent = `Pairs ${page * PAGE + 1}–${page * PAGE + part.length} of ${keys.length.toLocaleString("en")} that both show; ` +
      `the gap fell for ${count((c) => c < 0)}, rose for ${count((c) => c > 0)}, stayed for ${count((c) => c === 0)}`;
  }

  async function compare() {
    const [first, second] = await Promise.all([open(query("first").value), open(query("second").value)]);
    const sign = query("order").value === "lost" ? 1 : -1;
    const lost = (key) => sign * (first.gap(first.rows.get(key)) - second.gap(second.rows.get(key)));
    const keys = [...first.rows.keys()].filter((key) => second.rows.has(key)).sort((a, b) => lost(b) - lost(a));
    state = { first, second, keys, page: 0 };
    await draw();
    box.dataset.ready = "true";
  }

  const attempt = (action) => () => action().catch((error) => { status.textContent = error.message; });
  query("compare").addEventListener("click", attempt(compare));
  for (const name of ["first", "second", "order"]) query(name).addEventListener("change", attempt(async () => state && compare()));
  query("back").addEventListener("click", attempt(() => { state.page -= 1; return draw(); }));
  query("next").addEventListener("click", attempt(() => { state.page += 1; return draw(); }));
}

document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".compare").forEach(startComparison));
