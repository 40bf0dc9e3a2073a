"""Child processes, the proxies and the load generator: pinned to a CPU, observed through /proc, ended by process id."""

import json
import os
import pathlib
import select
import socket
import subprocess
import time

PROXY_CPU, OTHER_CPU = "0", "1"
# Timeouts in seconds.
STARTING, STOPPING, ANSWERING = 30, 2, 60


class Failed(Exception):
    """The reason why there are no figures."""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(cpu, command, **how):
    """Starts a process on this CPU. The kernel sends it SIGTERM if this process is killed."""
    command = ["setpriv", "--pdeathsig", "TERM", "--", "taskset", "-c", cpu, *map(str, command)]
    # A session of its own: Ctrl-C reaches this process alone, which then ends the others in order.
    return subprocess.Popen(command, start_new_session=True, **how)


def family(root):
    """The process and all its descendants."""
    children = {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = stat.read_text().rpartition(")")[2].split()
            children.setdefault(int(after_name[1]), []).append(int(stat.parent.name))
        except OSError:
            pass
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += children.get(pid, [])
    return found


def stop(process):
    """Ends a process and its children gracefully, and waits; kills those that do not end."""
    if process.poll() is not None:
        return
    pids = family(process.pid)
    for signal in ("TERM", "KILL"):
        subprocess.run(["kill", f"-{signal}", *map(str, pids)], stderr=subprocess.DEVNULL)
        try:
            process.wait(STOPPING)
            return
        except subprocess.TimeoutExpired:
            pids = family(process.pid)


class Proxy:
    """One of the compared proxies; the proxy listens when the constructor returns."""

    def __init__(self, name, command, ports, folder):
        self.name, self.ports = name, ports
        self.log = folder / f"{name}.log"
        with self.log.open("w") as log:
            self.process = start(PROXY_CPU, command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder)
        try:
            for port in ports.values():
                self.await_port(port)
        except BaseException:
            self.stop()
            raise

    def await_port(self, port):
        deadline = time.monotonic() + STARTING
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), 0.2).close()
                return
            except OSError:
                time.sleep(0.02)
        said = self.log.read_text(errors="replace").splitlines()[-15:]
        raise Failed("\n".join([f"{self.name} does not listen on {port}:", *said]))

    def pids(self):
        return family(self.process.pid)

    def address(self, listener):
        return f"127.0.0.1:{self.ports[listener]}"

    def cpu(self):
        """CPU time so far in nanoseconds, user and system, of all threads."""
        total = 0
        for pid in self.pids():
            for stat in pathlib.Path(f"/proc/{pid}/task").glob("*/schedstat"):
                try:
                    total += int(stat.read_text().split()[0])
                except OSError:
                    pass
        return total

    def memory(self):
        """RSS and PSS in KB, once the process is nearly idle."""
        deadline, before = time.monotonic() + 5, self.cpu()
        while time.monotonic() < deadline:
            time.sleep(0.2)
            now = self.cpu()
            if now - before < 4e6:
                break
            before = now
        rss = pss = 0
        for pid in self.pids():
            for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Rss:"):
                    rss += int(line.split()[1])
                elif line.startswith("Pss:"):
                    pss += int(line.split()[1])
        return {"rss_kb": rss, "pss_kb": pss}

    def stop(self):
        stop(self.process)


class Generator:
    """The load generator `measure load`: clients and backends on the other CPU, controlled by lines of JSON."""

    def __init__(self, measure, folder):
        self.log = folder / "generator.log"
        self.rest = b""
        with self.log.open("w") as log:
            command = [measure, "load", "--certificate", folder]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
            self.process = start(OTHER_CPU, command, **pipes)
        self.about = self.answer()

    def tell(self, do, **what):
        line = json.dumps({"do": do, **what}) + "\n"
        try:
            self.process.stdin.write(line.encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Failed(f"the load generator ended: {self.log.read_text()}")
        return self.answer()

    def answer(self):
        deadline = time.monotonic() + ANSWERING
        while b"\n" not in self.rest:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise Failed("the load generator does not respond")
            if not (piece := os.read(self.process.stdout.fileno(), 65536)):
                raise Failed(f"the load generator ended: {self.log.read_text()}")
            self.rest += piece
        line, _, self.rest = self.rest.partition(b"\n")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def stop(self):
        stop(self.process)
