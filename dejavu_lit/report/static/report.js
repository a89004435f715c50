"use strict";
// Shared by all pages of the report: data files that call dejavu(VALUE), DOM helpers, sortable tables.

const SVG = ["svg", "g", "rect", "title"];
const loads = new Map(); // file -> promise of its value
let received = null; // the value of the data file that just ran

function dejavu(value) {
  received = value;
}

// The value of a data file, loaded once.
function load(file) {
  if (!loads.has(file)) {
    loads.set(file, new Promise((resolve, reject) => {
      const fail = () => { loads.delete(file); reject(new Error(`${file} could not be loaded`)); };
      const script = make("script", { src: file });
      script.onload = () => { received ? resolve(received) : fail(); received = null; };
      script.onerror = fail;
      document.head.append(script);
    }));
  }
  return loads.get(file);
}

// An element, of SVG if its name is; texts become text nodes, so no data is interpreted as markup.
function make(name, attributes = {}, ...children) {
  const node = SVG.includes(name) ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
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
