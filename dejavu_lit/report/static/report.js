"use strict";
// Shared by all pages of the report: data files that call dejavu(NAME, VALUE), DOM helpers, sortable tables.

const dejavuLoads = new Map(); // file -> {promise, resolve}

function dejavu(name, value) {
  const file = document.currentScript.dataset.file;
  dejavuLoads.get(file)?.resolve(value);
}

// The value of FOLDER/NAME.js, loaded once.
function load(folder, name) {
  const file = `${folder}/${name}.js`;
  if (!dejavuLoads.has(file)) {
    const entry = {};
    entry.promise = new Promise((resolve, reject) => {
      entry.resolve = resolve;
      const script = document.createElement("script");
      script.src = file;
      script.dataset.file = file;
      script.onerror = () => { dejavuLoads.delete(file); reject(new Error(`${file} could not be loaded`)); };
      document.head.append(script);
    });
    dejavuLoads.set(file, entry);
  }
  return dejavuLoads.get(file).promise;
}

// An element; texts become text nodes, so no data is interpreted as markup.
function make(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

// Text from the data, isolated so that its writing direction does not affect the text around it.
function isolated(text) {
  return make("bdi", { dir: "auto" }, text);
}

function signed(value, digits = 2) {
  const text = Math.abs(value).toFixed(digits);
  return (Number(text) === 0 ? "" : value > 0 ? "+" : "−") + text;
}

function sortable(table) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const button = make("button", { type: "button", title: "Sort by this column" }, ...header.childNodes);
    header.replaceChildren(button);
    button.addEventListener("click", () => {
      const descending = header.getAttribute("aria-sort") === "descending";
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", descending ? "ascending" : "descending");
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const rows = [...table.tBodies[0].rows];
      const numeric = rows.some((row) => value(row) !== "") && rows.every((row) => value(row) === "" || !Number.isNaN(Number(value(row))));
      rows.sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === ""); // missing values stay last
        const order = numeric ? Number(x) - Number(y) : x.localeCompare(y, "en", { numeric: true });
        return descending ? order : -order;
      });
      table.tBodies[0].append(...rows);
    });
  });
}

document.addEventListener("DOMContentLoaded", () => document.querySelectorAll("table.sortable").forEach(sortable));
