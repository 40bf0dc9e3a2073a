//! Settings of traces: the standard variables of OpenTelemetry
//! (<https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>).
//!
//! As that specification asks, a mistake in a variable stops nothing: the variable counts as not set, and the mistake is told.

use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use sluice_model::CertificateFiles;

use super::sampler::{NAMES, Sampler};

/// Where traces go, and how.
#[derive(Debug, Clone)]
pub struct TraceSettings {
    /// The URL that traces are posted to; http or https.
    pub endpoint: Uri,
    /// Fields of each POST. Values are secrets.
    pub headers: HeaderMap,
    /// Timeout of one POST.
    pub timeout: Duration,
    /// Whether bodies are compressed by gzip.
    pub gzip: bool,
    /// PEM file with the only trusted authorities; `None` for the system's.
    pub certificate: Option<PathBuf>,
    /// The client certificate.
    pub client_certificate: Option<CertificateFiles>,
    /// Which requests are recorded.
    pub sampler: Sampler,
    /// Attributes of the resource, `service.name` among them.
    pub resource: Vec<(String, String)>,
    /// The longest time that a span waits for its batch.
    pub schedule_delay: Duration,
    /// The longest time that one batch is tried.
    pub export_timeout: Duration,
    /// Most spans that wait.
    pub max_queue_size: usize,
    /// Most spans of one POST.
    pub max_batch_size: usize,
}

/// What the environment says.
#[derive(Debug, Default)]
pub struct TraceEnvironment {
    /// `None`: no traces are made.
    pub settings: Option<TraceSettings>,
    /// Mistakes and what is not supported, a line each. No line holds a secret.
    pub warnings: Vec<String>,
}

/// Where a collector listens that no variable names.
const DEFAULT_ENDPOINT: &str = "http://localhost:4318";

/// The path of traces below `OTEL_EXPORTER_OTLP_ENDPOINT`.
const TRACES_PATH: &str = "/v1/traces";

impl TraceEnvironment {
    /// Reads the variables. Traces are made where an endpoint is named, or the exporter is (`OTEL_TRACES_EXPORTER=otlp`).
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let mut reader = Reader {
            variable,
            warnings: Vec::new(),
        };
        let settings = reader.settings();
        Self {
            settings,
            warnings: reader.warnings,
        }
    }
}

struct Reader<F> {
    variable: F,
    warnings: Vec<String>,
}

impl<F: Fn(&str) -> Option<String>> Reader<F> {
    fn settings(&mut self) -> Option<TraceSettings> {
        if self.is_disabled() || !self.is_wanted() {
            return None;
        }
        let endpoint = self.endpoint()?;
        self.note_unsupported();
        let max_queue_size = self.size("OTEL_BSP_MAX_QUEUE_SIZE", 2048);
        let client = (self.otlp("CLIENT_CERTIFICATE"), self.otlp("CLIENT_KEY"));
        let client_certificate = match client {
            (Some((_, cert)), Some((_, key))) => Some(CertificateFiles {
                cert_file: cert.into(),
                key_file: key.into(),
            }),
            (None, None) => None,
            (Some((name, _)), None) | (None, Some((name, _))) => {
                self.warn(&name, "takes effect only together with certificate and key");
                None
            }
        };
        Some(TraceSettings {
            endpoint,
            headers: self.headers(),
            timeout: self.otlp_timeout(),
            gzip: self.gzip(),
            certificate: self.otlp("CERTIFICATE").map(|(_, file)| file.into()),
            client_certificate,
            sampler: self.sampler(),
            resource: self.resource(),
            schedule_delay: self.millis("OTEL_BSP_SCHEDULE_DELAY", 5_000),
            export_timeout: self.millis("OTEL_BSP_EXPORT_TIMEOUT", 30_000),
            max_queue_size,
            max_batch_size: self
                .size("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512)
                .min(max_queue_size),
        })
    }

    /// The value of a variable; an empty one counts as not set.
    fn get(&self, name: &str) -> Option<String> {
        let value = (self.variable)(name)?;
        let value = value.trim();
        (!value.is_empty()).then(|| value.to_owned())
    }

    /// The value for traces, else the one for all signals, with the variable's name.
    fn otlp(&self, what: &str) -> Option<(String, String)> {
        let names = [
            format!("OTEL_EXPORTER_OTLP_TRACES_{what}"),
            format!("OTEL_EXPORTER_OTLP_{what}"),
        ];
        names
            .into_iter()
            .find_map(|name| self.get(&name).map(|value| (name, value)))
    }

    fn warn(&mut self, name: &str, what: &str) {
        self.warnings.push(format!("{name}: {what}"));
    }

    fn is_disabled(&mut self) -> bool {
        let name = "OTEL_SDK_DISABLED";
        match self.get(name) {
            Some(value) if value.eq_ignore_ascii_case("true") => true,
            Some(value) if !value.eq_ignore_ascii_case("false") => {
                self.warn(
                    name,
                    &format!("'{value}' is neither true nor false: it counts as false"),
                );
                false
            }
            _ => false,
        }
    }

    fn is_wanted(&mut self) -> bool {
        let name = "OTEL_TRACES_EXPORTER";
        let exporters = self.get(name);
        let mut named = exporters.iter().flat_map(|list| list.split(',')).map(str::trim);
        if named.clone().any(|exporter| exporter == "otlp") {
            return true;
        }
        match named.next() {
            Some("none") => false,
            Some(other) => {
                self.warn(
                    name,
                    &format!("'{other}' is not supported, only otlp is: no traces are made"),
                );
                false
            }
            None => {
                let named = self.otlp("ENDPOINT").is_some();
                let sampler = "OTEL_TRACES_SAMPLER";
                if !named && self.get(sampler).is_some() {
                    self.warn(
                        sampler,
                        "no traces are made: name a collector in OTEL_EXPORTER_OTLP_ENDPOINT",
                    );
                }
                named
            }
        }
    }

    /// `None` where traces have nowhere to go.
    fn endpoint(&mut self) -> Option<Uri> {
        let named = self.otlp("ENDPOINT");
        let (name, url) = named.unwrap_or_else(|| ("the default".to_owned(), DEFAULT_ENDPOINT.to_owned()));
        let full = if name.contains("_TRACES_") {
            url
        } else {
            format!("{}{TRACES_PATH}", url.trim_end_matches('/'))
        };
        let url = full.parse::<Uri>().ok().filter(|uri| {
            let http = matches!(uri.scheme_str(), Some("http" | "https"));
            http && uri
                .authority()
                .is_some_and(|a| !a.as_str().contains('@') && !a.host().is_empty())
        });
        if url.is_none() {
            self.warn(&name, "write it as http://HOST:PORT or https://HOST:PORT, without user and password: no traces are made");
        }
        url
    }

    fn note_unsupported(&mut self) {
        if let Some((name, protocol)) = self.otlp("PROTOCOL")
            && protocol != "http/protobuf"
        {
            self.warn(
                &name,
                &format!("'{protocol}' is not supported: http/protobuf is spoken"),
            );
        }
        let name = "OTEL_PROPAGATORS";
        if let Some(list) = self.get(name)
            && !list.split(',').any(|one| one.trim() == "tracecontext")
        {
            self.warn(
                name,
                &format!(
                    "'{list}' is not supported: tracecontext is spoken, and other fields pass untouched"
                ),
            );
        }
    }

    fn gzip(&mut self) -> bool {
        match self.otlp("COMPRESSION") {
            Some((_, value)) if value == "gzip" => true,
            Some((name, value)) if value != "none" => {
                self.warn(
                    &name,
                    &format!("'{value}' is neither gzip nor none: nothing is compressed"),
                );
                false
            }
            _ => false,
        }
    }

    /// Headers as a list of `name=value` with percent-encoded values.
    fn headers(&mut self) -> HeaderMap {
        let mut fields = HeaderMap::new();
        let Some((name, list)) = self.otlp("HEADERS") else {
            return fields;
        };
        for (place, pair) in list
            .split(',')
            .enumerate()
            .filter(|(_, pair)| !pair.trim().is_empty())
        {
            let parsed = key_and_value(pair).and_then(|(key, value)| {
                let field = HeaderName::try_from(key).ok()?;
                let mut value = HeaderValue::try_from(value).ok()?;
                value.set_sensitive(true);
                Some((field, value))
            });
            match parsed {
                Some((field, value)) => _ = fields.append(field, value),
                // Not the text: it may be a secret.
                None => self.warn(
                    &name,
                    &format!("part {} is no header: write name=value", place + 1),
                ),
            }
        }
        fields
    }

    fn resource(&mut self) -> Vec<(String, String)> {
        const SERVICE: &str = "service.name";
        let mut resource: Vec<(String, String)> = Vec::new();
        let name = "OTEL_RESOURCE_ATTRIBUTES";
        let list = self.get(name).unwrap_or_default();
        for pair in list.split(',').filter(|pair| !pair.trim().is_empty()) {
            match key_and_value(pair) {
                Some((key, value)) => {
                    resource.retain(|(known, _)| *known != key);
                    resource.push((key, value));
                }
                None => self.warn(
                    name,
                    &format!("'{}' is no attribute: write key=value", pair.trim()),
                ),
            }
        }
        if let Some(service) = self.get("OTEL_SERVICE_NAME") {
            resource.retain(|(known, _)| known != SERVICE);
            resource.push((SERVICE.to_owned(), service));
        } else if !resource.iter().any(|(known, _)| known == SERVICE) {
            resource.push((SERVICE.to_owned(), "sluice".to_owned()));
        }
        resource
    }

    fn sampler(&mut self) -> Sampler {
        let argument = "OTEL_TRACES_SAMPLER_ARG";
        let name = "OTEL_TRACES_SAMPLER";
        let Some(wanted) = self.get(name) else {
            return Sampler::default();
        };
        let takes_ratio = wanted.ends_with("traceidratio");
        let ratio = match self.get(argument).filter(|_| takes_ratio) {
            None => 1.0,
            Some(text) => match text.parse() {
                Ok(ratio) if (0.0..=1.0).contains(&ratio) => ratio,
                _ => {
                    self.warn(
                        argument,
                        &format!("'{text}' is no number from 0 to 1: it counts as 1"),
                    );
                    1.0
                }
            },
        };
        Sampler::named(&wanted, ratio).unwrap_or_else(|| {
            let close = |known: &&str| strsim::damerau_levenshtein(known, &wanted) <= 3;
            let hint = match NAMES.into_iter().find(close) {
                Some(known) => format!("did you mean '{known}'?"),
                None => format!("there are {}", NAMES.join(", ")),
            };
            self.warn(
                name,
                &format!("'{wanted}' is no sampler, {} is used; {hint}", NAMES[0]),
            );
            Sampler::default()
        })
    }

    fn otlp_timeout(&mut self) -> Duration {
        let name = self.otlp("TIMEOUT").map(|(name, _)| name);
        self.millis(name.as_deref().unwrap_or_default(), 10_000)
    }

    fn millis(&mut self, name: &str, default: u64) -> Duration {
        Duration::from_millis(self.number(name, "milliseconds, at least 1", default))
    }

    fn size(&mut self, name: &str, default: u64) -> usize {
        usize::try_from(self.number(name, "spans, at least 1", default)).unwrap_or(usize::MAX)
    }

    /// A whole number from 1 to 2^31 - 1: as many milliseconds are 24 days.
    fn number(&mut self, name: &str, unit: &str, default: u64) -> u64 {
        let Some(text) = self.get(name) else {
            return default;
        };
        match text.parse() {
            Ok(number @ 1..=0x7fff_ffff) => number,
            _ => {
                self.warn(
                    name,
                    &format!("'{text}' is no number of {unit}: {default} is used"),
                );
                default
            }
        }
    }
}

/// Splits `key=value`, and decodes the value's percent-encoding.
fn key_and_value(pair: &str) -> Option<(String, String)> {
    let (key, value) = pair.split_once('=')?;
    let key = key.trim();
    (!key.is_empty()).then_some(())?;
    Some((key.to_owned(), percent_decoded(value.trim())?))
}

/// `None` for malformed escapes, and where the bytes are not UTF-8.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    let digit = |bytes: &mut std::str::Bytes<'_>| char::from(bytes.next()?).to_digit(16);
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => u8::try_from(digit(&mut bytes)? * 16 + digit(&mut bytes)?).ok()?,
            other => other,
        });
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
