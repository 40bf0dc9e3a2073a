// Elements are made here and nowhere else, and data becomes text of them: never HTML, never the name of an element or
// attribute, never an address.

const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);

// An element with classes and children; strings are text.
function el(name, classes, ...children) {
  const made = document.createElement(name);
  if (classes) made.className = classes;
  made.append(...children);
  return made;
}

function svg(name, classes, attributes) {
  const made = document.createElementNS(SVG, name);
  if (classes) made.setAttribute("class", classes);
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  return made;
}

// Writes only what differs, so that a selection and a screen reader are left alone.
function setText(node, value) {
  const text = String(value);
  if (node.textContent !== text) node.textContent = text;
}

function show(node, shown) {
  if (node.hidden === shown) node.hidden = !shown;
}

function toggle(node, name, on) {
  if (node.classList.contains(name) !== on) node.classList.toggle(name, on);
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenth = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });

const count = (n) => (typeof n === "number" ? whole.format(n) : "–");
const rate = (n) => (typeof n === "number" ? (n >= 100 ? whole : tenth).format(n) : "–");
const timeOf = (seconds) => clock.format(new Date(seconds * 1000));

function duration(ms) {
  if (typeof ms !== "number") return "–";
  if (ms >= 60000) return `${tenth.format(ms / 60000)} min`;
  if (ms >= 1000) return `${tenth.format(ms / 1000)} s`;
  if (ms >= 10 || ms === 0) return `${whole.format(ms)} ms`;
  return `${ms.toPrecision(2)} ms`;
}

function since(seconds) {
  if (seconds < 90) return `${whole.format(seconds)} s`;
  if (seconds < 5400) return `${whole.format(seconds / 60)} min`;
  if (seconds < 172800) return `${whole.format(seconds / 3600)} h`;
  return `${whole.format(seconds / 86400)} days`;
}
