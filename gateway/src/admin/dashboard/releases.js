// The rollout and the override of a service, below its split: how far, how judged, and what may be done about it.

const secondsOf = (text) => Date.parse(text) / 1000;

// What helps in this state, as [label, command].
function helps(rollout, over) {
  const all = [];
  const state = rollout ? rollout.state : "";
  if (state === "running") all.push(["Pause rollout", "rollout/pause"]);
  if (state === "paused") all.push(["Resume rollout", "rollout/resume"]);
  if (state === "running" || state === "paused") all.push(["Promote", "rollout/promote"], ["Abort", "rollout/abort"]);
  if (state === "failed" || state === "aborted") all.push(["Retry", "rollout/retry"]);
  if (over && over.paused) all.push(["Resume requests", "resume"]);
  return all;
}

function ratio(tally) {
  return tally.requests > 0 ? `${tenth.format((tally.errors * 100) / tally.requests)} %` : "–";
}

// A row of the judgement: a revision, its requests, and those that failed.
function side(name, tally) {
  return el("li", "", el("b", "", name), el("span", "dim", `${count(tally.requests)} requests, ${count(tally.errors)} failed`), el("span", "", ratio(tally)));
}

function rolloutParts(rollout) {
  const isOpen = rollout.state === "running" || rollout.state === "paused";
  const from = rollout.base ? ` from ${rollout.base}` : "";
  const step = isOpen && rollout.step > 0 ? `, step ${count(rollout.step)}` : "";
  const fill = el("span", rollout.state);
  fill.style.width = `${rollout.percent}%`;
  const bar = el("div", "progress", fill);
  bar.setAttribute("role", "img");
  bar.setAttribute("aria-label", `${rollout.percent} %`);
  const parts = [
    el("p", "", el("b", "", `Rollout of ${rollout.candidate}`), `${from}: `, el("span", `state ${rollout.state}`, rollout.state),
      el("span", "dim", ` ${tenth.format(rollout.percent)} % of latestRevision${step}, since ${timeOf(secondsOf(rollout.since))}`)),
  ];
  if (isOpen) parts.push(bar);
  if (rollout.reason) parts.push(el("p", rollout.state === "failed" ? "bad" : "dim", rollout.reason));
  const { candidate, base, unjudged_steps, suspicion } = rollout.judgement;
  if (candidate.requests + base.requests > 0) {
    const list = el("ul", "judgement", side(rollout.candidate, candidate), side(rollout.base || "the one before", base));
    list.setAttribute("role", "list");
    list.setAttribute("aria-label", "Judged over the same time");
    parts.push(list);
  }
  if (isOpen && suspicion > 0) parts.push(el("p", "dim", `The evidence is ${whole.format(suspicion * 100)} % of what rolls it back.`));
  if (unjudged_steps > 0) parts.push(el("p", "dim", `Steps that ended unjudged, for want of requests: ${count(unjudged_steps)}.`));
  return parts;
}

function overrideParts(over) {
  const parts = [];
  const since = timeOf(secondsOf(over.since));
  if (over.pinned) {
    const { latestRevision, percent } = over.files;
    parts.push(el("p", "", el("b", "", `Rolled back to ${over.pinned}`), el("span", "dim", ` by command at ${since}. The files say: ${tenth.format(percent)} % to the latest revision, ${latestRevision}.`)));
    if (over.permanent) parts.push(el("p", "dim", `To make it permanent: ${over.permanent}. It ends when the files change the service.`));
  }
  if (over.paused) parts.push(el("p", "", el("b", "", "Paused"), el("span", "dim", ` by command at ${since}: requests wait, none longer than queue.timeout.`)));
  return parts;
}

// One element for a service; `act(command, service)` gives a command.
function releaseBox(id, act) {
  const box = el("div", "release");
  let drawn = "";
  function draw(service, mayAct) {
    const { rollout, override } = service || {};
    const key = JSON.stringify([rollout, override, mayAct]);
    if (key === drawn) return;
    drawn = key;
    // A completed rollout is over: the split shows what came of it.
    const isNews = rollout && rollout.state !== "completed";
    show(box, Boolean(isNews || override));
    const parts = [...(isNews ? rolloutParts(rollout) : []), ...(override ? overrideParts(override) : [])];
    const buttons = (mayAct ? helps(rollout, override) : []).map(([label, command]) => {
      const button = el("button", "", label);
      button.type = "button";
      button.addEventListener("click", () => act(command, id));
      return button;
    });
    // A button that stays keeps the focus.
    const focused = box.contains(document.activeElement) ? document.activeElement.textContent : null;
    box.replaceChildren(...parts, el("div", "acts", ...buttons));
    const again = buttons.find((button) => button.textContent === focused);
    if (again) again.focus();
  }
  return { box, draw };
}
