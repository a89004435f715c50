"use strict";
// Two settings of a study, compared on the pairs that both show: which objects are no longer recalled under the second.

const PAGE = 10;

async function openSetting(label) {
  const folder = `settings/${label}/data`;
  const index = await load(folder, "index");
  const keys = index.redacted ? index.key : (await load(folder, "text")).map(([key]) => key);
  return { label, folder, index, rows: new Map(keys.map((key, row) => [key, row])), gap: (row) => index.target[row] - index.reference[row] };
}

async function loadCard(setting, row) {
  const chunk = await load(setting.folder, `cards-${String(Math.floor(row / setting.index.chunk)).padStart(4, "0")}`);
  return { card: chunk.cards[row % setting.index.chunk], chunk };
}

function recalled({ card }, labels) {
  return new Set(card.objects ? card.target.predicted.filter((code) => card.objects.includes(code)).map((code) => labels[code]) : []);
}

function changedObjects(title, names, kindOfChip) {
  if (!names.length) return null;
  return make("div", {}, make("strong", {}, title), make("ul", { class: "chips" }, names.map((name) => chip(kindOfChip, name, title))));
}

async function pairElement(first, second, key, rank) {
  const [a, b] = await Promise.all([loadCard(first, first.rows.get(key)), loadCard(second, second.rows.get(key))]);
  const lost = first.gap(first.rows.get(key)) - second.gap(second.rows.get(key));
  const head = make("header", {}, make("h3", {}, `${rank}. `, isolated(key)),
    make("span", {}, `gap ${signed(first.gap(first.rows.get(key)), 0)} → ${signed(second.gap(second.rows.get(key)), 0)} hits (${signed(-lost, 0)})`));
  const body = make("div", { class: "body" });
  if (a.card.objects) {
    const [before, after] = [recalled(a, first.index.labels), recalled(b, second.index.labels)];
    body.append(trainingPair(a.card, first.index.labels, ""));
    head.append(...[changedObjects("no longer recalled", [...before].filter((name) => !after.has(name)), "missed"),
      changedObjects("newly recalled", [...after].filter((name) => !before.has(name)), "right")].filter(Boolean));
  }
  body.append(make("div", {}, side("target", a.card, a.chunk, first.index.labels, "", `Target model of ${first.label}`),
    side("target", b.card, b.chunk, second.index.labels, "", `Target model of ${second.label}`)));
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
    list.replaceChildren(...await Promise.all(part.map((key, i) => pairElement(first, second, key, page * PAGE + i + 1))));
    query("back").disabled = page === 0;
    query("next").disabled = (page + 1) * PAGE >= keys.length;
    const changes = keys.map((key) => second.gap(second.rows.get(key)) - first.gap(first.rows.get(key)));
    const count = (test) => changes.filter(test).length.toLocaleString("en");
    status.textContent = `Pairs ${page * PAGE + 1}–${page * PAGE + part.length} of ${keys.length.toLocaleString("en")} shown for both settings; ` +
      `the gap fell for ${count((c) => c < 0)}, rose for ${count((c) => c > 0)}, did not change for ${count((c) => c === 0)}`;
  }

  async function compare() {
    const [first, second] = await Promise.all([openSetting(query("first").value), openSetting(query("second").value)]);
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
