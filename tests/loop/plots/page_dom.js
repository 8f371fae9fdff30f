// Enough of a browser for the page's script: elements, attributes, events; no layout.
// usage: node page_dom.js DATA SCRIPT TEST; the test prints what it found.
"use strict";
const fs = require("fs");
const vm = require("vm");
const [data, script, test] = process.argv.slice(2).map((path) => fs.readFileSync(path, "utf8"));

class Element {
  constructor(name, text = "") {
    Object.assign(this, { name, text, children: [], parent: null, attributes: {}, listeners: {}, dataset: {}, style: {} });
    Object.assign(this, { hidden: false, open: false, value: "", clientWidth: 500, clientHeight: 232 });
  }
  get textContent() { return this.children.length ? this.children.map((c) => c.textContent).join("") : this.text; }
  set textContent(text) { this.children = []; this.text = String(text); }
  get nextElementSibling() { return this.parent.children[this.parent.children.indexOf(this) + 1]; }
  setAttribute(key, value) { this.attributes[key] = String(value); }
  getAttribute(key) { return this.attributes[key] ?? null; }
  removeAttribute(key) { delete this.attributes[key]; }
  own(nodes) { return nodes.map((n) => Object.assign(n instanceof Element ? n : new Element("#text", String(n)), { parent: this })); }
  append(...nodes) { this.children.push(...this.own(nodes)); }
  prepend(...nodes) {
    if (this.text) { this.children = this.own([this.text]); this.text = ""; }
    this.children.unshift(...this.own(nodes));
  }
  replaceChildren(...nodes) { this.children = this.own(nodes); this.text = ""; }
  addEventListener(kind, listener) { (this.listeners[kind] ||= []).push(listener); }
  fire(kind, event = {}) { for (const listener of this.listeners[kind] || []) listener({ target: this, ...event }); }
  all(name) { return this.children.flatMap((c) => [...(c.name === name ? [c] : []), ...c.all(name)]); }
  querySelectorAll(name) { return this.all(name); }
  getBoundingClientRect() { return { left: 100, top: 50, width: 120, height: 60 }; }
  setPointerCapture() {}
}

const ids = Object.fromEntries(["data", "legend", "axis", "smooth", "log", "reset", "tip", "theme", "about"].map((id) => [id, new Element(id)]));
ids.data.text = data;
const label = new Element("label");
label.append(ids.smooth, new Element("output"));
const named = Object.fromEntries(["main", "table", "h1"].map((name) => [name, new Element(name)]));
const context = vm.createContext({
  document: {
    getElementById: (id) => ids[id],
    querySelector: (name) => named[name],
    createElement: (name) => new Element(name),
    createElementNS: (_, name) => new Element(name),
    documentElement: new Element("html"),
  },
  matchMedia: () => ({ matches: false }),
  addEventListener: () => {},
  innerWidth: 1200,
  innerHeight: 800,
  ids,
  named,
  print: (found) => console.log(JSON.stringify(found)),
});
vm.runInContext(script, context);
vm.runInContext(test, context);
