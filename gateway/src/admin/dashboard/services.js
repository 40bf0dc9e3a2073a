// The list of services: kept elements, of which a change rewrites what differs.

// `chosen(id)` is called when a revision is chosen, with null when none is any more; `act(command, service)` gives a command
// for a service.
function serviceList(chosen, act) {
  const list = byId("list");
  const services = new Map();
  const revisions = new Map();
  const series = new Map();
  const cards = new Map();
  const rows = new Map();
  // The revisions of each service, as of the last update.
  let byService = new Map();
  let open = null;
  let wanted = "";
  let mayAct = false;

  const idOf = (row) => `${row.namespace}/${row.service}`;

  function card(id) {
    let known = cards.get(id);
    if (known) return known;
    const name = el("h3", "");
    const hosts = el("p", "hosts dim");
    const split = el("div", "split");
    split.setAttribute("role", "img");
    const head = el("tr", "", ...["Revision", "Share", "Ready", "In flight", "Waiting", "Req/s", "Last hour", "Last decision"].map((title, n) => {
      const cell = el("th", n === 0 || n >= 6 ? "text" : "", el("span", "", title));
      cell.scope = "col";
      return cell;
    }));
    const body = el("tbody", "");
    const release = releaseBox(id, act);
    const matches = el("p", "matches dim");
    const article = el("article", "service", el("header", "", name, hosts), split, release.box, el("table", "", el("thead", "", head), body), matches);
    article.dataset.id = id;
    known = { article, name, hosts, split, release, body, matches };
    cards.set(id, known);
    return known;
  }

  function shownHosts(service) {
    const hosts = service.hosts || [];
    const more = hosts.length - 3 + (service.hostsOmitted || 0);
    return hosts.slice(0, 3).join("  ·  ") + (more > 0 ? `  ·  ${count(more)} more` : "");
  }

  function drawService(id) {
    const { name, hosts, split, release, body, matches } = card(id);
    const service = services.get(id);
    const [namespace, own] = id.split("/");
    if (!name.hasChildNodes()) name.append(el("span", "dim", `${namespace}/`), own);
    setText(hosts, service ? shownHosts(service) : "no longer configured");
    const traffic = service ? service.traffic : [];
    const names = [...new Set(traffic.map((target) => target.revisionName))];
    const key = JSON.stringify(traffic);
    if (split.dataset.key !== key) {
      split.dataset.key = key;
      split.replaceChildren(...traffic.filter((target) => target.percent > 0).map((target) => {
        const part = el("span", `s${names.indexOf(target.revisionName) % 6}`);
        part.style.flexGrow = target.percent;
        part.title = `${target.revisionName} ${target.percent} %`;
        return part;
      }));
      show(split, names.length > 1);
      split.setAttribute("aria-label", `Split: ${traffic.map((target) => `${target.revisionName} ${target.percent} %`).join(", ")}`);
    }
    release.draw(service, mayAct);
    const routes = service ? service.routes : [];
    const told = routes.map((route) => {
      const { path, headers, methods } = route.match;
      const parts = [];
      if (methods && methods.length) parts.push(methods.join(" or "));
      if (path) parts.push(...Object.entries(path).map(([kind, value]) => `${kind} ${value}`));
      parts.push(...Object.entries(headers || {}).map(([header, match]) => `${header}: ${Object.values(match).join(" ")}`));
      const to = route.traffic.map((target) => `${target.revisionName} ${target.percent} %`).join(", ");
      return `${parts.join(", ") || "any"} → ${to}`;
    });
    show(matches, told.length > 0);
    setText(matches, `Routes before the split: ${told.join("; ")}`);
    const elements = (byService.get(id) || []).sort(byShare).flatMap((row) => {
      const known = rowOf(`${row.namespace}/${row.revision}`);
      const nth = names.indexOf(row.revision);
      known.swatch.className = names.length > 1 && nth >= 0 ? `swatch s${nth % 6}` : "";
      return known.more ? [known.element, known.more] : [known.element];
    });
    elements.forEach((element, n) => {
      if (body.children[n] !== element) body.insertBefore(element, body.children[n] || null);
    });
    while (body.children.length > elements.length) body.lastChild.remove();
  }

  // In the order of the split, then by name.
  function byShare(a, b) {
    const service = services.get(idOf(a));
    const place = (row) => {
      const at = service ? service.traffic.findIndex((target) => target.revisionName === row.revision) : -1;
      return at < 0 ? 1000 : at;
    };
    return place(a) - place(b) || a.revision.localeCompare(b.revision);
  }

  function rowOf(id) {
    let known = rows.get(id);
    if (known) return known;
    const name = el("button", "name");
    name.type = "button";
    name.setAttribute("aria-expanded", "false");
    name.addEventListener("click", () => choose(open === id ? null : id));
    const tags = el("span", "");
    const swatch = el("span", "");
    const number = (label) => {
      const cell = el("td", "num");
      cell.dataset.label = label;
      return cell;
    };
    const spark = sparkline();
    const cells = {
      share: number("Share"), ready: number("Ready"), flight: number("In flight"), waiting: number("Waiting"), rate: number("Req/s"),
      why: el("td", "why"),
    };
    const element = el("tr", "", el("td", "text", swatch, name, tags), cells.share, cells.ready, cells.flight, cells.waiting, cells.rate,
      el("td", "text spark", spark.picture), cells.why);
    known = { element, name, tags, swatch, spark, cells, more: null };
    rows.set(id, known);
    return known;
  }

  function drawRow(id) {
    const row = revisions.get(id);
    const { element, name, tags, spark, cells, more } = rowOf(id);
    setText(name, row.revision);
    if (tags.dataset.key !== row.tags.join(",")) {
      tags.dataset.key = row.tags.join(",");
      tags.replaceChildren(...row.tags.map((tag) => el("span", "tag", tag)));
    }
    setText(cells.share, typeof row.percent === "number" ? `${row.percent} %` : "removed");
    setText(cells.ready, typeof row.desired === "number" ? `${count(row.ready)} of ${count(row.desired)}` : count(row.ready));
    setText(cells.flight, count(row.in_flight));
    toggle(cells.flight, "hot", row.in_flight > 0);
    setText(cells.waiting, count(row.queued));
    toggle(cells.waiting, "waits", row.queued > 0);
    setText(cells.rate, rate(row.rate));
    setText(cells.why, row.last_failure ? `failed: ${row.last_failure}` : row.last_decision || "");
    toggle(cells.why, "bad", Boolean(row.last_failure));
    spark.draw(series.get(id) || []);
    toggle(element, "chosen", open === id);
    name.setAttribute("aria-expanded", String(open === id));
    if (more) drawMore(more, row);
  }

  function drawMore(more, row) {
    const key = JSON.stringify([row.endpoints, row.starts]);
    if (more.dataset.key === key) return;
    more.dataset.key = key;
    const endpoints = row.endpoints.map((endpoint) => el("li", "",
      el("span", "code", endpoint.address), el("span", "dim", `${endpoint.state}, ${count(endpoint.in_flight)} in flight`)));
    const list = el("ul", "endpoints", ...endpoints);
    list.setAttribute("role", "list");
    const text = [endpoints.length === 0 ? "No endpoint." : ""];
    if (row.endpointsOmitted) text.push(`${count(row.endpointsOmitted)} endpoints more.`);
    if (typeof row.starts === "number") text.push(`${count(row.starts)} started so far.`);
    more.firstChild.replaceChildren(list, el("p", "dim", text.filter(Boolean).join(" ")));
  }

  function choose(id) {
    const before = open;
    open = id;
    for (const one of [before, id]) {
      if (one === null || !revisions.has(one)) continue;
      const row = rowOf(one);
      if (row.more) row.more.remove();
      row.more = null;
      if (one === id) {
        const cell = el("td", "");
        cell.colSpan = 8;
        row.more = el("tr", "more", cell);
      }
      drawRow(one);
      drawService(idOf(revisions.get(one)));
    }
    chosen(id);
  }

  function filter() {
    const words = wanted.toLowerCase();
    let shown = 0;
    for (const article of list.children) {
      const id = article.dataset.id;
      const service = services.get(id);
      const names = (byService.get(id) || []).map((row) => row.revision);
      const text = [id, ...names, ...(service ? service.hosts : [])].join(" ").toLowerCase();
      show(article, text.includes(words));
      toggle(article, "first", !article.hidden && shown === 0);
      if (!article.hidden) shown += 1;
    }
    const empty = byId("list-empty");
    show(empty, shown === 0);
    setText(empty, cards.size === 0 ? "No service is configured." : "Nothing has this name.");
  }

  // Services appear in the order of their names.
  function arrange() {
    const ids = new Set([...services.keys(), ...byService.keys()]);
    for (const [id, { article }] of cards) {
      if (ids.has(id)) continue;
      article.remove();
      cards.delete(id);
    }
    [...ids].sort().forEach((id, n) => {
      const { article } = card(id);
      if (list.children[n] !== article) list.insertBefore(article, list.children[n] || null);
    });
    filter();
  }

  // A snapshot, or a change: `null` is what is gone.
  function update(data, isSnapshot) {
    const touched = new Set();
    const apply = (map, changes, touch) => {
      if (isSnapshot) {
        for (const [id, value] of map) if (!(id in changes)) { touch(id, value); map.delete(id); }
      }
      for (const [id, value] of Object.entries(changes)) {
        touch(id, value || map.get(id));
        if (value === null) map.delete(id); else map.set(id, value);
      }
    };
    apply(services, data.services || {}, (id) => touched.add(id));
    apply(revisions, data.revisions || {}, (id, row) => { if (row) touched.add(idOf(row)); });
    for (const id of rows.keys()) {
      if (revisions.has(id)) continue;
      rows.get(id).element.remove();
      if (rows.get(id).more) rows.get(id).more.remove();
      rows.delete(id);
      series.delete(id);
      if (open === id) choose(null);
    }
    const drawn = data.history ? revisions.keys() : Object.keys(data.revisions || {}).filter((id) => revisions.has(id));
    if (data.history) addHistory(data.history, isSnapshot);
    for (const id of drawn) drawRow(id);
    if (touched.size === 0 && !isSnapshot) return;
    byService = new Map();
    for (const row of revisions.values()) {
      const id = idOf(row);
      if (byService.has(id)) byService.get(id).push(row); else byService.set(id, [row]);
    }
    arrange();
    for (const id of touched) if (cards.has(id)) drawService(id);
  }

  function addHistory(history, isSnapshot) {
    if (isSnapshot) {
      series.clear();
      for (const [id, requests] of Object.entries(history.requests)) series.set(id, requests);
      return;
    }
    for (const id of new Set([...series.keys(), ...Object.keys(history.requests)])) {
      const hour = series.get(id) || new Array(STEPS).fill(0);
      hour.push(history.requests[id] || 0);
      series.set(id, hour.slice(-STEPS));
    }
  }

  byId("find").addEventListener("input", (event) => { wanted = event.target.value.trim(); filter(); });
  function allow(may) {
    if (mayAct === may) return;
    mayAct = may;
    for (const [id, { release }] of cards) release.draw(services.get(id), mayAct);
  }

  return { update, choose, allow, size: () => services.size, opened: () => open };
}
