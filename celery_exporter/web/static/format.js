// Values as in celery_exporter/status/columns.py and web/pages/cells.py, with local times. A test compares the two.
"use strict";

const UNKNOWN = "–";
const HISTORY_SECONDS = 900, LINE_WIDTH = 120, LINE_HEIGHT = 24; // as in status/thresholds.py and web/pages/cells.py
const MAX_LINK_LENGTH = 900, MAX_TIME = 253402300800, TASK_LINK = "task/{}", SHORT_LENGTH = 8;
const TIMES = new Set(["ago", "clock", "time", "precise"]);
const STATES = new Set(["up", "yes", "open", "state"]);

const byId = (id) => document.getElementById(id);
const root = document.body.dataset.root;
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
const two = (number) => String(number).padStart(2, "0");
const dateOf = (at) => new Date(at * 1000 + 0.0005); // rounded to microseconds, then cut to milliseconds

function minute(at) {
  const date = dateOf(at);
  return `${two(date.getHours())}:${two(date.getMinutes())}`;
}

const second = (at) => `${minute(at)}:${two(dateOf(at).getSeconds())}`;
const day = (at) => `${two(dateOf(at).getMonth() + 1)}-${two(dateOf(at).getDate())}`;
const clock = (at) => `${day(at)} ${second(at)}`;
const time = (at) => `${second(at)}.${String(dateOf(at).getMilliseconds()).padStart(3, "0")}`;

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
  time: time,
  precise: (at) => `${day(at)} ${time(at)}`,
  short: (value) => value.slice(0, SHORT_LENGTH),
  state: (value) => value,
  long: (value) => value,
  bytes: (value) => `${fixed(value / 1e6, 1)} MB`,
  sum: (value) => grouped(total(value)),
};

const get = (row, field) => field.split(".").reduce((value, name) => value?.[name] ?? null, row);

function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function draw(name, properties, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(properties)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// Replaces an element if it differs; the link or button in its place gets the focus of the one before.
function replace(before, after) {
  if (before.isEqualNode(after)) return;
  const index = [...before.querySelectorAll("a, button")].indexOf(document.activeElement);
  before.replaceWith(after);
  after.querySelectorAll("a, button")[index]?.focus({ preventScroll: true });
}

// -- values as nodes --------------------------------------------------------------------------------------

function text({ field, kind, totalField }, row, now) {
  const value = get(row, field);
  if (kind !== "part") return KINDS[kind](value, now);
  const whole = get(row, totalField);
  return `${grouped(value)} / ${whole === null ? UNKNOWN : grouped(whole)}`;
}

function cellClass(column, row) {
  const isKnown = get(row, column.field) !== null;
  if (column.kind === "decimal" && isKnown && text(column, row, 0) === "0.00") return "decimal zero";
  if (isId(column)) return "text id";
  return STATES.has(column.kind) && isKnown ? `${column.kind} ${text(column, row, 0)}` : column.kind;
}

function content(column, row, now) {
  const { field, kind, title } = column;
  const value = get(row, field);
  if (value === null) return [UNKNOWN];
  if (kind === "line") return line(value, now);
  if (kind === "part") return [...meter(value, get(row, column.totalField), title), ...linked(column, row, now)];
  if (TIMES.has(kind))
    return value >= 0 && value < MAX_TIME ? [moment(value, text(column, row, now))] : [UNKNOWN];
  return linked(column, row, now);
}

// The value with its links, and the button that copies it if it is an id.
function linked(column, row, now) {
  const shown = text(column, row, now);
  const [own, tasks] = [column.link, column.tasks].map((template) => linkTo(template ?? "", column, row));
  return [
    own ? make("a", { href: root + own }, shown) : shown,
    ...(isId(column) && get(row, column.field) ? [copyButton(shown)] : []),
    ...(tasks ? [make("a", { class: "list", href: root + tasks, title: `Tasks of ${shown}` })] : []),
  ];
}

const isId = ({ kind, link }) => kind === "text" && link === TASK_LINK;
const copyButton = (shown) => make("button", { type: "button", class: "copy", title: `Copy ${shown}` });

function linkTo(template, { field }, row) {
  const names = [...template.matchAll(/\{([\w.]*)\}/g)].map((match) => String(get(row, match[1] || field) ?? ""));
  const quoted = names.map((name) => encodeURIComponent(name.toWellFormed?.() ?? name));
  const isSegment = !template.endsWith("/{}") || ![".", ".."].includes(names[0]);
  if (!isSegment || quoted.includes("") || quoted.join("").length > MAX_LINK_LENGTH) return "";
  return template.replace(/\{[\w.]*\}/g, () => quoted.shift());
}

function moment(at, shown) {
  const iso = dateOf(at).toISOString();
  return make("time", { datetime: iso, title: `${iso.slice(0, -1).replace("T", " ")} UTC` }, shown);
}

function meter(value, whole, title) {
  return whole ? [make("meter", { min: 0, max: whole, value: value, "aria-label": title }), " "] : [];
}

function line(points, now) {
  const measured = points.filter(([, length]) => length !== null);
  if (!measured.length) return [UNKNOWN];
  const lengths = measured.map(([, length]) => length);
  const least = Math.min(...lengths), most = Math.max(...lengths);
  const scale = (LINE_HEIGHT - 2) / Math.max(most, 1);
  const coordinates = ([at, length]) =>
    `${fixed((1 - (now - at) / HISTORY_SECONDS) * LINE_WIDTH, 1)},${fixed(LINE_HEIGHT - 1 - length * scale, 1)}`;
  const properties = {
    viewBox: `0 0 ${LINE_WIDTH} ${LINE_HEIGHT}`, width: LINE_WIDTH, height: LINE_HEIGHT, role: "img",
    "aria-label": `between ${grouped(least)} and ${grouped(most)}`,
  };
  const chart = draw("svg", properties, draw("polyline", { points: measured.map(coordinates).join(" ") }));
  return [chart, make("small", {}, `max ${grouped(most)}`)];
}
