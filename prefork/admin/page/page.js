"use strict";
// One loop: ask for /status.json, show it, wait a second. A rate is the difference of two documents by the server's
// own clock. Everything is written as text, so that no name of an application can become markup.

const EVERY_MS = 1000, PATIENCE_MS = 4000, POINTS = 120, SLOW_MOST = 20;
const WIDTH = 300, HEIGHT = 80; // of a chart's view box
const STATES = ["STARTING", "IDLE", "BUSY", "DRAINING"];
const $ = (id) => document.getElementById(id);

let seen = null; // the last document
let answered = null; // when it came
const series = {}; // by the name of a chart: the last POINTS values, null where nothing is known

// --- figures as people read them

const two = (value) => (value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2));
const short = (value, step, units) => {
  let at = 0;
  for (; value >= 1000 && at < units.length - 1; at++) value /= step;
  return (at || !Number.isInteger(value) ? two(value) : value) + units[at];
};
const count = (value) => value.toLocaleString("en");
const bytes = (value) => short(value, 1024, ["", "k", "M", "G", "T"]);
const percent = (value) => Math.round(value * 100) + " %";
const micros = (value) => (value < 1e6 ? short(value, 1000, [" µs", " ms"]) : seconds(value / 1e6));
function seconds(value) {
  if (Math.abs(value) < 60) return two(value) + " s";
  for (const [name, size, partName, part] of [["d", 86400, "h", 3600], ["h", 3600, "m", 60], ["m", 60, "s", 1]])
    if (value >= size) return `${Math.floor(value / size)} ${name} ${Math.floor((value % size) / part)} ${partName}`;
  return Math.round(value) + " s";
}
const millis = (value) => (value === null ? "-" : value < 1000 ? value + " ms" : seconds(value / 1000));
const known = (write) => (value) => (value === null || value === undefined ? "-" : write(value));

// --- elements

function element(name, fields, ...children) {
  const made = name === "svg" || element.drawn.has(name)
    ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(fields || {})) made.setAttribute(key, value);
  made.append(...children);
  return made;
}
element.drawn = new Set(["path", "line"]);

// A figure and where it stands in the document.
const figure = (place, text) => element("span", { "data-figure": place }, text);

function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function grid(id, columns, rows) {
  const [head, body] = [$(id).tHead, $(id).tBodies[0]];
  if (!head.rows.length)
    head.append(element("tr", null, ...columns.map((c) => element("th", { scope: "col", class: c.side || "" }, c.title))));
  body.replaceChildren(...rows.map((row, at) =>
    element("tr", null, ...columns.map((c) => element("td", { class: c.side || "" }, ...[c.cell(row, at)].flat())))));
}

const pairs = (id, entries) =>
  $(id).replaceChildren(...entries.flatMap(([name, value]) => [element("dt", null, name), element("dd", null, value)]));

// --- charts

const CHARTS = [
  { name: "rate", title: "Requests per second", write: two, least: 1,
    below: (d) => ["errors ", figure("totals.errors", count(d.totals.errors)), ", connections ",
      figure("totals.connections", count(d.totals.connections))] },
  { name: "took", title: "Time in handler, mean", of_loops: "Processor time per request", write: micros, least: 100,
    below: (d) => ["since start p50 ", figure("totals.p50_us", known(micros)(d.totals.p50_us)), ", p99 ",
      figure("totals.p99_us", known(micros)(d.totals.p99_us))] },
  { name: "busy", title: "Busy, mean of all workers", write: percent, least: 1,
    below: (d) => [`${d.workers.filter((w) => w.state === "BUSY").length} of ${d.workers.length} are BUSY now`] },
  { name: "queue", title: "Waiting to be accepted", write: count, least: 4,
    below: (d) => {
      const known = d.listeners.filter((each) => each.queue !== null);
      const sum = (key) => known.reduce((all, each) => all + each[key], 0);
      const queue = known.length ? `limit ${count(sum("limit"))}, dropped ${count(sum("drops"))}` : "not known of Unix sockets";
      return [queue, ", waited p99 ", figure("totals.queue_wait.p99_ms", millis(d.totals.queue_wait.p99_ms))];
    } },
];

function frame(chart) {
  const area = element("path", { class: "area" }), curve = element("path", { class: "curve" });
  const mark = element("line", { class: "mark", y1: 0, y2: HEIGHT, visibility: "hidden" });
  const floor = element("line", { class: "floor", x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT });
  const svg = element("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" },
    floor, area, curve, mark);
  const heading = element("span", null, chart.title), top = element("span"), now = element("output", { "aria-live": "off" }, "-"), below = element("p", { class: "quiet" });
  $("charts").append(element("div", { class: "card", id: chart.name },
    element("h2", null, heading, top), now, below, svg));
  Object.assign(chart, { svg, heading, area, curve, mark, top, now, line: below, at: null });
  series[chart.name] = [];
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    chart.at = Math.round((1 - (event.clientX - box.left) / box.width) * (POINTS - 1)); // seconds ago
    draw(chart);
  });
  svg.addEventListener("pointerleave", () => { chart.at = null; draw(chart); });
}

function ceiling(value) {
  const step = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((times) => times * step).find((limit) => limit >= value);
}

function draw(chart) {
  const values = series[chart.name], last = values.length - 1;
  const most = chart.name === "busy" ? 1 : ceiling(Math.max(chart.least, ...values.map((value) => value ?? 0)));
  const x = (at) => (WIDTH - ((last - at) * WIDTH) / (POINTS - 1)).toFixed(1);
  const y = (value) => (HEIGHT - (value / most) * HEIGHT).toFixed(1);
  let curve = "", area = "", begun = -1;
  for (let at = 0; at <= last + 1; at++) {
    const value = values[at] ?? null;
    if (value !== null) {
      curve += `${begun < 0 ? "M" : "L"}${x(at)} ${y(value)}`;
      area += begun < 0 ? `M${x(at)} ${HEIGHT}L${x(at)} ${y(value)}` : `L${x(at)} ${y(value)}`;
      if (begun < 0) begun = at;
    } else if (begun >= 0) {
      area += `L${x(at - 1)} ${HEIGHT}Z`;
      begun = -1;
    }
  }
  chart.curve.setAttribute("d", curve);
  chart.area.setAttribute("d", area);
  say(chart.top, chart.write(most).replace(/\.0+(?= |$)/, ""));
  const pointed = chart.at !== null && chart.at <= last;
  chart.mark.setAttribute("visibility", pointed ? "visible" : "hidden");
  const at = pointed ? last - chart.at : last;
  chart.mark.setAttribute("x1", x(at));
  chart.mark.setAttribute("x2", x(at));
  say(chart.now, known(chart.write)(values[at]));
  chart.svg.setAttribute("aria-label", `${chart.title}: now ${known(chart.write)(values[last])}, scale to ${chart.write(most)}`);
}

function note(values) {
  for (const chart of CHARTS) {
    series[chart.name].push(values[chart.name] ?? null);
    if (series[chart.name].length > POINTS) series[chart.name].shift();
  }
}

// --- what is shown

const placed = (key, write, at) => (row, number) => figure(`${at}.${number}.${key}`, known(write)(row[key]));
const own = (key, write) => placed(key, write, "workers");
const WORKER = [
  { title: "Slot", cell: own("slot", String) },
  { title: "Pid", cell: own("pid", String) },
  { title: "Gen", cell: own("generation", String) },
  { title: "State", side: "text",
    cell: (row, at) => [element("span", { class: `dot ${row.state}` }), figure(`workers.${at}.state`, row.state)] },
  { title: "Busy",
    cell: (row, at) => [element("span", { class: "bar", style: `--share: ${row.busy_ratio * 100}%` }),
      figure(`workers.${at}.busy_ratio`, percent(row.busy_ratio))] },
  { title: "Conn", cell: own("connections", count) },
  { title: "Requests", cell: own("requests", count) },
  { title: "Per s", cell: (row) => known(two)(row.rate) },
  { title: "Errors", cell: own("errors", count) },
  { title: "In", cell: own("bytes_in", bytes) },
  { title: "Out", cell: own("bytes_out", bytes) },
  { title: "p50", cell: own("p50_us", micros) },
  { title: "p99", cell: own("p99_us", micros) },
  { title: "CPU", cell: own("cpu_s", seconds) },
  { title: "PSS", cell: own("pss_bytes", bytes) },
  { title: "Age", cell: own("age_s", seconds) },
  { title: "Time left", cell: own("deadline_in_s", seconds) },
  { title: "Serving", side: "text", cell: serving },
];
const SLOW = [
  { title: "Slot", cell: (row) => figure(`workers.${row.row}.slot`, String(row.slot)) },
  { title: "Took", cell: (row) => figure(`workers.${row.row}.slow.${row.entry}.took_s`, seconds(row.took_s)) },
  { title: "Ended", cell: (row) => new Date(row.ended).toLocaleString() },
  { title: "Request", side: "text",
    cell: (row) => figure(`workers.${row.row}.slow.${row.entry}.request`, row.request) },
];
// Failures, each of them once, in words.
const KINDS = {
  app: "Failed in the application", aborted: "Failed in the midst of a response", refused: "Refused, malformed or over a limit",
  timeout: "Client too slow", client_gone: "Client left",
};
function serving(row, at) {
  const [first, ...others] = row.work;
  if (!first) return "";
  return [figure(`workers.${at}.work.0.serving`, first.serving ?? "-"),
    (first.busy_s === null ? "" : ` for ${seconds(first.busy_s)}`) + (others.length ? `, and ${others.length} more` : "")];
}
const LISTENER = [
  { title: "Address", side: "text", cell: placed("address", String, "listeners") },
  { title: "Queue", cell: placed("queue", count, "listeners") },
  { title: "Limit", cell: placed("limit", count, "listeners") },
  { title: "Drops", cell: placed("drops", count, "listeners") },
];
const TOTALS = [
  ["Connections accepted", "accepted", count], ["Closed", "closed", count], ["Cut", "cut", count],
  ["Handed over", "given", count], ["In transfer", "in_transfer", count], ["Requests", "requests", count],
  ["Bytes in", "bytes_in", bytes], ["Bytes out", "bytes_out", bytes], ["Time in handlers", "busy_s", seconds],
];

function mood(server) {
  return server.unready ? `not ready: ${server.unready}` : server.reloading ? "reloading" : "ready";
}

function show(found) {
  const server = found.server;
  say(document.querySelector("h1 span"), server.app);
  document.title = `${server.app} · ${mood(server)} · prefork`;
  say($("state"), mood(server));
  $("state").className = server.unready ? "unready" : mood(server);
  $("facts").replaceChildren("prefork ", figure("server.version", server.version), ", pid ",
    figure("server.pid", String(server.pid)), ", up ", figure("server.uptime_s", seconds(server.uptime_s)),
    ", generation ", figure("server.generation", String(server.generation)), ", ",
    figure("server.workers", String(server.workers)), ` workers wanted × ${server.config.threads} threads, `,
    server.kind ? `${server.kind} by ${server.engine}` : "not loaded yet", `, accept ${server.accept}`);
  for (const chart of CHARTS) {
    draw(chart);
    say(chart.heading, (server.engine === "aio" && chart.of_loops) || chart.title); // where busy_s is the loop's own time
    chart.line.replaceChildren(...chart.below(found));
  }
  $("strip").replaceChildren(...found.workers.map((worker) => element("span",
    { class: worker.state, title: `worker ${worker.slot}, pid ${worker.pid}: ${worker.state}` }, String(worker.slot))));
  grid("workers", WORKER, found.workers);
  grid("listeners", LISTENER, found.listeners);
  pairs("totals", TOTALS.map(([name, key, write]) => [name, figure(`totals.${key}`, write(found.totals[key]))]));
  pairs("failures", Object.entries(found.totals.errors_by_kind).map(([kind, number]) =>
    [KINDS[kind] ?? kind, figure(`totals.errors_by_kind.${kind}`, count(number))]));
  const causes = Object.entries(found.totals.respawns);
  pairs("respawns", causes.length
    ? causes.map(([cause, number]) => [cause, figure(`totals.respawns.${cause}`, count(number))]) : [["none so far", ""]]);
  const last = server.last_reload;
  say($("reload"), last ? `Last reload: generation ${last.generation}, ${new Date(last.ended).toLocaleString()}, `
    + (last.ok ? "done" : `abandoned: ${last.reason}`) : "");
  showSlow(found.workers);
}

function showSlow(workers) {
  const slow = workers.flatMap((worker, row) => worker.slow.map((each, entry) => ({ ...each, slot: worker.slot, row, entry })));
  slow.sort((one, other) => (one.ended < other.ended ? 1 : -1));
  $("slow").hidden = !slow.length;
  grid("requests", SLOW, slow.slice(0, SLOW_MOST));
}

// --- the loop

function compare(found) {
  const same = seen && seen.server.pid === found.server.pid;
  const passed = same ? found.server.uptime_s - seen.server.uptime_s : 0;
  const more = (key) => found.totals[key] - seen.totals[key];
  const before = new Map(same ? seen.workers.map((worker) => [worker.pid, worker.requests]) : []);
  for (const worker of found.workers)
    worker.rate = passed > 0 && before.has(worker.pid) ? (worker.requests - before.get(worker.pid)) / passed : null;
  const queues = found.listeners.map((each) => each.queue).filter((queue) => queue !== null);
  note({
    rate: passed > 0 ? more("requests") / passed : null,
    took: passed > 0 && more("requests") > 0 ? (more("busy_s") / more("requests")) * 1e6 : null,
    busy: found.workers.length
      ? found.workers.reduce((all, worker) => all + worker.busy_ratio, 0) / found.workers.length : null,
    queue: queues.length ? queues.reduce((all, queue) => all + queue, 0) : null,
  });
}

function trouble(text) {
  say($("trouble"), text);
  $("trouble").hidden = !text;
}

function gone() {
  document.documentElement.classList.add("gone");
  say($("state"), "gone");
  $("state").className = "gone";
  document.title = "gone · prefork";
  trouble(answered ? `The server does not answer. This is how it was at ${answered.toLocaleTimeString()}.`
    : "The server does not answer.");
  note({});
  CHARTS.forEach(draw);
}

async function ask(path) {
  return fetch(path, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
}

async function look() {
  const [status, health] = await Promise.all([ask("/status.json"), ask("/healthz")]);
  if (!status.ok) throw new Error(`status ${status.status}`);
  return { found: await status.json(), sick: health.ok ? "" : (await health.text()).trim() };
}

async function turn() {
  const began = performance.now();
  const answer = await look().catch(() => null);
  setTimeout(turn, Math.max(0, EVERY_MS - (performance.now() - began)));
  if (!answer) {
    gone();
    return;
  }
  compare(answer.found);
  seen = answer.found;
  answered = new Date();
  document.documentElement.classList.remove("gone");
  trouble(answer.sick && `Workers may serve on, but ${answer.sick}.`);
  show(seen);
}

CHARTS.forEach(frame);
turn();
