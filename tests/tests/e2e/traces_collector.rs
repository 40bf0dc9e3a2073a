//! Traces as the OpenTelemetry Collector itself takes them: its OTLP receiver, and what its debug exporter prints.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use sluice_tests::backend::HttpBackend;
use sluice_tests::gateway::Gateway;
use sluice_tests::h1;
use sluice_tests::process::listening;
use sluice_tests::wait::{SOON, wait_for};
use tokio::process::{Child, Command};

use crate::{WEB, web};

/// What `tests/collector/run` built.
fn collector() -> Option<PathBuf> {
    let path = std::env::var_os("SLUICE_COLLECTOR");
    if path.is_none() {
        eprintln!("SKIPPED: SLUICE_COLLECTOR does not name a collector; tests/collector/run builds one");
    }
    path.map(PathBuf::from)
}

/// A running Collector, which ends with this value.
struct Running {
    child: Child,
    endpoint: String,
    printed: PathBuf,
}

impl Running {
    async fn start(collector: &Path, folder: &Path) -> Self {
        let config = folder.join("collector.yaml");
        let text = "receivers: {otlp: {protocols: {http: {endpoint: '127.0.0.1:0'}}}}\n\
                    exporters: {debug: {verbosity: detailed}}\n\
                    service:\n  telemetry: {metrics: {level: none}}\n  \
                    pipelines: {traces: {receivers: [otlp], exporters: [debug]}}\n";
        std::fs::write(&config, text).expect("a config");
        let printed = folder.join("collector.log");
        let log = std::fs::File::create(&printed).expect("a log");
        let child = Command::new(collector)
            .arg("--config")
            .arg(format!("file:{}", config.display()))
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("the collector starts");
        let pid = child.id().expect("it runs");
        let address = wait_for("the collector listens", SOON, async || listening(pid).pop()).await;
        Self {
            child,
            endpoint: format!("http://{address}"),
            printed,
        }
    }

    /// Waits until the exporter has printed a span of this name, and returns all that was printed.
    async fn prints(&mut self, span: &str) -> String {
        let name = format!("Name           : {span}\n");
        let (printed, child) = (&self.printed, &mut self.child);
        wait_for(span, SOON, || {
            let printed = std::fs::read_to_string(printed).expect("a log");
            let ended = child.try_wait().expect("a child");
            assert!(ended.is_none(), "the collector ended: {ended:?}\n{printed}");
            // A batch is printed with one write: what follows the name is there as well.
            std::future::ready(printed.contains(&name).then_some(printed))
        })
        .await
    }
}

/// The lines of the printed span with this name, trimmed.
fn span<'p>(printed: &'p str, name: &str) -> Vec<&'p str> {
    let mut spans = printed.split("Span #");
    let named = format!("Name           : {name}");
    let span = spans.find(|span| span.lines().any(|line| line.trim() == named));
    span.expect(name).lines().map(str::trim).collect()
}

#[tokio::test]
async fn the_opentelemetry_collector_takes_spans_as_they_are_sent() {
    let Some(binary) = collector() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut collector = Running::start(&binary, folder.path()).await;
    let backend = HttpBackend::start("a").await;
    let gateway = Gateway::builder(&web(backend.addr()))
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint)
        .env("OTEL_SERVICE_NAME", "edge")
        .env("OTEL_BSP_SCHEDULE_DELAY", "20")
        .start()
        .await;
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let fields = [("traceparent", parent)];
    let got = gateway
        .send(&h1::request("GET", WEB, "/hello", &fields, b""))
        .await;
    assert_eq!(got.status, 200);

    let printed = collector.prints("attempt").await;
    assert!(printed.contains("service.name: Str(edge)"), "{printed}");
    let server = span(&printed, "GET web");
    for line in [
        "Trace ID       : 4bf92f3577b34da6a3ce929d0e0e4736",
        "Parent ID      : 00f067aa0ba902b7",
        "Kind           : Server",
        "-> url.path: Str(/hello)",
        "-> http.response.status_code: Int(200)",
    ] {
        assert!(server.contains(&line), "{line} is not in {server:?}");
    }
    let id = server
        .iter()
        .find_map(|line| line.strip_prefix("ID             : "));
    let attempt = span(&printed, "attempt");
    let parent = format!("Parent ID      : {}", id.expect("an id"));
    for line in [
        &*parent,
        "Kind           : Client",
        "-> http.response.status_code: Int(200)",
    ] {
        assert!(attempt.contains(&line), "{line} is not in {attempt:?}");
    }
}
