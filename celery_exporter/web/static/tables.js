// Fills the tables of a page. Their heads define the columns, and the URL says how they are sorted, filtered and expanded.
"use strict";

const NARROW_ROWS = 5; // as in web/pages/tables.py

const tables = [...document.querySelectorAll("table")].map((table) => ({
  table,
  search: document.querySelector(`input[data-table="${table.id}"]`),
  columns: [...table.querySelectorAll("th")].map((head) => ({ head, ...head.dataset })),
  lines: new Map(), // key → row
}));

const parameters = new URLSearchParams(location.search); // those of the page now

function setParameter(name, value) {
  if (value) parameters.set(name, value);
  else parameters.delete(name);
}

function showParameters() {
  const query = parameters.toString();
  history.replaceState(null, "", query ? `?${query}` : location.pathname); // browsers limit how often it is called
}

function rank(row, { field, kind }) {
  const value = get(row, field);
  if (value === null) return null;
  return typeof value === "object" ? total(value) : kind === "ago" ? -value : value;
}

function ordered(rows, columns, sort) {
  const field = sort.replace(/^-/, ""), sign = sort === field ? 1 : -1;
  const column = columns.find((column) => column.field === field);
  if (!column) return rows;
  const compare = (a, b) => {
    const [left, right] = [rank(a, column), rank(b, column)];
    if (left === null || right === null) return (left === null) - (right === null);
    return left < right ? -sign : left > right ? sign : 0;
  };
  return [...rows].sort(compare);
}

function matches(columns, row, contains) {
  const sought = contains.toLowerCase();
  const texts = columns.filter(({ kind }) => kind === "text").map(({ field }) => get(row, field) || "");
  return !sought || texts.some((value) => value.toLowerCase().includes(sought));
}

function sortOf({ table, columns }) {
  const wanted = table.dataset.sort && (parameters.get(`${table.dataset.prefix}sort`) || "");
  const isField = columns.some(({ field, kind }) => kind !== "line" && field === wanted.replace(/^-/, ""));
  return isField ? wanted : table.dataset.sort;
}

function fillTable(entry, data) {
  const { table, columns } = entry;
  const { prefix, rows: collapsed, maxRows } = table.dataset;
  const sort = sortOf(entry);
  const all = get(data, table.dataset.field || table.id);
  const matching = all.filter((row) => matches(columns, row, parameters.get(`${prefix}filter`) || ""));
  const isExpanded = parameters.get(`${prefix}rows`) === "all";
  const rows = ordered(ordered(matching, columns, table.dataset.then), columns, sort);
  const part = table.closest(".tree"), tree = part && levels(rows);
  if (part) part.hidden = all.length < 2;
  const lines = new Map();
  for (const [index, row] of rows.slice(0, Number(isExpanded ? maxRows : collapsed)).entries()) {
    const key = get(row, table.dataset.key) ?? index;
    const line = tableRow(columns, row, data.at);
    if (tree) line.dataset.depth = tree.get(row.uuid);
    if (tree && row.uuid === data.task.uuid) line.setAttribute("aria-current", "true");
    lines.set(lines.has(key) ? `${key} ${index}` : key, line);
  }
  if (!lines.size) {
    const cell = make("td", { role: "cell", colspan: columns.length }, table.dataset.empty);
    lines.set("", make("tr", { role: "row" }, cell));
  }
  byId(`${table.id}-count`).textContent = grouped(all.length);
  showLines(entry, lines);
  table.toggleAttribute("data-expanded", isExpanded);
  byId(`${table.id}-more`).replaceChildren(...more(table, rows.length, isExpanded));
  for (const { head, field } of columns)
    if (head.hasAttribute("aria-sort"))
      head.setAttribute("aria-sort", { [field]: "ascending", [`-${field}`]: "descending" }[sort] ?? "none");
}

// Returns how deep below a root each task of a workflow is. A task is after the one that sent it.
function levels(tasks) {
  const byUuid = new Map();
  for (const { uuid, parent_id: parent } of tasks) byUuid.set(uuid, (byUuid.get(parent) ?? -1) + 1);
  return byUuid;
}

// Shows rows. What is as before stays in the document, so that a link or a button keeps the focus.
function showLines(entry, lines) {
  const [body] = entry.table.tBodies;
  for (const [key, line] of lines) lines.set(key, updated(entry.lines.get(key), line));
  entry.lines = lines;
  const focused = document.activeElement;
  const isSame = lines.size === body.rows.length && [...lines.values()].every((line, index) => line === body.rows[index]);
  if (!isSame) body.replaceChildren(...lines.values());
  if (body.contains(focused) && focused !== document.activeElement) focused.focus({ preventScroll: true });
}

function updated(before, line) {
  if (!before || before.cells.length !== line.cells.length || before.dataset.depth !== line.dataset.depth) return line;
  for (const [index, cell] of [...line.cells].entries()) replace(before.cells[index], cell);
  return before;
}

function tableRow(columns, row, now) {
  const cells = columns.map((column) =>
    make("td", { role: "cell", class: cellClass(column, row), "data-title": column.label }, ...content(column, row, now)));
  return make("tr", { role: "row" }, ...cells);
}

function more(table, count, isExpanded) {
  const collapsed = Number(table.dataset.rows), most = Math.min(count, Number(table.dataset.maxRows));
  if (count <= NARROW_ROWS) return [];
  const hidden = count - (isExpanded ? most : collapsed);
  const label = isExpanded ? "show fewer" : `show ${most === count ? "all " : ""}${grouped(most)}`;
  const key = `${table.dataset.prefix}rows`, value = isExpanded ? "" : "all";
  const query = new URLSearchParams(parameters);
  if (value) query.set(key, value);
  else query.delete(key);
  const link = make("a", { href: `?${query}#${table.id}-title`, "data-set": `${key}=${value}` }, label);
  if (count <= collapsed) return [make("span", { class: "narrow" }, link)];
  const kind = isExpanded ? {} : { class: "broad" };
  return hidden > 0 ? [make("span", kind, `and ${grouped(hidden)} more: `), link] : [link];
}

// -- choices of the person --------------------------------------------------------------------------------

function sortBy(entry, { field, kind }) {
  const [first, second] = kind === "text" ? [field, `-${field}`] : [`-${field}`, field];
  setParameter(`${entry.table.dataset.prefix}sort`, sortOf(entry) === first ? second : first);
}

function onChoice(apply) {
  for (const entry of tables) {
    for (const column of entry.columns)
      column.head.querySelector("a")?.addEventListener("click", (event) => {
        event.preventDefault();
        sortBy(entry, column);
        apply();
      });
    entry.search?.addEventListener("input", () => {
      setParameter(entry.search.name, entry.search.value);
      apply();
    });
    entry.search?.form.addEventListener("submit", (event) => event.preventDefault());
  }
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[data-set]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    setParameter(...link.dataset.set.split("="));
    apply();
  });
}
