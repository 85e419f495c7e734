// Refreshes a page every two seconds from the JSON that it names, unless the person paused it or selects text.
"use strict";

// Searches for single tasks cost more than the status, which all pages share.
const SEARCH_MS = 10000, MAX_SEARCH_MS = 60000, SEARCH_FACTOR = 200;
const REFRESH_MS = 2000, MIN_CHART_MS = 5000, MAX_CHART_MS = 60000, TIMEOUT_MS = 8000;
const STANDBY =
  "Standby: another exporter receives the events. The counts are from when this one was active.";
const SEVERITIES = ["critical", "warning"];
const { source, page, single } = document.body.dataset;
const pause = byId("pause");
let newest = null; // the data on the page
let isPaused = false;
let timer = null; // of the next refresh
let searchMs = SEARCH_MS; // until the next refresh of single tasks
let chartsDue = 0; // when the charts are read again, in ms

function problemsOf(findings) {
  const rank = ({ severity }) => SEVERITIES.indexOf(severity);
  return findings.filter((finding) => rank(finding) >= 0).sort((a, b) => rank(a) - rank(b));
}

function findingItem({ severity, message, remedy, alert }) {
  const runbook = alert ? [" ", make("a", { href: `runbooks#${alert.toLowerCase()}` }, alert)] : [];
  const parts = [make("b", {}, severity), ` ${message}`, ...runbook, make("br"), make("code", {}, remedy)];
  return make("li", { class: severity }, ...parts);
}

function showProblems({ findings, broker }) {
  const problems = problemsOf(findings), count = problems.length;
  const state = broker.up ? `${count} problem${count === 1 ? "" : "s"}` : "broker down";
  document.title = `${count || !broker.up ? state : "ok"} · ${page} · celery-exporter`;
  byId("problems").className = `badge ${count ? problems[0].severity : "ok"}`;
  byId("problems").textContent = count || "ok";
  const none = make("li", { class: "ok" }, "No problems found.");
  byId("findings")?.replaceChildren(...(count ? problems.map(findingItem) : [none]));
}

function outage({ down_since: since, error, active }) {
  if (since === null) return active === false ? STANDBY : "";
  return `Not open since ${clock(since)} ${zone}: ${error ?? "the broker has not answered yet"}`;
}

function showTime(at) {
  const shown = moment(at, clock(at));
  shown.id = "at";
  byId("at").replaceWith(shown);
}

function show(data) {
  newest = data;
  showProblems(data);
  showTime(data.at);
  byId("outage").textContent = outage(data.broker);
  byId("outage").classList.toggle("standby", outage(data.broker) === STANDBY);
  byId("exporter").textContent = data.exporter_version;
  for (const fact of document.querySelectorAll("#facts dd")) {
    const after = fact.cloneNode();
    after.className = cellClass(fact.dataset, data);
    after.append(...content(fact.dataset, data, data.at));
    replace(fact, after);
  }
  tables.forEach((entry) => fillTable(entry, data));
  showOlder(data.next);
}

function showOlder(cursor) {
  const link = byId("older"), query = new URLSearchParams(parameters);
  if (!link || !cursor) return;
  query.set("cursor", cursor);
  link.href = `?${query}`;
}

function showError(reason) {
  byId("fresh").classList.toggle("stale", Boolean(reason));
  if (byId("why").textContent !== reason) byId("why").textContent = reason; // screen readers read each change
}

async function read(url) {
  const answer = await fetch(root + url, { signal: AbortSignal.timeout(TIMEOUT_MS), cache: "no-store" });
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  return answer.json();
}

async function readCharts() {
  const { page, name } = chartSection.dataset;
  const query = new URLSearchParams({ page, name, range: parameters.get("range") || "15m" });
  const charts = await read(`api/v1/charts?${query}`);
  chartsDue = Date.now() + Math.min(MAX_CHART_MS, Math.max(MIN_CHART_MS, 1000 * charts.step)) - REFRESH_MS / 2;
  if (charts.range === query.get("range")) drawCharts(charts);
}

function isSelecting() {
  const selection = getSelection();
  return !selection.isCollapsed && byId("main").contains(selection.anchorNode);
}

async function update() {
  clearTimeout(timer);
  if (!isPaused && !isSelecting()) {
    try {
      const data = single === undefined ? await read(source) : await readSingle();
      if (!isPaused && !isSelecting()) show(data);
      if (chartSection && Date.now() >= chartsDue) await readCharts();
      showError("");
    } catch (error) {
      showError(` Refresh failed: ${error.message}.`);
    }
  }
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(update, single === undefined ? REFRESH_MS : searchMs);
}

async function readSingle() {
  const summary = await read("api/v1/summary");
  const begin = performance.now();
  const tasks = await read(source);
  searchMs = Math.min(MAX_SEARCH_MS, Math.max(SEARCH_MS, SEARCH_FACTOR * (performance.now() - begin)));
  return { ...summary, ...tasks };
}

function showPause() {
  const isStopped = isPaused || isSelecting();
  pause.textContent = isPaused ? "Resume" : isStopped ? "Paused: text is selected" : "Pause";
  pause.setAttribute("aria-pressed", String(isPaused));
  byId("fresh").classList.toggle("paused", isStopped);
}

function applyChoice() {
  if (newest) show(newest);
  if (chartSection && newestCharts?.range !== (parameters.get("range") || "15m")) {
    chartsDue = 0;
    update();
  }
  showParameters(); // last: it may throw an error
}

const zone = new Intl.DateTimeFormat("en", { timeZoneName: "short" })
  .formatToParts().find(({ type }) => type === "timeZoneName").value;

function showLocalZone() {
  for (const unit of document.querySelectorAll(".zone")) unit.textContent = zone;
}

document.body.classList.add("scripted");
pause.hidden = false;
pause.addEventListener("click", () => {
  isPaused = !isPaused;
  showPause();
  if (!isPaused) update();
});
onChoice(applyChoice);
document.addEventListener("selectionchange", showPause);
document.addEventListener("visibilitychange", () => document.hidden || update());
showLocalZone();
showPause();
update();
