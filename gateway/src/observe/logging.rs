//! The process's own log, on stderr.
//!
//! Level policy, for our code and as a promise to operators who alert on levels:
//!
//! - `error`: somebody must act, for something that was configured is missing: a reload was rejected, a
//!   listener's port is taken, the supervisor is gone.
//! - `warn`: degraded but still serving: an instance crashed and is backed off, a changed
//!   certificate cannot be used, a name does not resolve.
//! - `info`: the lifecycle only: started, bound, generation applied, instance started and stopped,
//!   draining, gone. A gateway under load with nothing wrong is silent.
//! - `debug`: per request and per connection. A request that fails is in the access log and in the
//!   metrics with its reason; nothing that a client does may log above `debug`.
//! - `trace`: per chunk and per decision.
//!
//! Pingora and rustls log each client's failed handshake or broken request at `error` or `warn`
//! through the `log` crate. The bridge lowers these records to `debug` and below, so that the
//! policy also holds for them and `SLUICE_LOG=debug` still shows them. The `h2` crate warns of clients' input
//! through `tracing`, which has no bridge: the warnings of `h2` are shown only where the filter names `h2`.

use std::fmt;
use std::io::IsTerminal;

use thiserror::Error;
use tracing::Subscriber;
use tracing_log::log::{self, Level, Log, Metadata, Record};
use tracing_log::{AsLog, LogTracer};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::layer::SubscriberExt;

use super::log_writer::LogSink;

/// Crates whose records of any level are about single clients.
const LOWERED: [&str; 2] = ["pingora", "rustls"];

/// Prefix of every filter: a directive for h2 in the filter itself wins.
const H2_QUIET: &str = "h2=error";

/// The format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

/// Errors of [`init_logging`].
#[derive(Debug, Error)]
pub enum LoggingError {
    /// The value of the variable is not a filter.
    #[error("{variable} is not a log filter: {source} (try `info` or `sluice_gateway=debug,info`)")]
    Filter {
        /// The environment variable.
        variable: &'static str,
        /// The parser's error.
        source: ParseError,
    },
    /// A log was already set up in this process.
    #[error("a log is already set up in this process")]
    Repeated,
}

/// Sets up the log of this process: `SLUICE_LOG`, else `RUST_LOG`, else `info`. Lines go to
/// `sink`; the composition root starts its writer on stderr.
///
/// # Errors
/// [`LoggingError`].
pub fn init_logging(format: LogFormat, sink: LogSink) -> Result<(), LoggingError> {
    let filter = filter(|variable| std::env::var(variable).ok())?;
    // The filter decides; the maximum level only spares records the way to the filter. Levels are lowered, never
    // raised, so a record above the maximum before lowering would not pass the filter afterwards.
    let max_level = filter
        .max_level_hint()
        .map_or(log::LevelFilter::Trace, |hint| hint.as_log());
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let subscriber = subscriber(format, filter, colours, sink);
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LoggingError::Repeated)?;
    log::set_boxed_logger(Box::new(Bridge::default())).map_err(|_| LoggingError::Repeated)?;
    log::set_max_level(max_level);
    Ok(())
}

fn filter(variable: impl Fn(&str) -> Option<String>) -> Result<EnvFilter, LoggingError> {
    for name in ["SLUICE_LOG", "RUST_LOG"] {
        if let Some(text) = variable(name).filter(|text| !text.trim().is_empty()) {
            return EnvFilter::try_new(format!("{H2_QUIET},{text}")).map_err(|source| LoggingError::Filter {
                variable: name,
                source,
            });
        }
    }
    Ok(EnvFilter::new(format!("{H2_QUIET},info")))
}

fn subscriber(
    format: LogFormat,
    filter: EnvFilter,
    colours: bool,
    sink: LogSink,
) -> Box<dyn Subscriber + Send + Sync> {
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(move || sink.clone());
    match format {
        LogFormat::Pretty => Box::new(registry.with(layer.with_ansi(colours))),
        LogFormat::Json => Box::new(registry.with(layer.json().flatten_event(true))),
    }
}

/// Bridge from `log` to `tracing` that lowers the levels of some crates.
#[derive(Default)]
struct Bridge(LogTracer);

impl fmt::Debug for Bridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bridge")
    }
}

fn lowered(target: &str, level: Level) -> Level {
    if !LOWERED.iter().any(|prefix| target.starts_with(prefix)) {
        return level;
    }
    match level {
        Level::Error | Level::Warn | Level::Info => Level::Debug,
        Level::Debug | Level::Trace => Level::Trace,
    }
}

impl Log for Bridge {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let level = lowered(metadata.target(), metadata.level());
        let metadata = Metadata::builder().level(level).target(metadata.target()).build();
        self.0.enabled(&metadata)
    }

    fn log(&self, record: &Record<'_>) {
        let level = lowered(record.target(), record.level());
        let lowered = Record::builder()
            .level(level)
            .args(*record.args())
            .target(record.target())
            .module_path(record.module_path())
            .file(record.file())
            .line(record.line())
            .build();
        self.0.log(&lowered);
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};
    use std::time::Duration;

    use super::super::LogWriter;
    use super::*;

    /// The log's text after `act`.
    fn logged(format: LogFormat, filter: &str, act: impl FnOnce()) -> String {
        let mut file = tempfile::tempfile().unwrap();
        let dropped = metrics::Counter::noop();
        let writer = LogWriter::start("test", file.try_clone().unwrap(), 1 << 16, dropped).unwrap();
        let filter = EnvFilter::new(filter);
        tracing::subscriber::with_default(subscriber(format, filter, false, writer.sink()), act);
        assert!(writer.shutdown(Duration::from_secs(10)));
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        text
    }

    fn record(target: &str, level: Level) {
        let message = format_args!("handshake failed");
        let record = Record::builder()
            .target(target)
            .level(level)
            .args(message)
            .build();
        Bridge::default().log(&record);
    }

    #[test]
    fn one_line_per_event_in_both_formats() {
        let act = || tracing::info!(generation = 3, "applied\nto all");
        let text = logged(LogFormat::Json, "info", act);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["message"], "applied\nto all");
        assert_eq!(
            (&value["generation"], &value["level"]),
            (&3.into(), &"INFO".into())
        );
        let text = logged(LogFormat::Pretty, "info", act);
        assert!(text.contains("INFO") && text.contains("generation=3"), "{text}");
    }

    #[test]
    fn other_crates_cannot_raise_the_alarm_for_a_client() {
        let act = || {
            record("pingora_core::protocols::tls", Level::Error);
            record("rustls::conn", Level::Warn);
            record("notify", Level::Warn);
        };
        let text = logged(LogFormat::Pretty, "info", act);
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("WARN") && text.contains("notify"), "{text}");
        let text = logged(LogFormat::Pretty, "debug", act);
        assert_eq!(text.matches("DEBUG").count(), 2, "{text}");
    }

    #[test]
    fn h2_warns_of_clients_only_where_the_filter_names_it() {
        let lines = |set: Option<&str>| {
            let filter = filter(|_| set.map(str::to_owned)).unwrap().to_string();
            logged(LogFormat::Pretty, &filter, || {
                tracing::warn!(target: "h2::proto::ping_pong", "a client's");
                tracing::warn!("ours");
            })
            .lines()
            .count()
        };
        assert_eq!(
            (lines(None), lines(Some("debug")), lines(Some("info,h2=warn"))),
            (1, 1, 2)
        );
    }

    #[test]
    fn the_filter_comes_from_the_first_variable_that_is_set() {
        let vars = |sluice: &'static str, rust: &'static str| {
            move |name: &str| match name {
                "SLUICE_LOG" => Some(sluice.to_owned()),
                _ => Some(rust.to_owned()),
            }
        };
        let text = |f: Result<EnvFilter, LoggingError>| f.unwrap().to_string();
        assert_eq!(text(filter(|_| None)), "h2=error,info");
        assert_eq!(text(filter(vars("debug", "trace"))), "h2=error,debug");
        assert_eq!(text(filter(vars(" ", "trace"))), "h2=error,trace");
        let error = filter(vars("a=b=c", "")).unwrap_err().to_string();
        assert!(error.starts_with("SLUICE_LOG"), "{error}");
    }
}
