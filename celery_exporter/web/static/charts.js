// Draws the charts as web/pages/charts.py does, and shows the values at the pointer or the cursor keys.
"use strict";

const POINTS = 180, HEIGHT = 100, PLOT_HEIGHT = 96, MAX_CURRENT_STEPS = 1;
const RANGE_SECONDS = { "15m": 900, "1h": 3600, "6h": 21600, "24h": 86400 };
const chartSection = byId("charts");
let newestCharts = null; // those on the page
let cursor = null; // index of the step whose values are shown; null: the newest

function scaleTop(most) {
  if (most <= 0) return 1;
  let unit = 1;
  while (unit > most) unit /= 10;
  while (unit * 10 <= most) unit *= 10;
  return [1, 2, 5, 10].map((factor) => factor * unit).find((top) => top >= most);
}

function path(values, top) {
  let previous = null;
  return values.map((value, index) => {
    const isFirst = previous === null, isSingle = isFirst && (values[index + 1] ?? null) === null;
    previous = value;
    if (value === null) return "";
    const y = Math.floor((HEIGHT - (PLOT_HEIGHT * value) / top) * 10 + 0.5) / 10;
    return `${isFirst ? "M" : "L"}${index},${y}${isSingle ? "h0" : ""}`;
  }).join("");
}

function chartValue({ kind }, value) {
  if (value === null) return UNKNOWN;
  const isWhole = kind === "count" || (kind === "decimal" && value >= 100);
  return isWhole ? grouped(Math.floor(value + 0.5)) : KINDS[kind](value, 0);
}

// The newest known value of a line, and its age if it is not of now.
function latest(chart, { values }, step) {
  const steps = [...values].reverse().findIndex((value) => value !== null);
  if (steps < 0) return [UNKNOWN, ""];
  return [chartValue(chart, values.at(-1 - steps)), steps > MAX_CURRENT_STEPS ? ` ${ago(steps * step)} ago` : ""];
}

function drawChart(chart, { at, step, range, marks }) {
  const figure = byId(`chart-${chart.name}`);
  if (!figure) return;
  const known = chart.lines.flatMap(({ values }) => values.filter((value) => value !== null));
  const top = scaleTop(known.reduce((most, value) => Math.max(most, value), 0));
  const newest = chart.lines.map((line) => latest(chart, line, step));
  const svg = figure.querySelector("svg");
  const texts = chart.lines.map((line, index) => `${line.title} ${newest[index].join("")}`);
  svg.setAttribute("aria-label", `${chart.title}: ${texts.join(", ")}`);
  svg.replaceChildren(
    ...marks.map((mark) =>
      draw("path", { class: mark.kind, d: `M${mark.index},0V${HEIGHT}` }, draw("title", {}, mark.text))),
    ...chart.lines.map((line) => draw("path", { class: line.style, d: path(line.values, top) })),
    ...(cursor === null ? [] : [draw("path", { class: "cursor", d: `M${cursor},0V${HEIGHT}` })]),
  );
  figure.querySelector(".top").textContent = chartValue(chart, top);
  figure.querySelector(".when").replaceChildren(
    ...(cursor === null ? [] : [moment(at - (POINTS - 1 - cursor) * step, clock(at - (POINTS - 1 - cursor) * step))]));
  figure.querySelector(".legend").replaceChildren(...chart.lines.map((line, index) => {
    const [value, age] = cursor === null ? newest[index] : [chartValue(chart, line.values[cursor]), ""];
    const aged = age ? [make("small", {}, age)] : [];
    return make("li", { class: line.style }, make("span", {}, line.title), " ", make("b", {}, value), ...aged);
  }));
  const times = [1, 0.5, 0].map((part) => at - part * RANGE_SECONDS[range]);
  figure.querySelector(".axis").replaceChildren(...times.map((time) => moment(time, minute(time))));
}

function drawCharts(charts) {
  newestCharts = charts;
  for (const chart of charts.charts) drawChart(chart, charts);
  const list = byId("marks");
  list.hidden = !charts.marks.length;
  list.querySelector("summary").textContent = `${charts.marks.length} restarts and new versions of workers`;
  list.querySelector("ul").replaceChildren(
    ...charts.marks.map(({ at, text }) => make("li", {}, moment(at, clock(at)), ` ${text}`)));
  for (const link of chartSection.querySelectorAll(".ranges a"))
    if ((link.dataset.set.split("=")[1] || "15m") === charts.range) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
}

function moveCursor(index) {
  cursor = index === null ? null : Math.min(POINTS - 1, Math.max(0, index));
  if (newestCharts) drawCharts(newestCharts);
}

for (const figure of document.querySelectorAll(".chart")) {
  const plot = figure.querySelector("svg");
  plot.addEventListener("pointermove", (event) => {
    const { left, width } = plot.getBoundingClientRect();
    moveCursor(Math.round(((event.clientX - left) / width) * (POINTS - 1)));
  });
  plot.addEventListener("pointerleave", () => moveCursor(null));
  figure.addEventListener("blur", () => moveCursor(null));
  figure.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") moveCursor(null);
    if (!step) return;
    event.preventDefault();
    moveCursor((cursor ?? POINTS - 1) + step);
  });
}
