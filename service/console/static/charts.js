// Small charts in SVG. Every value that came from outside goes through textContent, never through markup.

const SVG = "http://www.w3.org/2000/svg";

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function shape(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

const WIDTH = 400, HEIGHT = 160, LEFT = 34, BOTTOM = 18;

function scale(values, from, to) {
  const low = Math.min(...values), high = Math.max(...values), span = high - low || 1;
  return (value) => from + ((value - low) / span) * (to - from);
}

/** A line; `low` and `high` bound the vertical axis, `first` and `last` name the ends of the other one. */
export function drawLine(svg, values, { low = 0, high = Math.max(1, ...values), first = "", last = "" } = {}) {
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  const x = (index) => LEFT + (index / Math.max(1, values.length - 1)) * (WIDTH - LEFT - 8);
  const y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low || 1)) * (HEIGHT - BOTTOM - 8);
  const points = values.map((value, index) => `${x(index).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  svg.replaceChildren(
    ...[low, (low + high) / 2, high].flatMap((value) => [
      shape("line", { class: "axis", x1: LEFT, x2: WIDTH - 8, y1: y(value), y2: y(value) }),
      shape("text", { x: 0, y: y(value) + 4 }, Number(value.toPrecision(3))),
    ]),
    shape("text", { x: LEFT, y: HEIGHT - 4 }, first),
    shape("text", { x: WIDTH - 8, y: HEIGHT - 4, "text-anchor": "end" }, last),
    shape("polyline", { class: "line", points }),
  );
}

/** The path of the intent through the plane of the catalogue's two main axes. */
export function drawPath(svg, plane) {
  const size = 400;
  svg.setAttribute("viewBox", `0 0 ${size} ${size}`);
  const all = ["items", "history", "candidates", "noised", "predicted"].flatMap((name) => plane[name]);
  const x = scale(all.map((point) => point[0]), 8, size - 8), y = scale(all.map((point) => point[1]), size - 8, 8);
  const dots = (points, kind, radius) =>
    points.map((point) => shape("circle", { class: kind, r: radius, cx: x(point[0]), cy: y(point[1]) }));
  const line = (points, kind) =>
    shape("polyline", { class: kind, points: points.map((p) => `${x(p[0]).toFixed(1)},${y(p[1]).toFixed(1)}`).join(" ") });
  svg.replaceChildren(
    ...dots(plane.items, "item", 1.6),
    line(plane.noised, "path noised"),
    line(plane.predicted, "path"),
    ...dots(plane.history, "history", 3),
    ...dots(plane.candidates, "candidate", 3),
    ...dots([plane.final], "final", 5),
  );
}

export function newChart(label, tall = false) {
  const svg = shape("svg", { role: "img", "aria-label": label });
  if (tall) svg.classList.add("tall");
  return svg;
}
