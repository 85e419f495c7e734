// Refreshes the status page every two seconds from /api/v1/status. The table heads of the page define the columns.
// Values are formatted as in celery_exporter/status/columns.py; a test compares the two.
"use strict";

const REFRESH_MS = 2000;
const TIMEOUT_MS = 8000;
const UNKNOWN = "–";
const HISTORY_SECONDS = 900, WIDTH = 120, HEIGHT = 24; // as in status/thresholds.py and web/status_page.py

const byId = (id) => document.getElementById(id);
const grouped = (number) => number.toLocaleString("en-US");

function fixed(value, digits) {
  const scale = 10 ** digits;
  const style = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return (Math.floor(value * scale + 0.5) / scale).toLocaleString("en-US", style);
}

const UNITS = [[0.9995, 0.001, "ms"], [59.95, 1, "s"], [3597, 60, "min"], [86220, 3600, "h"]];

function seconds(value) {
  for (const [below, unit, name] of UNITS)
    if (value < below) return `${fixed(value / unit, name === "ms" ? 0 : 1)} ${name}`;
  return `${fixed(value / 86400, 1)} d`;
}

const ago = (value) => (value < 60 ? `${Math.floor(value)} s` : seconds(value));
const clock = (at) => new Date(at * 1000).toISOString().slice(5, 19).replace("T", " ");

function skew(value) {
  const size = fixed(Math.abs(value), 1);
  return `${size === "0.0" ? "" : value > 0 ? "+" : "-"}${size} s`;
}

const total = (counts) => Object.values(counts).reduce((sum, count) => sum + count, 0);

const KINDS = {
  text: (value) => value || UNKNOWN,
  up: (value) => (value ? "up" : "down"),
  open: (value) => (value ? "open" : "not open"),
  yes: (value) => (value ? "yes" : "no"),
  count: grouped,
  decimal: (value) => fixed(value, 2),
  share: (value) => `${fixed(100 * value, 1)} %`,
  seconds: (value) => seconds(Math.max(0, value)),
  ago: (value, now) => ago(Math.max(0, now - value)),
  skew: skew,
  clock: clock,
  sum: (value) => grouped(total(value)),
};

const get = (row, field) => field.split(".").reduce((value, name) => value?.[name] ?? null, row);

function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// -- cells ----------------------------------------------------------------------------------------------

function cell({ field, kind, totalField }, title, row, now) {
  const value = get(row, field);
  if (kind === "line") return make("td", { class: "line" }, ...line(value, now));
  if (kind === "part") return make("td", { class: "part" }, ...part(value, get(row, totalField), title));
  const text = formatted({ field, kind }, row, now);
  const state = kind === "up" || kind === "yes" ? text : "";
  return make("td", { class: `${kind} ${state}` }, text);
}

function formatted({ field, kind }, row, now) {
  const value = get(row, field);
  return value === null ? UNKNOWN : KINDS[kind](value, now);
}

function part(value, whole, title) {
  if (value === null) return [UNKNOWN];
  const text = `${grouped(value)} / ${whole === null ? UNKNOWN : grouped(whole)}`;
  if (!whole) return [text];
  return [make("meter", { min: 0, max: whole, value: value, "aria-label": title }), " ", text];
}

function line(points, now) {
  const measured = points.filter(([, length]) => length !== null);
  if (!measured.length) return [UNKNOWN];
  const lengths = measured.map(([, length]) => length);
  const least = Math.min(...lengths), most = Math.max(...lengths);
  const scale = (HEIGHT - 2) / Math.max(most, 1);
  const coordinates = ([at, length]) =>
    `${fixed((1 - (now - at) / HISTORY_SECONDS) * WIDTH, 1)},${fixed(HEIGHT - 1 - length * scale, 1)}`;
  const chart = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const properties = {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`, width: WIDTH, height: HEIGHT, role: "img",
    "aria-label": `between ${grouped(least)} and ${grouped(most)}`,
  };
  for (const [key, value] of Object.entries(properties)) chart.setAttribute(key, value);
  const polyline = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  polyline.setAttribute("points", measured.map(coordinates).join(" "));
  chart.append(polyline);
  return [chart, make("small", {}, `max ${grouped(most)}`)];
}

// -- tables ---------------------------------------------------------------------------------------------

const tables = [...document.querySelectorAll("table")].map((table) => ({
  table,
  columns: [...table.querySelectorAll("th")].map((head) => ({ head, ...head.dataset })),
}));
const taskTable = byId("tasks");
const search = document.querySelector("input[name=filter]");
let newest = null; // the status on the page
let timer = null; // of the next refresh

const timestamps = new Set([...taskTable.querySelectorAll("[data-kind=ago]")].map((head) => head.dataset.field));

function rank(row, field) {
  const value = get(row, field);
  if (value === null) return null;
  return typeof value === "object" ? total(value) : timestamps.has(field) ? -value : value;
}

function ordered(rows) {
  const sort = taskTable.dataset.sort, field = sort.replace(/^-/, ""), sign = sort === field ? 1 : -1;
  const compare = (a, b) => {
    const [left, right] = [rank(a, field), rank(b, field)];
    if (left === null || right === null) return (left === null) - (right === null);
    return left < right ? -sign : left > right ? sign : 0;
  };
  return [...rows].sort(compare);
}

function fill({ table, columns }, status) {
  let rows = status[table.id];
  byId(`${table.id}-count`).textContent = grouped(rows.length);
  if (table === taskTable) {
    const contains = search.value.toLowerCase();
    rows = ordered(rows.filter((row) => row.name.toLowerCase().includes(contains)));
  }
  const limit = Number(table.dataset.maxRows);
  const lines = rows.slice(0, limit).map((row) =>
    make("tr", {}, ...columns.map((column) => cell(column, column.head.textContent, row, status.at))));
  if (!lines.length) lines.push(make("tr", {}, make("td", { colspan: columns.length }, table.dataset.empty)));
  table.tBodies[0].replaceChildren(...lines);
  byId(`${table.id}-more`).textContent =
    rows.length > limit ? `and ${grouped(rows.length - limit)} more` : "";
}

// -- page -----------------------------------------------------------------------------------------------

function finding({ severity, message, remedy, alert }) {
  const runbook = alert ? [" ", make("a", { href: `runbooks#${alert.toLowerCase()}` }, alert)] : [];
  const parts = [make("b", {}, severity), ` ${message}`, ...runbook, make("br"), make("code", {}, remedy)];
  return make("li", { class: severity }, ...parts);
}

function outage({ down_since: since, error }) {
  return since === null ? "" : `Not open since ${clock(since)} UTC: ${error ?? "the broker has not answered yet"}`;
}

function show(status) {
  newest = status;
  document.title = `${status.broker.up ? "up" : "broker down"} · celery-exporter`;
  byId("at").textContent = clock(status.at);
  byId("exporter").textContent = status.exporter_version;
  byId("outage").textContent = outage(status.broker);
  byId("broker").className = status.broker.up ? "good" : "bad";
  for (const entry of byId("broker").querySelectorAll("dd")) entry.textContent = formatted(entry.dataset, status, status.at);
  const problems = status.findings.filter(({ severity }) => severity !== "ok").map(finding);
  const none = make("li", { class: "ok" }, "No problems found.");
  byId("findings").replaceChildren(...(problems.length ? problems : [none]));
  tables.forEach((table) => fill(table, status));
}

function showError(reason) {
  byId("fresh").classList.toggle("stale", Boolean(reason));
  if (byId("why").textContent !== reason) byId("why").textContent = reason; // screen readers read each change
}

async function update() {
  try {
    const answer = await fetch("api/v1/status", { signal: AbortSignal.timeout(TIMEOUT_MS), cache: "no-store" });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    show(await answer.json());
    showError("");
  } catch (error) {
    showError(` Refresh failed: ${error.message}.`);
  }
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(update, REFRESH_MS);
}

function applyChoice() {
  if (newest) show(newest);
  const query = new URLSearchParams({ sort: taskTable.dataset.sort, filter: search.value });
  history.replaceState(null, "", `?${query}`); // last: browsers throw an error if it is called too often
}

function sortBy(event, { head, field, kind }) {
  event.preventDefault();
  const [first, second] = kind === "text" ? [field, `-${field}`] : [`-${field}`, field];
  taskTable.dataset.sort = taskTable.dataset.sort === first ? second : first;
  for (const other of taskTable.querySelectorAll("th")) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", taskTable.dataset.sort === field ? "ascending" : "descending");
  applyChoice();
}

document.body.classList.add("scripted");
for (const column of tables.find(({ table }) => table === taskTable).columns)
  column.head.querySelector("a").addEventListener("click", (event) => sortBy(event, column));
search.addEventListener("input", applyChoice);
byId("filter").addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("visibilitychange", () => document.hidden || update());
update();
