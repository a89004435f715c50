"use strict";
// Two settings of a study, compared on the pairs that both show: which objects are no longer recalled under the second.

const PAGE = 10;

async function openSetting(label) {
  const data = await load(`settings/${label}/data/cards.js`);
  return { label, data, cards: new Map(data.cards.map((card) => [card.key, card])) };
}

function recalled({ cards, data }, key) {
  const card = cards.get(key);
  return new Set(card.objects ? card.target.predicted.filter((code) => card.objects.includes(code)).map((code) => data.labels[code]) : []);
}

function changedObjects(title, names, kindOfChip) {
  if (!names.length) return null;
  return make("div", {}, make("strong", {}, title), make("ul", { class: "chips" }, names.map((name) => chip(kindOfChip, name, title))));
}

function pairElement(first, second, key, rank) {
  const [before, after] = [first, second].map((setting) => gapOf(setting.cards.get(key)));
  const head = make("header", {}, make("h3", {}, `${rank}. `, isolated(key)),
    make("span", {}, `gap ${signed(before, 0)} → ${signed(after, 0)} hits (${signed(after - before, 0)})`));
  const body = make("div", { class: "body" });
  if (!first.data.redacted) {
    const [earlier, later] = [recalled(first, key), recalled(second, key)];
    body.append(trainingPair(first.cards.get(key), first.data.labels, ""));
    head.append(...[changedObjects("no longer recalled", [...earlier].filter((name) => !later.has(name)), "missed"),
      changedObjects("newly recalled", [...later].filter((name) => !earlier.has(name)), "right")].filter(Boolean));
  }
  body.append(make("div", { class: "models" }, [first, second].map((setting) =>
    side("target", setting.cards.get(key), setting.data, "", `Target model of ${setting.label}`))));
  return make("article", { class: "card", "data-key": key }, head, body);
}

function startComparison(box) {
  const query = (name) => box.querySelector(`[name="${name}"]`);
  const status = box.querySelector(".status");
  const list = box.querySelector(".cards");
  list.dataset.boxes = "right";
  let state = null;

  function draw() {
    const { first, second, keys, page } = state;
    const part = keys.slice(page * PAGE, (page + 1) * PAGE);
    list.replaceChildren(...part.map((key, i) => pairElement(first, second, key, page * PAGE + i + 1)));
    query("back").disabled = page === 0;
    query("next").disabled = (page + 1) * PAGE >= keys.length;
    const changes = keys.map((key) => gapOf(second.cards.get(key)) - gapOf(first.cards.get(key)));
    const count = (test) => changes.filter(test).length.toLocaleString("en");
    status.textContent = `Pairs ${part.length ? page * PAGE + 1 : 0}–${page * PAGE + part.length} of ${keys.length.toLocaleString("en")} shown for both settings; ` +
      `the gap fell for ${count((c) => c < 0)}, rose for ${count((c) => c > 0)}, did not change for ${count((c) => c === 0)}`;
  }

  async function compare() {
    const [first, second] = await Promise.all([openSetting(query("first").value), openSetting(query("second").value)]);
    const sign = query("order").value === "lost" ? 1 : -1;
    const lost = (key) => sign * (gapOf(first.cards.get(key)) - gapOf(second.cards.get(key)));
    const keys = [...first.cards.keys()].filter((key) => second.cards.has(key)).sort((a, b) => lost(b) - lost(a));
    state = { first, second, keys, page: 0 };
    draw();
    box.dataset.ready = "true";
  }

  const attempt = (action) => () => Promise.resolve(action()).catch((error) => { status.textContent = error.message; });
  query("compare").addEventListener("click", attempt(compare));
  for (const name of ["first", "second", "order"]) query(name).addEventListener("change", attempt(async () => state && compare()));
  query("back").addEventListener("click", () => { state.page -= 1; draw(); });
  query("next").addEventListener("click", () => { state.page += 1; draw(); });
}

document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".compare").forEach(startComparison));
