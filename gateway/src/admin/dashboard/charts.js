// Charts of an hour: 360 steps of 10 s, the last one at the right. A chart is a slider for the keyboard and for screen
// readers: it has a cursor, and its legend says what is there.

const STEPS = 360;
const HEIGHT = 100;

// The next of 1, 2, 5, 10, …
function niceMost(most) {
  if (!(most > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(most));
  return [1, 2, 5, 10].map((n) => n * power).find((n) => n >= most * 0.999);
}

const y = (value, most) => (HEIGHT - (value / most) * HEIGHT).toFixed(2);

// A line with gaps where there is no value.
function linePath(values, most) {
  let path = "";
  let open = false;
  values.forEach((value, x) => {
    if (value === null) { open = false; return; }
    // A value between two gaps is a short line, or it would not be seen.
    path += open ? `L${x} ${y(value, most)}` : `M${x} ${y(value, most)}h.6`;
    open = true;
  });
  return path;
}

function areaPath(values, most) {
  const top = values.map((value, x) => `L${x} ${y(value || 0, most)}`).join("");
  return `M0 ${HEIGHT}${top}L${values.length - 1} ${HEIGHT}Z`;
}

// One chart. `layers` are [{name, color, kind}], drawn in order; `format` shows a value. Returns the figure and a
// function that draws {until, step, values: [[…], …], summary: […]}.
function chart(title, layers, format, nothing) {
  const picture = svg("svg", "", { viewBox: `0 0 ${STEPS - 1} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  const grid = svg("path", "grid", { d: `M0 0H${STEPS - 1}M0 ${HEIGHT / 2}H${STEPS - 1}`, fill: "none" });
  const cursor = svg("path", "cursor", { fill: "none" });
  const drawn = layers.map((layer) => {
    const area = layer.kind === "area" ? svg("path", `area ${layer.color}`) : null;
    const line = svg("path", `${layer.kind === "bars" ? "bars" : "line"} ${layer.color}`);
    return { area, line };
  });
  picture.append(grid, ...drawn.flatMap((d) => (d.area ? [d.area, d.line] : [d.line])), cursor);
  const most = el("span", "most");
  const none = el("span", "none", nothing);
  const plot = el("div", "plot", picture, most, none);
  plot.tabIndex = 0;
  plot.setAttribute("role", "slider");
  plot.setAttribute("aria-label", `${title}, the last hour`);
  plot.setAttribute("aria-valuemin", "0");
  plot.setAttribute("aria-valuemax", String(STEPS - 1));
  const when = el("span", "dim");
  const legend = el("ul", "legend");
  const values = layers.map((layer) => {
    const value = el("b", "");
    legend.append(el("li", "", el("span", `swatch ${layer.color}`), layer.name, value));
    return value;
  });
  legend.setAttribute("role", "list");
  const first = el("span", "", "1 h ago");
  const figure = el("figure", "chart", el("figcaption", "", el("b", "", title), when), plot,
    el("div", "ends", first, el("span", "", "now")), legend);
  let data = null;
  let at = null;

  function tell() {
    if (!data) return;
    const told = layers.map((_, n) => (at === null ? data.summary[n] : data.values[n][at]));
    told.forEach((value, n) => setText(values[n], format(value)));
    const time = at === null ? data.what : timeOf(data.until - (STEPS - 1 - at) * data.step);
    setText(when, time);
    cursor.setAttribute("d", at === null ? "" : `M${at} 0V${HEIGHT}`);
    plot.setAttribute("aria-valuenow", String(at === null ? STEPS - 1 : at));
    const all = layers.map((layer, n) => `${layer.name} ${format(told[n])}`).join(", ");
    plot.setAttribute("aria-valuetext", `${time}: ${all}`);
  }

  function move(to) {
    at = to === null ? null : Math.max(0, Math.min(STEPS - 1, Math.round(to)));
    tell();
  }

  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    move(((event.clientX - box.left) / box.width) * (STEPS - 1));
  });
  plot.addEventListener("pointerleave", () => move(null));
  plot.addEventListener("blur", () => move(null));
  plot.addEventListener("keydown", (event) => {
    const from = at === null ? STEPS - 1 : at;
    const to = { ArrowLeft: from - 1, ArrowRight: from + 1, PageUp: from - 30, PageDown: from + 30, Home: 0, End: STEPS - 1, Escape: null }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    move(to);
  });

  function draw(next) {
    data = next;
    const stacked = layers[0].kind === "bars";
    const sums = stacked
      ? next.values[0].map((_, x) => next.values.reduce((sum, layer) => sum + (layer[x] || 0), 0))
      : next.values.flat().filter((value) => value !== null);
    const highest = sums.reduce((a, b) => Math.max(a, b), 0);
    const top = niceMost(highest);
    show(none, highest === 0);
    show(most, highest > 0);
    setText(most, format(top));
    const base = new Array(STEPS).fill(0);
    layers.forEach((_, n) => {
      const layer = next.values[n];
      if (stacked) {
        let path = "";
        layer.forEach((value, x) => {
          if (!value) return;
          path += `M${x} ${y(base[x], top)}V${y(base[x] + value, top)}`;
          base[x] += value;
        });
        drawn[n].line.setAttribute("d", path);
        return;
      }
      const empty = highest === 0;
      drawn[n].line.setAttribute("d", empty ? "" : linePath(layer, top));
      if (drawn[n].area) drawn[n].area.setAttribute("d", empty ? "" : areaPath(layer, top));
    });
    tell();
  }
  return { figure, draw };
}

// The three charts of an answer of /api/history.
function hourCharts() {
  const requests = chart("Requests a second",
    [{ name: "all", color: "s0", kind: "area" }, { name: "failed", color: "bad", kind: "line" }], rate, "no request");
  const latency = chart("Latency",
    [{ name: "median", color: "s0", kind: "line" }, { name: "99 of 100", color: "s1", kind: "line" }], duration, "no request");
  const phases = ["queued", "starting", "booting", "admitting", "first_byte"];
  const cold = chart("Cold starts",
    phases.map((name, n) => ({ name: name.replace("_", " "), color: `s${n}`, kind: "bars" })), duration, "no cold start");
  const sum = (list) => list.reduce((a, b) => a + b, 0);
  const mean = (list, weights) => {
    const all = sum(weights);
    return all === 0 ? null : sum(list.map((value, n) => (value || 0) * weights[n])) / all;
  };
  const largest = (list) => list.reduce((a, b) => (b === null ? a : a === null ? b : Math.max(a, b)), null);

  // `start` is when the process began, in seconds since 1970: before it there is nothing, not zero.
  function draw(hour, start) {
    const { until, step } = hour;
    const total = sum(hour.requests);
    const failed = sum(hour.errors);
    const starts = sum(hour.cold);
    const at = until === null ? Date.now() / 1000 : until;
    const known = Math.max(0, Math.ceil((start - at) / step) + STEPS - 1);
    const perSecond = (list) => list.map((n, x) => (x < known ? null : n / step));
    const last = hour.requests.findLastIndex((n) => n > 0);
    requests.draw({
      until: at, step, what: `${count(total)} in all, ${count(failed)} failed`,
      values: [perSecond(hour.requests), perSecond(hour.errors).map((n) => n || null)],
      summary: [total, failed].map((n) => n / (Math.max(1, STEPS - known) * step)),
    });
    latency.draw({
      until: at, step, what: last < 0 ? "" : "mean and highest",
      values: [hour.median_ms, hour.p99_ms],
      summary: [mean(hour.median_ms, hour.requests), largest(hour.p99_ms)],
    });
    cold.draw({
      until: at, step, what: starts === 0 ? "" : `mean of ${count(starts)} that waited`,
      values: phases.map((name) => hour.phases_ms[name].map((value) => value || 0)),
      summary: phases.map((name) => mean(hour.phases_ms[name], hour.cold)),
    });
  }
  return { figures: [requests.figure, latency.figure, cold.figure], draw };
}

// A small picture of the requests of an hour, in 60 bars.
function sparkline() {
  const width = 60;
  const picture = svg("svg", "", { viewBox: `0 0 ${width - 1} 20`, preserveAspectRatio: "none", role: "img" });
  const area = svg("path", "area s0");
  const line = svg("path", "line s0");
  picture.append(area, line);
  let before = "";

  function draw(requests) {
    const bars = new Array(width).fill(0);
    requests.forEach((n, x) => { bars[Math.floor((x * width) / STEPS)] += n; });
    const most = bars.reduce((a, b) => Math.max(a, b), 0);
    const path = most === 0 ? "" : bars.map((n, x) => `L${x} ${(20 - (n / most) * 19).toFixed(1)}`).join("");
    if (path === before) return;
    before = path;
    line.setAttribute("d", path.replace("L", "M"));
    area.setAttribute("d", path === "" ? "" : `M0 20${path}L${width - 1} 20Z`);
    const all = bars.reduce((a, b) => a + b, 0);
    picture.setAttribute("aria-label", `${count(all)} requests in the last hour`);
  }
  return { picture, draw };
}
