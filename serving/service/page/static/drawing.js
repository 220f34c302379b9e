// Draws boxes, polygons and labels on the image, as trainer/drawing does for `trainer predict --draw`.

/** A class's style: its colour as "rgb(…)", its text colour, and its dashes in multiples of the line width. */
function lookOf(label) {
  const { palette, dashes } = MODEL.style;
  const index = CLASS_INDEX.get(label) ?? 0;
  const [red, green, blue] = palette[index % palette.length];
  return {
    color: `rgb(${red} ${green} ${blue})`,
    ink: inkOn(red, green, blue),
    dash: dashes[Math.floor(index / palette.length) % dashes.length],
  };
}

/** Black or white, whichever is more legible (relative luminance by ITU-R BT.709). */
function inkOn(red, green, blue) {
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > MODEL.style.dark_ink_above ? "#000" : "#fff";
}

/** Text size, line width and padding in pixels for an image of this size. */
function sizesFor(width, height) {
  const style = MODEL.style;
  const text = Math.max(style.smallest_text, Math.round(Math.max(width, height) / style.picture_by_text));
  return {
    text,
    line: Math.max(2, Math.floor(text / style.text_by_line)),
    padding: Math.max(2, Math.floor(text / 5)),
  };
}

/**
 * Draw objects onto a canvas on top of the image.
 *
 * width and height are the image's in CSS pixels; objects are in descending order of score; `highlighted` is one
 * of them or null. The object with the highest score is drawn last, on top.
 */
function drawObjects(canvas, width, height, objects, highlighted) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(width * ratio));
  canvas.height = Math.max(1, Math.round(height * ratio));
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.scale(canvas.width / width, canvas.height / height);
  const sizes = sizesFor(width, height);
  const ordered = objects.filter((object) => object !== highlighted).reverse();
  if (highlighted && objects.includes(highlighted)) ordered.push(highlighted);
  for (const object of ordered) {
    context.globalAlpha = highlighted && object !== highlighted ? 0.3 : 1;
    drawOutline(context, object, width, height, sizes);
  }
  const crowded = objects.length > MODEL.style.crowd;
  const labelled = highlighted ? ordered.slice(-1) : ordered;
  // Labels of objects with high scores are placed first and drawn last.
  const chips = [];
  for (const object of [...labelled].reverse()) {
    const chip = placeLabel(context, object, width, height, sizes, chips);
    // In a crowd, labels larger than their objects would hide them.
    const { left, top, right, bottom } = pixelsOf(object.box, width, height);
    const hides = crowded && object !== highlighted && chip.width * chip.height > (right - left) * (bottom - top);
    if (!hides) chips.push(chip);
  }
  context.globalAlpha = 1;
  for (const chip of chips.reverse()) drawLabel(context, chip, sizes);
}

function drawOutline(context, object, width, height, sizes) {
  const { color, dash } = lookOf(object.label);
  const box = pixelsOf(object.box, width, height);
  const segments = object.polygon ?? [];
  if (segments.length) {
    context.beginPath();
    for (const segment of segments) {
      context.moveTo(segment[0] * width, segment[1] * height);
      for (let i = 2; i < segment.length; i += 2) context.lineTo(segment[i] * width, segment[i + 1] * height);
      context.closePath();
    }
    const alpha = context.globalAlpha;
    context.globalAlpha = alpha * MODEL.style.fill_opacity;
    context.fillStyle = color;
    context.fill(); // holes run the other way round
    context.globalAlpha = alpha;
    strokeOf(context, color, dash, sizes.line);
  }
  // With polygons, the box is only a frame.
  const line = segments.length ? Math.max(1, Math.floor(sizes.line / 2)) : sizes.line;
  context.beginPath();
  context.rect(
    box.left + line / 2,
    box.top + line / 2,
    Math.max(0, box.right - box.left - line),
    Math.max(0, box.bottom - box.top - line),
  );
  strokeOf(context, color, dash, line);
}

/** Stroke the current path in the class's colour, with a dark edge for bright backgrounds. */
function strokeOf(context, color, dash, line) {
  context.lineJoin = "round";
  context.setLineDash([]);
  context.lineWidth = line + 2;
  context.strokeStyle = `rgb(0 0 0 / ${MODEL.style.edge_opacity})`;
  context.stroke();
  context.setLineDash(dash.map((part) => part * line));
  context.lineWidth = line;
  context.strokeStyle = color;
  context.stroke();
  context.setLineDash([]);
}

function pixelsOf(box, width, height) {
  return { left: box.topX * width, top: box.topY * height, right: box.bottomX * width, bottom: box.bottomY * height };
}

/**
 * The position of an object's label: above its box, inside at its top, or below it; the first of these that is
 * in the image and overlaps no other label.
 */
function placeLabel(context, object, width, height, sizes, taken) {
  const box = pixelsOf(object.box, width, height);
  context.font = `600 ${sizes.text}px system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif`;
  context.direction = "ltr";
  const room = Math.min(width, Math.max(box.right - box.left, width * MODEL.style.label_share));
  const text = fitted(context, object.label, ` ${object.score.toFixed(2)}`, room - 2 * sizes.padding);
  const chip = {
    text,
    label: object.label,
    width: context.measureText(text).width + 2 * sizes.padding,
    height: Math.round(sizes.text * 1.2) + 2 * sizes.padding,
  };
  chip.x = Math.max(0, Math.min(box.left, width - chip.width));
  const inside = (y) => y >= 0 && y + chip.height <= height;
  const free = (y) =>
    taken.every(
      (other) =>
        chip.x >= other.x + other.width || other.x >= chip.x + chip.width || y >= other.y + other.height || other.y >= y + chip.height,
    );
  const places = [box.top - chip.height, box.top, box.bottom].filter(inside);
  chip.y = places.find(free) ?? places[0] ?? Math.max(0, height - chip.height);
  return chip;
}

function drawLabel(context, chip, sizes) {
  const { color, ink } = lookOf(chip.label);
  context.textBaseline = "middle";
  context.fillStyle = color;
  context.fillRect(chip.x, chip.y, chip.width, chip.height);
  context.fillStyle = ink;
  context.fillText(chip.text, chip.x + sizes.padding, chip.y + chip.height / 2 + sizes.text * 0.05);
}

/** The label, shortened to fit, and isolated from the score's writing direction. */
function fitted(context, label, tail, room) {
  const isolated = (text) => `\u2068${text}\u2069${tail}`;
  if (context.measureText(isolated(label)).width <= room) return isolated(label);
  const characters = Array.from(label);
  let low = 0;
  let high = characters.length;
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    const fits = context.measureText(isolated(`${characters.slice(0, middle).join("")}…`)).width <= room;
    if (fits) low = middle;
    else high = middle - 1;
  }
  return isolated(`${characters.slice(0, low).join("")}…`);
}

/** The object at a point of the image (in CSS pixels): the smallest box around it, or null. */
function objectAt(objects, x, y, width, height) {
  const area = ({ box }) => (box.bottomX - box.topX) * (box.bottomY - box.topY);
  const around = objects.filter(({ box }) => {
    const { left, top, right, bottom } = pixelsOf(box, width, height);
    return x >= left && x <= right && y >= top && y <= bottom;
  });
  return around.reduce((best, object) => (best && area(best) <= area(object) ? best : object), null);
}

/** A sample of a class's line for legends. */
function swatchOf(label) {
  const { color, dash } = lookOf(label);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "swatch");
  svg.setAttribute("viewBox", "0 0 24 16");
  svg.setAttribute("aria-hidden", "true");
  const shape = document.createElementNS(svg.namespaceURI, "rect");
  const attributes = { x: 2, y: 2, width: 20, height: 12, rx: 2, fill: color, "fill-opacity": 0.35, stroke: color };
  attributes["stroke-width"] = 3;
  if (dash.length) attributes["stroke-dasharray"] = dash.map((part) => part * 2).join(" ");
  for (const [name, value] of Object.entries(attributes)) shape.setAttribute(name, value);
  svg.append(shape);
  return svg;
}
