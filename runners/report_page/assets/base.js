// What all parts of the page use: its data, elements, numbers and texts.

const DATA = JSON.parse(document.getElementById("data").textContent);

const byId = (id) => document.getElementById(id);

// Characters that draw nothing, or turn the direction of what follows, are shown by their number.
// Only so is what one reads the text that is there.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

function visible(text) {
  return String(text).replace(UNSEEN, (one) =>
    "\\u{" + one.codePointAt(0).toString(16).padStart(4, "0") + "}");
}

function short(text, length) {
  const shown = visible(text).replace(/\s+/g, " ");
  return shown.length > length ? shown.slice(0, length - 1) + "\u2026" : shown;
}

// An element with attributes and children; strings become text, never markup.
function make(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function draw(name, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "on") {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(key, value === true ? "" : value);
    }
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined) {
      element.append(child instanceof Node ? child : visible(child));
    }
  }
  return element;
}

function fixed(value, digits = 3) {
  return value === null || value === undefined ? "\u2013" : value.toFixed(digits);
}

// Digits of a mean over so many queries: more would be noise.
function digitsOf(queries) {
  return queries < 100 ? 2 : queries < 1000 ? 3 : 4;
}

function grouped(value) {
  return (Math.round(value) + 0).toLocaleString("en");
}

// What is drawn on a canvas takes its colours from the style, and has to be drawn anew with them.
const redrawn = [];
const onColours = (listener) => redrawn.push(listener);

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function rgb(name) {
  const hex = colour(name);
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

function setUpTheme() {
  const button = byId("theme");
  const themes = ["system", "light", "dark"];
  let at = 0;
  const repaint = () => redrawn.forEach((listener) => listener());
  button.addEventListener("click", () => {
    at = (at + 1) % themes.length;
    if (at) document.documentElement.dataset.theme = themes[at];
    else delete document.documentElement.dataset.theme;
    button.textContent = "Theme: " + themes[at];
    repaint();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
}
