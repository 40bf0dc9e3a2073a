// The page: follows /api/events, asks for the hour of what is chosen, explains URLs, and acts with the token.

const figures = {};
for (const [key, title] of [["rate", "requests a second"], ["error_rate", "failures a second"], ["in_flight", "in flight"], ["queued", "waiting"], ["ready", "endpoints ready"]]) {
  const value = el("dd", "", "–");
  const box = el("div", "", el("dt", "", title), value);
  figures[key] = { box, value };
  byId("figures").append(box);
}

const charts = hourCharts();
byId("charts").append(...charts.figures);
let hourOf = null;
const list = serviceList((id) => { hourOf = id; drawHourOf(); loadHour(); }, (command, service) => give(command, service));
byId("hour-all").addEventListener("click", () => { list.choose(null); byId("hour-title").scrollIntoView(); });

function drawHourOf() {
  setText(byId("hour-of"), hourOf === null ? "all services" : hourOf);
  show(byId("hour-all"), hourOf !== null);
}

const NOTHING = (() => {
  const zeros = new Array(STEPS).fill(0);
  const nulls = new Array(STEPS).fill(null);
  const phases_ms = { queued: nulls, starting: nulls, booting: nulls, admitting: nulls, first_byte: nulls };
  return { step: 10, until: null, requests: zeros, errors: zeros, median_ms: nulls, p99_ms: nulls, cold: zeros, phases_ms };
})();

async function loadHour() {
  const of = hourOf;
  const query = of === null ? "" : `?revision=${encodeURIComponent(of)}`;
  try {
    const answer = await fetch(`/api/history${query}`);
    const hour = answer.ok ? await answer.json() : NOTHING;
    if (of === hourOf) charts.draw(hour, gateway ? gateway.startedAt : 0);
  } catch {
    // The stream says that the gateway is gone.
  }
}

// The stream.

let gateway = null;
let stream = null;

function state(text, kind) {
  setText(byId("state-text"), text);
  const dot = document.querySelector("#state .dot");
  dot.className = `dot ${kind}`;
}

function follow() {
  stream = new EventSource("/api/events");
  stream.addEventListener("snapshot", (event) => take(JSON.parse(event.data), true));
  stream.addEventListener("change", (event) => take(JSON.parse(event.data), false));
  stream.addEventListener("error", () => {
    state("the gateway does not answer, trying again", "gone");
    // A browser tries again by itself after a broken connection, but not after a refusal.
    if (stream.readyState === EventSource.CLOSED) setTimeout(follow, 5000);
  });
}

function take(data, isSnapshot) {
  if (data.gateway) gateway = data.gateway;
  drawGateway(data.at);
  if (data.config) drawConfig(data.config);
  if (isSnapshot) byId("decisions").replaceChildren();
  drawDecisions(data.decisions || []);
  list.update(data, isSnapshot);
  const omitted = gateway.omitted > 0 ? `, ${count(gateway.omitted)} revisions not shown` : "";
  setText(byId("services-count"), `${count(list.size())} with ${count(gateway.revisions)} revisions${omitted}`);
  if (data.history) loadHour();
}

function drawGateway(at) {
  state(gateway.notReady ? gateway.notReady : "live", gateway.notReady ? "" : "live");
  const up = since(Math.max(0, at - gateway.startedAt));
  setText(byId("about"), `${gateway.version} · process ${gateway.pid}, up ${up} · generation ${gateway.generation} · ${gateway.listeners.join(", ")}`);
  for (const key of ["rate", "error_rate"]) setText(figures[key].value, rate(gateway[key]));
  for (const key of ["in_flight", "queued", "ready"]) setText(figures[key].value, count(gateway[key]));
  toggle(figures.error_rate.box, "bad", gateway.error_rate > 0);
  show(byId("actions"), gateway.token !== null);
  list.allow(gateway.token !== null);
  setText(byId("actions-note"), gateway.token !== null ? "" : "A page may change nothing here: admin.token is not set. sluice upgrade works from this machine.");
  show(byId("actions-note"), gateway.token === null);
}

function drawConfig(config) {
  const many = (n, what) => `${count(n)} ${what}${n === 1 ? "" : "s"}`;
  const alert = byId("alert");
  show(alert, config.rejected);
  setText(alert, config.rejected ? `The configuration on disk has ${many(config.errors, "mistake")}: the last good one is served.` : "");
  const warned = config.warnings > 0 ? ` with ${many(config.warnings, "warning")}` : "";
  const when = timeOf(config.at);
  setText(byId("config-state"), config.rejected ? `Rejected at ${when}.` : `Applied${warned}, last read at ${when}.`);
  byId("mistakes").replaceChildren(...config.items.map((item) => {
    const place = item.file ? `${item.file}${item.line ? `:${item.line}:${item.column}` : ""}` : "";
    const lines = [el("div", "", item.message)];
    if (place || item.path) lines.push(el("div", "code dim", [place, item.path].filter(Boolean).join("  ")));
    if (item.hint) lines.push(el("div", "hint", item.hint));
    return el("li", "", el("span", item.severity === "error" ? "error" : "warning", item.severity === "error" ? "error" : "warning"), el("div", "", ...lines));
  }));
}

function drawDecisions(decisions) {
  const all = byId("decisions");
  for (const decision of decisions) {
    const time = el("time", "", timeOf(decision.at));
    all.prepend(el("li", "", time, el("div", "", el("span", "dim", `${decision.revision}  `), decision.text)));
  }
  while (all.children.length > 100) all.lastChild.remove();
  show(all, all.children.length > 0);
  show(byId("decisions-empty"), all.children.length === 0);
  // What scrolls has to be reachable by keyboard.
  all.tabIndex = 0;
}

// Explain.

const ORDER = ["listener", "host", "path", "service", "paused", "route", "tag", "split", "revision", "backend", "rewrite", "reason", "why"];

// A value in words: what does not apply is left out.
function explained(value) {
  if (typeof value !== "object" || value === null) return String(value);
  if (Array.isArray(value)) return value.map(explained).join("\n");
  const applies = ([, part]) => part !== null && part !== false && !(Array.isArray(part) && part.length === 0);
  return Object.entries(value).filter(applies).map(([key, part]) => (part === true ? key : `${key} ${explained(part)}`)).join(", ");
}

byId("explain").addEventListener("submit", async (event) => {
  event.preventDefault();
  const out = byId("explained");
  const query = new URLSearchParams({ url: byId("explain-url").value, method: byId("explain-method").value || "GET" });
  for (const line of byId("explain-headers").value.split("\n")) if (line.trim()) query.append("header", line);
  let answer;
  try {
    answer = await (await fetch(`/api/explain?${query}`)).json();
  } catch {
    out.replaceChildren(el("p", "verdict no", "The gateway does not answer."));
    return;
  }
  if (answer.error) {
    out.replaceChildren(el("p", "verdict no", answer.error));
    return;
  }
  const verdict = answer.found ? el("p", "verdict", "This would be served.") : el("p", "verdict no", "Nothing would serve this.");
  const terms = ORDER.filter((key) => answer[key] !== undefined && answer[key] !== null)
    .map((key) => [key, explained(answer[key])])
    .filter(([, text]) => text !== "")
    .flatMap(([key, text]) => [el("dt", "", key), el("dd", "", text)]);
  out.replaceChildren(verdict, el("dl", "", ...terms));
});

// Actions. The token is in this variable and in its field, and nowhere else.

let token = "";
byId("token").addEventListener("input", (event) => { token = event.target.value.trim(); });

const tell = (text, bad) => { const acted = byId("acted"); setText(acted, text); toggle(acted, "bad", bad); };

// Whether there is a token to act with.
function hasToken() {
  if (token !== "") return true;
  byId("token").focus();
  tell("The token is needed.", true);
  return false;
}

// A command for a service: what it did is told, and the stream shows it.
async function give(command, service) {
  if (!hasToken()) return;
  try {
    const answer = await fetch(`/api/${command}?service=${encodeURIComponent(service)}`, { method: "POST", headers: { Authorization: `Bearer ${token}` } });
    const said = await answer.json();
    if (said.done) tell(`${said.service}: ${said.message}.`, false);
    else tell(answer.status === 401 ? "This is not the token." : `Not done: ${said.error}`, true);
  } catch {
    tell("No answer came. The list above shows what is so.", true);
  }
}

byId("actions").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (!hasToken()) return;
  if (!confirm("Start the binary now on disk in place of this process?")) return;
  byId("upgrade").disabled = true;
  tell("Upgrading: this takes as long as the new process needs to get ready.", false);
  try {
    const answer = await fetch("/api/upgrade", { method: "POST", headers: { Authorization: `Bearer ${token}` } });
    const said = await answer.json();
    if (said.upgraded) tell(`Process ${said.pid} serves; process ${said.previousPid} finishes what it has.`, false);
    else tell(answer.status === 401 ? "This is not the token." : `Not upgraded: ${said.error}`, true);
  } catch {
    tell("No answer came. The list above shows which process serves.", true);
  }
  byId("upgrade").disabled = false;
});

drawHourOf();
charts.draw(NOTHING, 0);
follow();
