"""The scenarios that every proxy runs, and their measurement."""

import pathlib
import re
import shutil
import signal
import subprocess
import tempfile

from processes import Failed, stop
from proxies import GRPC_HOST, HOST

KB = 1024


class Scenario:
    def __init__(self, title, wire, listener, unit="request", host=HOST, path="/b/100", receive=100, send=0,
                 connections=64, streams=0):
        self.title, self.listener, self.unit = title, listener, unit
        self.load = {"wire": wire, "host": host, "path": path, "receive": receive, "send": send,
                     "connections": connections, "streams": streams}


SCENARIOS = {
    "keepalive-100": Scenario("HTTP/1.1 keep-alive, 100 B", "h1", "plain"),
    "keepalive-10k": Scenario("HTTP/1.1 keep-alive, 10 KB", "h1", "plain", path="/b/10240", receive=10 * KB),
    "keepalive-1m": Scenario("HTTP/1.1 keep-alive, 1 MB", "h1", "plain", path="/b/1048576", receive=KB * KB,
                             connections=16),
    "post-10k": Scenario("HTTP/1.1 keep-alive, POST of 10 KB", "h1", "plain", send=10 * KB),
    "connections": Scenario("new connection per request, 100 B", "close", "plain"),
    "tls-h1": Scenario("TLS, HTTP/1.1 keep-alive, 100 B", "tls1", "tls"),
    "tls-h2": Scenario("TLS, HTTP/2, 16 connections of 10 streams, 100 B", "tls2", "tls", connections=16, streams=10),
    "grpc": Scenario("gRPC unary over h2c to h2c, 16 connections of 10 streams, 100 B each way", "grpc", "h2c", "call",
                     GRPC_HOST, "/bench.Greeter/Hello", 105, 105, connections=16, streams=10),
    "websocket": Scenario("WebSocket, 64 connections, 100 B each way", "websocket", "plain", "message", path="/ws",
                          send=100),
}
# Parts with a measurement of their own.
LATENCY, MEMORY = "latency", "memory"
NAMES = [*SCENARIOS, LATENCY, MEMORY]
# The baseline of latency: requests to the backend without a proxy.
DIRECT = "direct"

# Syscalls that are counted one by one; all others are in the sum.
CALLS = ["read", "write", "readv", "writev", "recvfrom", "sendto", "recvmsg", "sendmsg", "splice", "accept4", "socket",
         "connect", "close", "shutdown", "epoll_wait", "epoll_pwait", "epoll_ctl", "getsockopt", "setsockopt", "getpeername", "getsockname", "ioctl", "fcntl",
         "futex", "sched_yield", "clock_nanosleep", "madvise", "mmap", "munmap", "brk"]


def rotated(names, turn):
    turn %= len(names)
    return names[turn:] + names[:turn]


def load(generator, proxy, scenario, seconds, warm):
    """One round of one proxy."""
    to = proxy.address(scenario.listener)
    try:
        return generator.tell("load", to=to, seconds=seconds, warm=warm, pids=proxy.pids(), **scenario.load)
    except Failed as failure:
        raise Failed(f"{proxy.name}, {scenario.title}: {failure}")


def rounds(generator, proxies, scenario, options):
    """Results by round, by proxy. The proxies take turns, and each round begins with another proxy."""
    names = list(proxies)
    for name in names:
        load(generator, proxies[name], scenario, 0.3, 0)
    done = []
    for turn in range(options.rounds):
        order = rotated(names, turn)
        done.append({name: load(generator, proxies[name], scenario, options.seconds, options.warm) for name in order})
    return done


def syscalls(generator, proxies, scenario, options):
    """Syscalls per request, in a run of its own: the cost of tracepoints must not be in the CPU figures."""
    if not shutil.which("perf"):
        return {}
    found = {}
    for name, proxy in proxies.items():
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder) / "counts"
            events = ["raw_syscalls:sys_enter", *(f"syscalls:sys_enter_{call}" for call in CALLS)]
            command = ["perf", "stat", "-x", ",", "-o", out, "-p", ",".join(map(str, proxy.pids()))]
            for event in events:
                command += ["-e", event]
            perf = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                    start_new_session=True)
            try:
                # Counting starts some milliseconds late: with many requests the error is negligible.
                requests = load(generator, proxy, scenario, max(options.seconds / 2, 0.2), 0.2)["all"]
                perf.send_signal(signal.SIGINT)
                perf.wait(10)
            finally:
                stop(perf)
            text = out.read_text() if out.exists() else ""
        counts = {event: int(n) for n, event in re.findall(r"^(\d+),[^,]*,([\w:]+)", text, re.M)}
        if not counts:
            return {}
        per = {event.removeprefix("syscalls:sys_enter_"): n / requests for event, n in counts.items()}
        total = per.pop("raw_syscalls:sys_enter", 0)
        largest = sorted((item for item in per.items() if item[1] >= 0.05), key=lambda item: -item[1])
        found[name] = {"all": total, "by_call": {call: round(n, 2) for call, n in largest}}
    return found


def latency(generator, proxies, backend, options):
    """Latency by round, by proxy and without a proxy."""
    addresses = {DIRECT: backend, **{name: proxy.address("plain") for name, proxy in proxies.items()}}
    names, done = list(addresses), []
    for turn in range(options.rounds):
        one = {}
        for name in rotated(names, turn):
            order = {"to": addresses[name], "host": HOST, "path": "/b/100", "receive": 100, "rate": options.rate,
                     "connections": 32, "seconds": options.pace_seconds, "warm": 0.2}
            one[name] = generator.tell("pace", **order)
        done.append(one)
    return done


def memory(generator, launched, names, options, sleep):
    """Memory by round, by wire, by proxy: KB of RSS at each step, of newly started proxies."""
    done = []
    for turn in range(options.memory_rounds):
        wires = {}
        for wire in ("plain", "tls"):
            proxies, wires[wire] = {}, {}
            try:
                for name in rotated(names, turn):
                    proxy = proxies[name] = launched(name)
                    hold = {"to": proxy.address(wire), "host": HOST, "path": "/b/100", "receive": 100, "tls": wire == "tls"}
                    # One-time allocations, such as the connection to the backend, are made before the first step.
                    generator.tell("hold", connections=1, **hold)
                    generator.tell("release")
                    steps = wires[wire][name] = {"idle": proxy.memory()}
                    generator.tell("hold", connections=options.connections, **hold)
                    sleep(1)
                    steps["held"] = proxy.memory()
                    generator.tell("release")
                # All proxies keep idle connections to backends for some seconds.
                sleep(options.leave)
                for name, proxy in proxies.items():
                    wires[wire][name]["left"] = proxy.memory()
            finally:
                for proxy in proxies.values():
                    proxy.stop()
        done.append(wires)
    return done
