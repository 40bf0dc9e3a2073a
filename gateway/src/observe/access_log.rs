//! The access log: one line per finished request, as text or as JSON.

use std::cell::RefCell;
use std::time::{Duration, SystemTime};

use sluice_model::AccessLogFormat;

use super::escape::{json, push, word};
use super::log_writer::LogSink;
use super::phases::{Millis, Phases};
use super::record::RequestRecord;

thread_local! {
    /// A reused buffer: lines are formatted on the request's thread and copied once, into the log writer's
    /// buffer.
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Writes access log lines. The caller passes the format with each line, because a reload may change it.
#[derive(Debug, Clone)]
pub struct AccessLog {
    sink: LogSink,
}

impl AccessLog {
    /// Lines go to `sink`.
    pub fn new(sink: LogSink) -> Self {
        Self { sink }
    }

    /// Formats one line and passes it to the log writer; never waits. [`AccessLogFormat::Off`] does nothing.
    pub fn log(&self, format: AccessLogFormat, record: &RequestRecord<'_>) {
        let write: fn(&mut Vec<u8>, &RequestRecord<'_>) = match format {
            AccessLogFormat::Off => return,
            AccessLogFormat::Json => json_line,
            AccessLogFormat::Pretty => pretty_line,
        };
        LINE.with_borrow_mut(|line| {
            line.clear();
            write(line, record);
            self.sink.line(line);
        });
    }
}

/// One JSON object. Every key is always present, `null` where it does not apply, so that queries need no guard.
fn json_line(out: &mut Vec<u8>, r: &RequestRecord<'_>) {
    out.extend_from_slice(b"{\"time\":\"");
    push_time(out, r.time);
    out.push(b'"');
    text(out, "request_id", r.request_id);
    match r.client {
        Some(client) => push(out, format_args!(",\"client\":\"{client}\"")),
        None => null(out, "client"),
    }
    text(out, "method", r.method);
    text(out, "host", r.host);
    text(out, "path", r.path_only());
    text(out, "protocol", r.protocol.as_str().as_bytes());
    push(out, format_args!(",\"status\":{}", r.code()));
    match r.final_status {
        Some(status) => push(out, format_args!(",\"final_status\":{status}")),
        None => null(out, "final_status"),
    }
    optional(out, "reason", r.reason.map(|reason| reason.as_str().as_bytes()));
    optional(out, "timer", r.timer.map(|timer| timer.as_str().as_bytes()));
    optional(out, "detail", r.detail.map(str::as_bytes));
    push(out, format_args!(",\"generation\":{}", r.generation));
    let namespace = r
        .service
        .map(|s| s.namespace())
        .or_else(|| r.revision.map(|r| r.namespace()));
    optional(out, "namespace", namespace.map(str::as_bytes));
    optional(out, "service", r.service.map(|s| s.name().as_bytes()));
    optional(out, "revision", r.revision.map(|r| r.name().as_bytes()));
    match r.endpoint {
        Some(endpoint) => {
            out.extend_from_slice(b",\"endpoint\":\"");
            endpoint_text(out, endpoint, json);
            out.push(b'"');
        }
        None => null(out, "endpoint"),
    }
    push(
        out,
        format_args!(",\"bytes_in\":{},\"bytes_out\":{}", r.bytes_in, r.bytes_out),
    );
    push(out, format_args!(",\"duration_ms\":{}", Millis(r.duration)));
    millis(out, "first_byte_ms", r.first_byte);
    millis(out, "queue_ms", r.queue);
    phases(out, r.phases);
    millis(out, "upstream_ms", r.upstream);
    push(out, format_args!(",\"attempts\":{}", r.attempts));
    optional(out, "user_agent", r.user_agent);
    out.extend_from_slice(b"}\n");
}

fn text(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    push(out, format_args!(",\"{key}\":\""));
    json(out, value);
    out.push(b'"');
}

fn optional(out: &mut Vec<u8>, key: &str, value: Option<&[u8]>) {
    match value {
        Some(value) => text(out, key, value),
        None => null(out, key),
    }
}

fn null(out: &mut Vec<u8>, key: &str) {
    push(out, format_args!(",\"{key}\":null"));
}

fn millis(out: &mut Vec<u8>, key: &str, value: Option<Duration>) {
    match value {
        Some(value) => push(out, format_args!(",\"{key}\":{}", Millis(value))),
        None => null(out, key),
    }
}

/// The phases as an object, whose keys depend on what the request waited for.
fn phases(out: &mut Vec<u8>, phases: Option<&Phases>) {
    let Some(phases) = phases else {
        return null(out, "phases_ms");
    };
    out.extend_from_slice(b",\"phases_ms\":{");
    for (i, (name, took)) in phases.iter().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        push(out, format_args!("{comma}\"{name}\":{}", Millis(took)));
    }
    out.push(b'}');
}

/// A line for people: `time status method host/path -> revision endpoint took ...`; further fields only where
/// they apply.
fn pretty_line(out: &mut Vec<u8>, r: &RequestRecord<'_>) {
    push_time(out, r.time);
    push(out, format_args!(" {:03} ", r.code()));
    word(out, r.method);
    out.push(b' ');
    word(out, r.host);
    word(out, r.path_only());
    if let Some(revision) = r.revision {
        push(out, format_args!(" -> {revision}"));
    } else if let Some(service) = r.service {
        push(out, format_args!(" -> {service}"));
    }
    if let Some(endpoint) = r.endpoint {
        out.push(b' ');
        endpoint_text(out, endpoint, word);
    }
    push(out, format_args!(" {}ms", Millis(r.duration)));
    if let Some(queue) = r.queue {
        push(out, format_args!(" queue={}ms", Millis(queue)));
    }
    if let Some(cold) = r.phases.filter(|phases| phases.is_cold()) {
        for (i, (name, took)) in cold.iter().enumerate() {
            let separator = if i == 0 { " cold=" } else { "," };
            push(out, format_args!("{separator}{name}:{}", Millis(took)));
        }
    }
    if r.attempts > 1 {
        push(out, format_args!(" attempts={}", r.attempts));
    }
    if let Some(status) = r.final_status {
        push(out, format_args!(" final={status}"));
    }
    if let Some(reason) = r.reason {
        push(out, format_args!(" reason={reason}"));
    }
    if let Some(timer) = r.timer {
        push(out, format_args!(" timer={}", timer.as_str()));
    }
    push(out, format_args!(" {}B", r.bytes_out));
    if let Some(client) = r.client {
        push(out, format_args!(" client={client}"));
    }
    if !r.request_id.is_empty() {
        out.extend_from_slice(b" id=");
        word(out, r.request_id);
    }
    if let Some(detail) = r.detail {
        out.extend_from_slice(b" detail=\"");
        json(out, detail.as_bytes());
        out.push(b'"');
    }
    out.push(b'\n');
}

/// An endpoint's address. A Unix socket's path may hold any byte, and so is escaped.
fn endpoint_text(out: &mut Vec<u8>, endpoint: &sluice_model::EndpointAddr, escape: fn(&mut Vec<u8>, &[u8])) {
    use std::os::unix::ffi::OsStrExt;
    match endpoint {
        sluice_model::EndpointAddr::Tcp(addr) => push(out, format_args!("{addr}")),
        sluice_model::EndpointAddr::Unix(path) => {
            out.extend_from_slice(b"unix:");
            escape(out, path.as_os_str().as_bytes());
        }
    }
}

/// RFC 3339 in UTC, to the millisecond.
fn push_time(out: &mut Vec<u8>, time: SystemTime) {
    // humantime panics outside of 1970 to 9999, where a clock without a battery may stand.
    let last = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    let time = time.clamp(SystemTime::UNIX_EPOCH, last);
    push(out, format_args!("{}", humantime::format_rfc3339_millis(time)));
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::{Value, json};
    use sluice_model::{EndpointAddr, RevisionId, ServiceId};

    use super::super::phases::Milestones;
    use super::super::record::{RequestProtocol, Timer, tests::plain};
    use super::super::{LogWriter, Reason};
    use super::*;
    use crate::throttle::StartTimeline;

    fn line(write: fn(&mut Vec<u8>, &RequestRecord<'_>), record: &RequestRecord<'_>) -> String {
        let mut out = Vec::new();
        write(&mut out, record);
        String::from_utf8(out).unwrap()
    }

    fn parsed(record: &RequestRecord<'_>) -> Value {
        let line = line(json_line, record);
        assert_eq!(line.matches('\n').count(), 1);
        serde_json::from_str(&line).unwrap()
    }

    #[test]
    fn json_has_every_key_of_the_contract() {
        let service = ServiceId::parse("default", "greeter").unwrap();
        let revision = RevisionId::parse("default", "greeter-v2").unwrap();
        let endpoint = EndpointAddr::Tcp(([127, 0, 0, 1], 20_001).into());
        let record = RequestRecord {
            service: Some(&service),
            revision: Some(&revision),
            endpoint: Some(&endpoint),
            first_byte: Some(Duration::from_micros(1_100)),
            queue: Some(Duration::from_millis(812)),
            phases: Some(&waited(None)),
            upstream: Some(Duration::from_micros(350)),
            user_agent: Some(b"curl/8"),
            status: Some(504),
            final_status: Some(502),
            reason: Some(Reason::Timeout),
            timer: Some(Timer::Start),
            protocol: RequestProtocol::Http2,
            detail: Some("no head"),
            ..plain()
        };
        let want = json!({
            "time": "2023-11-14T22:13:20.123Z", "request_id": "0190", "client": "127.0.0.1", "method": "GET",
            "host": "greeter.default.localhost", "path": "/hello", "protocol": "HTTP/2", "status": 504, "final_status": 502,
            "reason": "timeout", "timer": "start", "detail": "no head", "generation": 1, "namespace": "default",
            "service": "greeter", "revision": "greeter-v2", "endpoint": "127.0.0.1:20001", "bytes_in": 0,
            "bytes_out": 12, "duration_ms": 1.234, "first_byte_ms": 1.1, "queue_ms": 812.0,
            "phases_ms": {"queued": 0.25, "first_byte": 0.85}, "upstream_ms": 0.35, "attempts": 1,
            "user_agent": "curl/8",
        });
        assert_eq!(parsed(&record), want);
        let bare = parsed(&plain());
        let keys = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&bare), keys(&want), "keys do not depend on the request");
        assert_eq!(bare["service"], Value::Null);
    }

    /// Arrived, admitted after 250 µs, answered after 1.1 ms.
    fn waited(start: Option<StartTimeline>) -> Phases {
        let arrived = std::time::Instant::now();
        Phases::of(&Milestones {
            arrived,
            start,
            admitted: Some(arrived + Duration::from_micros(250)),
            first_byte: arrived + Duration::from_micros(1_100),
        })
    }

    #[test]
    fn a_cold_request_tells_where_its_time_went() {
        let warm = waited(None);
        let record = RequestRecord {
            phases: Some(&warm),
            ..plain()
        };
        assert!(!line(pretty_line, &record).contains("cold="));
        let cold = waited(Some(StartTimeline::default()));
        let record = RequestRecord {
            phases: Some(&cold),
            ..plain()
        };
        let want =
            " 1.234ms cold=queued:0.250,starting:0.000,booting:0.000,admitting:0.000,first_byte:0.850 12B ";
        let pretty = line(pretty_line, &record);
        assert!(pretty.contains(want), "{pretty}");
        let phases = &parsed(&record)["phases_ms"];
        let sum: f64 = phases
            .as_object()
            .unwrap()
            .values()
            .filter_map(Value::as_f64)
            .sum();
        assert!((sum - 1.1).abs() < 1e-9, "{phases}");
    }

    #[test]
    fn what_a_client_sends_stays_inside_its_field() {
        let record = RequestRecord {
            host: b"a\",\"status\":200,\"x\":\"",
            path: b"/\xff\x00\x1b[2J\n{}",
            method: b"GE\rT",
            user_agent: Some(b"\\\"\xe2\x80\xa8"),
            ..plain()
        };
        let value = parsed(&record);
        assert_eq!(value["host"], "a\",\"status\":200,\"x\":\"");
        assert_eq!(value["path"], "/\u{fffd}\0\u{1b}[2J\n{}");
        assert_eq!(value["user_agent"], "\\\"\u{2028}");
        let pretty = line(pretty_line, &record);
        assert!(
            pretty.ends_with('\n') && !pretty.trim_end().chars().any(char::is_control),
            "{pretty}"
        );
    }

    #[test]
    fn pretty_is_short_where_nothing_happened() {
        assert_eq!(
            line(pretty_line, &plain()),
            "2023-11-14T22:13:20.123Z 200 GET greeter.default.localhost/hello 1.234ms 12B client=127.0.0.1 id=0190\n"
        );
        let revision = RevisionId::parse("default", "v2").unwrap();
        let endpoint = EndpointAddr::Unix(PathBuf::from("/run/a b.sock"));
        let record = RequestRecord {
            revision: Some(&revision),
            endpoint: Some(&endpoint),
            status: None,
            reason: Some(Reason::ClientGone),
            attempts: 2,
            client: None,
            request_id: b"",
            ..plain()
        };
        assert_eq!(
            line(pretty_line, &record),
            "2023-11-14T22:13:20.123Z 499 GET greeter.default.localhost/hello -> default/v2 \
             unix:/run/a\\x20b.sock 1.234ms attempts=2 reason=client_gone 12B\n"
        );
    }

    #[test]
    fn clocks_before_1970_and_after_9999_panic_nobody() {
        for time in [
            SystemTime::UNIX_EPOCH - Duration::from_secs(9),
            SystemTime::UNIX_EPOCH + Duration::from_secs(300_000_000_000),
        ] {
            parsed(&RequestRecord { time, ..plain() });
        }
    }

    #[test]
    fn off_writes_nothing() {
        use std::io::{Read, Seek};
        let mut file = tempfile::tempfile().unwrap();
        let writer =
            LogWriter::start("test", file.try_clone().unwrap(), 4096, metrics::Counter::noop()).unwrap();
        let log = AccessLog::new(writer.sink());
        log.log(AccessLogFormat::Off, &plain());
        log.log(AccessLogFormat::Json, &plain());
        log.log(AccessLogFormat::Pretty, &plain());
        assert!(writer.shutdown(Duration::from_secs(10)));
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text.lines().count(), 2);
    }
}
