// Renders the answer next to the image: lists, bars, heat maps and JSON. Stateless.

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Text in any script; right-to-left text does not affect its surroundings. */
function nameOf(label) {
  return element("bdi", { className: "name", textContent: label });
}

function counted(count, one, many = `${one}s`) {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}

/** List the model's classes, each with the style of its objects if it finds objects. */
function listKnown(list, labels) {
  list.replaceChildren(...labels.map((label) => element("li", {}, swatchOf(label), nameOf(label))));
}

/** Show a checkbox for each class found; `hidden` has the labels that are switched off. */
function showClasses(list, objects, hidden) {
  const counts = new Map();
  for (const { label } of objects) counts.set(label, (counts.get(label) ?? 0) + 1);
  const labels = [...counts.keys()].sort((a, b) => (CLASS_INDEX.get(a) ?? 0) - (CLASS_INDEX.get(b) ?? 0));
  list.replaceChildren(
    ...labels.map((label) => {
      const box = element("input", { type: "checkbox", checked: !hidden.has(label), value: label });
      const count = element("span", { className: "count" });
      return element("label", {}, box, swatchOf(label), nameOf(label), count);
    }),
  );
}

/** Show the number of objects of each class at or above the threshold. */
function countClasses(list, objects) {
  for (const row of list.children) {
    const label = row.firstChild.value;
    row.lastChild.textContent = objects.filter((object) => object.label === label).length.toLocaleString("en");
  }
}

/** Create an option for each object, in order; `showRows` decides which are visible. */
function listObjects(list, objects) {
  list.replaceChildren(
    ...objects.map((object, index) => {
      const score = element("span", { className: "value", textContent: object.score.toFixed(2) });
      const row = element("li", { id: `object-${index}` }, swatchOf(object.label), nameOf(object.label), score);
      row.setAttribute("role", "option");
      row.setAttribute("aria-selected", "false");
      return row;
    }),
  );
}

function showRows(list, objects, visible, selected) {
  const shown = new Set(visible);
  objects.forEach((object, index) => {
    list.children[index].hidden = !shown.has(object);
    list.children[index].setAttribute("aria-selected", String(object === selected));
  });
  if (selected) list.setAttribute("aria-activedescendant", `object-${objects.indexOf(selected)}`);
  else list.removeAttribute("aria-activedescendant");
}

/** Show bars in descending order of probability; those for which `likely` is true in bold. */
function showProbabilities(list, ranked, likely) {
  list.replaceChildren(
    ...ranked.map(({ label, prob }) => {
      const value = element("span", { className: "value", textContent: prob.toFixed(3) });
      const filling = element("span");
      filling.style.width = `${100 * prob}%`;
      filling.style.background = lookOf(label).color;
      const bar = element("span", { className: "bar" }, filling);
      bar.setAttribute("aria-hidden", "true");
      return element("li", { className: likely(prob) ? "likely" : "" }, nameOf(label), value, bar);
    }),
  );
}

/** Show the images of an explanation, base64 PNGs, each under its caption (a node). */
function showMaps(list, pictures, captions, altOf) {
  list.replaceChildren(
    ...pictures.map((picture, index) => {
      const image = element("img", { src: `data:image/png;base64,${picture}`, alt: altOf(index) });
      // In a narrow window the row of panels scrolls instead of shrinking.
      const panels = element("div", { className: "panels", tabIndex: 0 }, image);
      return element("figure", {}, element("figcaption", {}, captions[index] ?? ""), panels);
    }),
  );
}

const LONGEST_TEXT = 120;

/** Format JSON for reading: arrays of numbers on one line, long texts cut. */
function readable(value, indent = "") {
  if (typeof value === "string" && value.length > LONGEST_TEXT) {
    return `${JSON.stringify(value.slice(0, 40))}… ${counted(value.length, "character")}`;
  }
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const entries = Object.entries(value);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const name = Array.isArray(value) ? () => "" : (key) => `${JSON.stringify(key)}: `;
  if (entries.every(([, part]) => typeof part === "number")) {
    return `${open}${entries.map(([key, part]) => name(key) + part).join(", ")}${close}`;
  }
  const deeper = `${indent}  `;
  const lines = entries.map(([key, part]) => `${deeper}${name(key)}${readable(part, deeper)}`);
  return `${open}\n${lines.join(",\n")}\n${indent}${close}`;
}

/** Copy a text, also on pages without a secure address, where browsers have no clipboard API. */
async function copyText(text) {
  if (navigator.clipboard && window.isSecureContext) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const focused = document.activeElement;
  const area = element("textarea", { value: text, readOnly: true });
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus();
  if (!done) throw new Error("not copied");
}
