"""The report: results as JSON with a ratio per round, as tables, and the text of docs/performance.md."""

import statistics

from scenarios import DIRECT, SCENARIOS

REFERENCE = "haproxy"
# The heading of results of other commands, at the end of the published page.
OTHERS = "## Measured by other commands\n"
# A lower utilisation measures wake-ups and cold caches, or the generator's limit.
BUSY = 0.9


def spread(values, digits=2):
    """Median [min-max]."""
    if not values:
        return "-"
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}-{max(values):.{digits}f}]"


def digest(rounds):
    """For each proxy the ratio of its CPU per request to the reference's in every round, and medians."""
    found = {}
    for name in rounds[0]:
        middle = {k: statistics.median(r[name][k] for r in rounds) for k in ("cpu_us", "utilisation", "per_second")}
        found[name] = {k: round(v, 3) for k, v in middle.items()}
        if REFERENCE in rounds[0]:
            found[name]["ratios"] = [round(r[name]["cpu_us"] / r[REFERENCE]["cpu_us"], 3) for r in rounds]
    return found


def digest_latency(rounds):
    keys = ("p50_us", "p90_us", "p99_us")
    return {name: {k: [round(r[name][k]) for r in rounds] for k in keys} for name in rounds[0]}


def digest_memory(rounds, connections):
    """The memory per connection, and the memory left after all connections closed; KB of RSS in each round."""
    found = {}
    for wire in rounds[0]:
        found[wire] = {}
        for name in rounds[0][wire]:
            steps = [r[wire][name] for r in rounds]
            rss = {step: [s[step]["rss_kb"] for s in steps] for step in ("idle", "held", "left")}
            per = [round((h - i) / connections, 2) for h, i in zip(rss["held"], rss["idle"])]
            found[wire][name] = {**{f"{k}_rss_kb": v for k, v in rss.items()}, "per_connection_kb": per}
    return found


def table(columns, rows):
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(map(str, row))} |"
    yield ""


def ratios(results, names):
    """CPU per request, one line a scenario."""
    rows = []
    for scenario, found in results.items():
        cells = []
        for name in names:
            text = spread(found[name].get("ratios", []))
            cells.append(f"**{text}**" if name == "sluice" else text)
        rows.append([SCENARIOS[scenario].title, *cells])
    return table(["scenario", *names], rows)


def details(results, calls, names):
    rows = []
    for scenario, found in results.items():
        for name in names:
            one, counted = found[name], calls.get(scenario, {}).get(name)
            busy = one["utilisation"]
            by_call = ", ".join(f"{n} {call}" for call, n in (counted or {"by_call": {}})["by_call"].items())
            rows.append([
                scenario, name, f"{one['cpu_us']:.1f}", f"{busy:.2f}" + (" low" if busy < BUSY else ""),
                f"{one['per_second']:.0f}", f"{counted['all']:.2f}" if counted else "-", by_call,
            ])
    return table(["scenario", "proxy", "CPU µs", "busy", "per second", "syscalls", "of which"], rows)


def latencies(found, names):
    rows = [[name, *(spread(found[name][k], 0) for k in ("p50_us", "p90_us", "p99_us"))]
            for name in (DIRECT, *names) if name in found]
    return table(["", "p50 µs", "p90 µs", "p99 µs"], rows)


def memories(found, names):
    rows = []
    for wire, each in found.items():
        for name in names:
            one = each[name]
            mb = {step: [kb / 1024 for kb in one[f"{step}_rss_kb"]] for step in ("idle", "held", "left")}
            grown = [(h - l) / max(h - i, 0.001) for i, h, l in zip(mb["idle"], mb["held"], mb["left"])]
            rows.append([wire, name, *(spread(mb[step], 1) for step in ("idle", "held")),
                         spread(one["per_connection_kb"], 1), spread(mb["left"], 1), f"{statistics.median(grown):.0%}"])
    head = ["", "proxy", "idle MB", "with all connections MB", "KB per connection", "after they left MB", "given back"]
    return table(head, rows)


def text(kept, plots):
    """The whole report; `plots` has lines of Markdown by the name of their part."""
    about, names = kept["about"], kept["peers"]
    machine = about["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    busy = [f"`{s}`: {n}" for s, found in kept["cpu"].items() for n, one in found.items() if one["utilisation"] < BUSY]
    yield "# Performance"
    yield ""
    yield "Sluice next to other proxies, as `bench/compare` measured it. That command writes the page but for its last section."
    yield ""
    yield f"- Machine: {machine['cpus']} × {machine['cpu']}, {machine['memory_gib']} GiB, Linux {machine['kernel']}"
    yield f"- Versions: {versions}; {about['rust']}"
    yield f"- Commit: {about['commit']}{' with changes' if about['dirty'] else ''}; binary: {about['binary']}"
    yield f"- Command: `{about['command']}`"
    yield (f"- {about['when']}; load average {about['load_average'][0]:.1f} before and {about['load_average'][1]:.1f} after; "
           f"took {about['took_s']} s")
    yield ""
    yield from METHOD
    yield ""
    if kept["cpu"]:
        yield "## CPU per request"
        yield ""
        yield (f"As a ratio to {REFERENCE} in the same round: median [min-max] of {about['rounds']} rounds of "
               f"{about['seconds']} s. Less is better; differences under 0.05 are noise.")
        yield ""
        yield from plots.get("cpu", [])
        yield from ratios(kept["cpu"], names)
        if busy:
            yield (f"Less than {BUSY} of the proxy's CPU was used, so that what is counted holds waking up: "
                   f"{'; '.join(busy)}.")
            yield ""
        yield "Medians; times drift by a fifth between runs and are not to be quoted. Syscalls come from a run of their own."
        yield ""
        yield from details(kept["cpu"], kept["syscalls"], names)
    if kept["latency"]:
        yield f"## Latency at {about['rate']:.0f} requests per second"
        yield ""
        yield ("From the time at which a request was to be sent (open loop), 32 connections, 100 B: median [min-max] over rounds. "
               "`direct` is the backend without a proxy.")
        yield ""
        yield from plots.get("latency", [])
        yield from latencies(kept["latency"], names)
    if kept["memory"]:
        yield "## Memory"
        yield ""
        yield (f"RSS idle, with {about['connections']} connections that made one request each (all asked at once) and stay, and "
               f"{about['leave']:.0f} s after they left; median [min-max] over rounds, each with proxies started anew. Kernel memory "
               "is not in it. Sluice hands a revision 1,000 of the requests at once, as `containerConcurrency` says; the others all.")
        yield ""
        yield from plots.get("memory", [])
        yield from memories(kept["memory"], names)


METHOD = """## How

Each proxy has one worker on CPU 0. Clients and backends are one thread on CPU 1 (`measure load`), whose requests are
ready-made bytes and which checks the status and the length of every answer: one that is not as it should be ends the run.
All proxies have 1,001 hosts, of which one is asked for, a 90/10 split over two backends, connections to backends kept, no
access log. Sluice has `containerConcurrency` and its metrics on. TLS is 1.3, TLS_AES_128_GCM_SHA256, ECDSA P-256 for all.
`pingora` is `bench/examples/pingora.rs`, the smallest proxy on pingora-proxy, without clocks, limits or metrics.

The proxies take turns within a round, another one first each time, so that what else the machine does meets all of them.
CPU is `/proc/PID/task/*/schedstat` over all processes and threads of a proxy, user and system, between two moments at
which the load is steady. Allocations are not compared: `bench/guard` counts Sluice's.""".splitlines()
