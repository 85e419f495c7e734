// The status page, said anew every two seconds from /api/v1/status. What the columns are stands in the page's
// table heads; how a value is written is as in celery_exporter/status/columns.py, and a test compares the two.
"use strict";

const EVERY = 2000; // ms
const PATIENCE = 8000; // ms that an answer may take
const UNKNOWN = "–";
const LENGTHS = 900, WIDTH = 120, HEIGHT = 24; // as in status.py and web/page.py

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

const get = (row, field) => field.split(".").reduce((found, name) => found?.[name] ?? null, row);

function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// -- cells ----------------------------------------------------------------------------------------------

function cell({ field, kind, of }, title, row, now) {
  const value = get(row, field);
  if (kind === "line") return make("td", { class: "line" }, ...line(value, now));
  if (kind === "part") return make("td", { class: "part" }, ...part(value, get(row, of), title));
  const shown = said({ field, kind }, row, now);
  const more = kind === "up" || kind === "yes" ? shown : "";
  return make("td", { class: `${kind} ${more}` }, shown);
}

function said({ field, kind }, row, now) {
  const value = get(row, field);
  return value === null ? UNKNOWN : KINDS[kind](value, now);
}

function part(value, whole, title) {
  if (value === null) return [UNKNOWN];
  const said = `${grouped(value)} / ${whole === null ? UNKNOWN : grouped(whole)}`;
  if (!whole) return [said];
  return [make("meter", { min: 0, max: whole, value: value, "aria-label": title }), " ", said];
}

function line(points, now) {
  const known = points.filter(([, length]) => length !== null);
  if (!known.length) return [UNKNOWN];
  const lengths = known.map(([, length]) => length);
  const least = Math.min(...lengths), most = Math.max(...lengths);
  const scale = (HEIGHT - 2) / Math.max(most, 1);
  const place = ([at, length]) =>
    `${fixed((1 - (now - at) / LENGTHS) * WIDTH, 1)},${fixed(HEIGHT - 1 - length * scale, 1)}`;
  const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const properties = {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`, width: WIDTH, height: HEIGHT, role: "img",
    "aria-label": `between ${grouped(least)} and ${grouped(most)}`,
  };
  for (const [key, value] of Object.entries(properties)) drawing.setAttribute(key, value);
  const path = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  path.setAttribute("points", known.map(place).join(" "));
  drawing.append(path);
  return [drawing, make("small", {}, `max ${grouped(most)}`)];
}

// -- tables ---------------------------------------------------------------------------------------------

const tables = [...document.querySelectorAll("table")].map((table) => ({
  table,
  columns: [...table.querySelectorAll("th")].map((head) => ({ head, ...head.dataset })),
}));
const sorted = byId("tasks");
const search = document.querySelector("input[name=filter]");
let newest = null; // the status that is shown
let timer = null; // of the next look

const moments = new Set([...sorted.querySelectorAll("[data-kind=ago]")].map((head) => head.dataset.field));

function rank(row, field) {
  const value = get(row, field);
  if (value === null) return null;
  return typeof value === "object" ? total(value) : moments.has(field) ? -value : value;
}

function ordered(rows) {
  const sort = sorted.dataset.sort, field = sort.replace(/^-/, ""), sign = sort === field ? 1 : -1;
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
  if (table === sorted) {
    const contains = search.value.toLowerCase();
    rows = ordered(rows.filter((row) => row.name.toLowerCase().includes(contains)));
  }
  const most = Number(table.dataset.most);
  const shown = rows.slice(0, most).map((row) =>
    make("tr", {}, ...columns.map((column) => cell(column, column.head.textContent, row, status.at))));
  if (!shown.length) shown.push(make("tr", {}, make("td", { colspan: columns.length }, table.dataset.empty)));
  table.tBodies[0].replaceChildren(...shown);
  byId(`${table.id}-more`).textContent =
    rows.length > most ? `and ${grouped(rows.length - most)} more` : "";
}

// -- all of it ------------------------------------------------------------------------------------------

function finding({ severity, message, remedy, alert }) {
  const runbook = alert ? [" ", make("a", { href: `runbooks#${alert.toLowerCase()}` }, alert)] : [];
  const parts = [make("b", {}, severity), ` ${message}`, ...runbook, make("br"), make("code", {}, remedy)];
  return make("li", { class: severity }, ...parts);
}

function show(status) {
  newest = status;
  document.title = `${status.broker.up ? "up" : "broker down"} · celery-exporter`;
  byId("at").textContent = clock(status.at);
  byId("exporter").textContent = status.exporter_version;
  byId("broker").className = status.broker.up ? "good" : "bad";
  for (const entry of byId("broker").querySelectorAll("dd")) entry.textContent = said(entry.dataset, status, status.at);
  const wrong = status.findings.filter(({ severity }) => severity !== "ok").map(finding);
  const well = make("li", { class: "ok" }, "Nothing: what can be seen from here is well.");
  byId("findings").replaceChildren(...(wrong.length ? wrong : [well]));
  tables.forEach((table) => fill(table, status));
}

function stale(why) {
  byId("fresh").classList.toggle("stale", Boolean(why));
  if (byId("why").textContent !== why) byId("why").textContent = why; // what changes is read aloud
}

async function update() {
  try {
    const answer = await fetch("api/v1/status", { signal: AbortSignal.timeout(PATIENCE), cache: "no-store" });
    if (!answer.ok) throw new Error(`it answers ${answer.status}`);
    show(await answer.json());
    stale("");
  } catch (error) {
    stale(` No news since: ${error.message}.`);
  }
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(update, EVERY);
}

function chosen() {
  if (newest) show(newest);
  const query = new URLSearchParams({ sort: sorted.dataset.sort, filter: search.value });
  history.replaceState(null, "", `?${query}`); // the last thing: browsers refuse it to who types too fast
}

function sortBy(event, { head, field, kind }) {
  event.preventDefault();
  const [first, other] = kind === "text" ? [field, `-${field}`] : [`-${field}`, field];
  sorted.dataset.sort = sorted.dataset.sort === first ? other : first;
  for (const each of sorted.querySelectorAll("th")) each.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", sorted.dataset.sort === field ? "ascending" : "descending");
  chosen();
}

document.body.classList.add("scripted");
for (const column of tables.find(({ table }) => table === sorted).columns)
  column.head.querySelector("a").addEventListener("click", (event) => sortBy(event, column));
search.addEventListener("input", chosen);
byId("filter").addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("visibilitychange", () => document.hidden || update());
update();
