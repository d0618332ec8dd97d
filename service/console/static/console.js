// The console: asks the admin port's own calls, keeps nothing but a key for this tab.

import { drawLine, drawPath, element, newChart } from "/console/charts.js";

const POLL_MS = 2000, KEPT_POLLS = 60;
const at = (id) => document.getElementById(id);

async function ask(path, body) {
  const headers = {};
  const key = sessionStorage.getItem("key");
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  const response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  const document = await response.json();
  if (response.status === 401 || response.status === 403) at("key-dialog").open || at("key-dialog").showModal();
  if (!response.ok) throw new Error(document.detail || `status ${response.status}`);
  return document;
}

at("key-form").addEventListener("submit", () => {
  sessionStorage.setItem("key", at("key").value);
  at("key").value = "";
  start();
});

// --- live ---------------------------------------------------------------------------------------

let earlier = null;
const rates = [];

function total(live, name, wanted = {}) {
  return live.samples
    .filter(([sample, labels]) => sample === name && Object.entries(wanted).every(([key, value]) => labels[key] === value))
    .reduce((sum, sample) => sum + sample[2], 0);
}

const since = (live, name, wanted) => total(live, name, wanted) - (earlier ? total(earlier, name, wanted) : 0);

/** The quantile of a histogram's growth between two polls, in seconds; null when nothing happened. */
function quantile(live, stage, share) {
  const buckets = live.samples
    .filter(([name, labels]) => name === "stage_seconds_bucket" && labels.stage === stage)
    .map(([, labels]) => [labels.le === "+Inf" ? Infinity : Number(labels.le), since(live, "stage_seconds_bucket", { stage, le: labels.le })])
    .sort((one, other) => one[0] - other[0]);
  const all = buckets.length ? buckets[buckets.length - 1][1] : 0;
  if (all <= 0) return null;
  let below = [0, 0];
  for (const [bound, count] of buckets) {
    if (count >= share * all) {
      if (bound === Infinity) return below[0];
      return below[0] + ((share * all - below[1]) / Math.max(1, count - below[1])) * (bound - below[0]);
    }
    below = [bound, count];
  }
  return below[0];
}

const milliseconds = (seconds) => (seconds === null ? "–" : `${(1000 * seconds).toPrecision(3)} ms`);

function age(created) {
  const minutes = Math.max(0, (Date.now() - Date.parse(created)) / 60000);
  return minutes < 120 ? `${Math.round(minutes)} min` : `${(minutes / 60).toFixed(1)} h`;
}

function tile(name, value) {
  return element("div", {}, element("dt", {}, name), element("dd", {}, value));
}

function fill(table, head, rows) {
  const cells = (row, kind) => element("tr", {}, ...row.map((cell, place) => {
    const made = element(kind, place && typeof cell === "string" && /^[-–\d]/.test(cell) ? { class: "number" } : {});
    made.append(cell);
    return made;
  }));
  table.replaceChildren(element("thead", {}, cells(head, "th")), element("tbody", {}, ...rows.map((row) => cells(row, "td"))));
  table.querySelectorAll("tbody tr:first-child td").forEach((cell, place) =>
    table.querySelectorAll("th")[place].classList.toggle("number", cell.classList.contains("number")));
}

function showLive(live) {
  const seconds = earlier ? live.at - earlier.at : 0;
  const rate = seconds ? since(live, "responses_total", { route: "recall" }) / seconds : 0;
  const popular = since(live, "recalls_total", { route: "popular" }), recalls = since(live, "recalls_total");
  const batches = since(live, "batch_size_count");
  if (earlier) rates.push(rate);
  if (rates.length > KEPT_POLLS) rates.shift();
  at("bundle").textContent = `${live.bundle}${live.forced ? " · published by force" : ""}`;
  at("tiles").replaceChildren(
    tile("recalls / s", earlier ? rate.toFixed(1) : "–"),
    tile("p50", milliseconds(quantile(live, "total", 0.5))),
    tile("p99", milliseconds(quantile(live, "total", 0.99))),
    tile("a batch", batches ? (since(live, "batch_size_sum") / batches).toFixed(1) : "–"),
    tile("queue", String(total(live, "queue_depth"))),
    tile("popular instead", recalls ? `${((100 * popular) / recalls).toFixed(1)} %` : "–"),
    tile("bundle's age", age(live.created)),
    tile("new / deleted items", `${total(live, "delta_items")} / ${total(live, "tombstones")}`),
  );
  drawLine(at("rate"), rates.length ? rates : [0], { first: `${rates.length * (POLL_MS / 1000)} s ago`, last: "now" });
  fill(at("stages"), ["stage", "p50", "p99"], ["store", "queue", "tower", "search", "total"].map((stage) =>
    [stage, milliseconds(quantile(live, stage, 0.5)), milliseconds(quantile(live, stage, 0.99))]));
  const reasons = live.samples.filter(([name]) => name === "fallbacks_total");
  fill(at("fallbacks"), ["reason", "since the start"], reasons.length
    ? reasons.map(([, labels, value]) => [`${labels.reason}${labels.degraded === "true" ? " (degraded)" : ""}`, String(value)])
    : [["none since the start", ""]]);
  fill(at("checks"), ["gate", "figure", "limit", ""], live.checks.map((check) => {
    const passed = element("span", { class: check.passed ? "new" : "failed" }, check.passed ? "holds" : "does not hold");
    return [check.name, short(check.value), short(check.limit), passed];
  }));
  earlier = live;
}

const short = (value) => (typeof value === "number" ? String(Number(value.toPrecision(4))) : String(value ?? "–"));

// --- a user -------------------------------------------------------------------------------------

let shownBefore = new Set();

const named = (entry) => (entry.title ? `${entry.title} (${entry.item_id})` : entry.item_id);

function showSequence(rows) {
  const table = element("table");
  const latest = [...rows].reverse();
  fill(table, ["behaviour, latest first", "when"], latest.map((row) =>
    [named(row), row.timestamp === null ? "–" : new Date(row.timestamp * 1000).toISOString().replace("T", " ").slice(0, 16)]));
  table.querySelectorAll("tbody tr").forEach((line, place) => {
    const row = latest[place], newer = latest[place - 1];
    line.classList.toggle("session", row.in_session);
    line.classList.toggle("unread", !row.read);
    line.classList.toggle("boundary", Boolean(newer && newer.in_session && !row.in_session));
  });
  return element("div", { class: "scroll", tabindex: "0" }, table);
}

function showCandidates(answer, fresh) {
  const table = element("table");
  fill(table, ["candidate", "score", "nearest in the history", ""], answer.candidates.map((candidate) => {
    const button = element("button", { class: "small", type: "button", title: "store that this user consumed it" }, "consumed");
    button.addEventListener("click", () => consume(candidate.item_id));
    const name = element("span", fresh && !shownBefore.has(candidate.item_id) ? { class: "new" } : {}, named(candidate));
    const near = candidate.near ? `${candidate.near.title || candidate.near.item_id} · ${candidate.near.cosine.toFixed(2)}` : "–";
    return [name, candidate.score.toFixed(4), near, button];
  }));
  return element("div", { class: "scroll", tabindex: "0" }, table);
}

function showAnswer(answer, fresh) {
  const timings = Object.entries(answer.timings_ms).map(([stage, took]) => `${stage} ${took.toFixed(2)} ms`).join(", ");
  const parts = [
    element("h3", {}, `${answer.bundle}`),
    element("p", { class: "route" }, `route ${answer.route}${answer.reason ? ` (${answer.reason})` : ""}${answer.arm ? `, arm ${answer.arm}` : ""}${timings ? ` · ${timings}` : ""}`),
    element("h3", {}, `Sequence, ${answer.sequence.length} behaviours; coloured: the present session; faint: not read by the model`),
    showSequence(answer.sequence),
    element("h3", {}, "Candidates"),
    showCandidates(answer, fresh),
  ];
  if (answer.generation) {
    const cosine = newChart("cosine of x̂ to the final x̂ at each step"), path = newChart("path from noise to intent", true);
    drawLine(cosine, answer.generation.cosine, {
      low: Math.min(0, ...answer.generation.cosine), high: 1,
      first: `step ${answer.generation.steps[0]}`, last: `step ${answer.generation.steps.at(-1)}`,
    });
    drawPath(path, answer.generation);
    parts.push(
      element("h3", {}, "The diffusion"),
      element("div", { class: "row" },
        element("figure", {}, element("figcaption", {}, "Cosine of x̂ at each step to the final x̂"), cosine),
        element("figure", {}, element("figcaption", {}, "From noise (dashed) to intent (orange: x̂), among items (grey), history (blue) and candidates (green)"), path),
      ),
    );
  }
  return element("article", {}, ...parts);
}

async function recall() {
  const user = at("user").value;
  at("message").textContent = "";
  try {
    const body = { user_id: user, top_k: Number(at("top-k").value) };
    if (at("compare").value) body.compare = at("compare").value;
    const answered = await ask("/console/recall", body);
    const same = at("answers").dataset.user === user;
    at("answers").replaceChildren(...answered.answers.map((answer, place) => showAnswer(answer, same && place === 0)));
    at("answers").dataset.user = user;
    shownBefore = new Set(answered.answers[0].candidates.map((candidate) => candidate.item_id));
    history.replaceState(null, "", `?user=${encodeURIComponent(user)}`);
  } catch (error) {
    at("message").textContent = error.message;
  }
}

async function consume(itemId) {
  try {
    await ask("/console/event", { user_id: at("user").value, item_id: itemId });
    await recall();
    at("message").textContent = `stored: ${itemId}; candidates in green were not there before`;
  } catch (error) {
    at("message").textContent = error.message;
  }
}

at("ask").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  recall();
});

// --- start --------------------------------------------------------------------------------------

async function poll() {
  try {
    showLive(await ask("/console/live"));
  } catch (error) {
    at("bundle").textContent = error.message;
  }
}

async function start() {
  await poll();
  try {
    const { served, bundles } = await ask("/console/bundles");
    at("compare").replaceChildren(
      element("option", { value: "" }, "no other bundle"),
      ...bundles.filter((bundle) => bundle !== served).map((bundle) => element("option", { value: bundle }, bundle)),
    );
  } catch (error) {
    at("message").textContent = error.message;
  }
  const user = new URLSearchParams(location.search).get("user");
  if (user && !at("user").value) {
    at("user").value = user;
    recall();
  }
}

start();
setInterval(poll, POLL_MS);
