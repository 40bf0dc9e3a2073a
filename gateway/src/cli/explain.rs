//! `sluice explain`: the query, and the result as text.

use std::fmt::Write;
use std::process::ExitCode;

use http::StatusCode;
use serde_json::Value;

use super::table::printable;
use super::{AdminError, AdminUrl, ExplainArgs, OutputFormat, block_on, client, fail, print};
use crate::admin::{ExplainQuery, QueryError};

impl ExplainArgs {
    /// The query that the arguments make.
    ///
    /// # Errors
    /// [`QueryError`]; an argument that is not a header was already refused by the parser of arguments.
    pub fn query(&self) -> Result<ExplainQuery, QueryError> {
        ExplainQuery::new(&self.url, &self.method, &self.headers)
    }
}

/// Queries the running gateway at `admin` and prints the result. Exits 0, 1 when nothing would serve
/// the request, 2 when there is no response.
pub fn run_remote(args: &ExplainArgs, admin: &AdminUrl) -> ExitCode {
    let query = match args.query() {
        Ok(query) => query,
        Err(error) => return fail(error),
    };
    match block_on(fetch(admin, &query)) {
        Ok(Ok(value)) => answer(&value, args.format),
        Ok(Err(error)) => fail(error),
        Err(error) => fail(error),
    }
}

async fn fetch(admin: &AdminUrl, query: &ExplainQuery) -> Result<Value, AdminError> {
    let strange = |what: String| AdminError::Strange {
        url: admin.clone(),
        what,
    };
    let target = format!("/api/explain?{}", query.encode());
    let (status, body) = client::get(admin, &target).await?;
    let value: Value = serde_json::from_slice(&body).map_err(|e| strange(format!("{status}, {e}")))?;
    if status != StatusCode::OK {
        let error = value["error"].as_str().unwrap_or("no reason given");
        return Err(strange(format!("/api/explain is {status}: {error}")));
    }
    Ok(value)
}

/// Prints a result of `explain`. Exits 0, or 1 when nothing would serve the request.
pub fn answer(value: &Value, format: OutputFormat) -> ExitCode {
    match format {
        OutputFormat::Text => print(&render(value)),
        OutputFormat::Json => print(&format!("{value:#}\n")),
    }
    if found(value) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    }
}

/// Whether something would serve the request; false where the key `found` is missing.
fn found(value: &Value) -> bool {
    value["found"].as_bool().unwrap_or(false)
}

/// Keys shown first and in this order: the order of a request's routing.
const ORDER: [&str; 17] = [
    "listener", "host", "path", "service", "paused", "rule", "route", "tag", "split", "revision", "backend",
    "needs", "rewrite", "cold", "noWake", "reason", "why",
];

/// Keys shown in the first or the last line instead.
const ELSEWHERE: [&str; 3] = ["url", "method", "found"];

/// The result as text; [`explain`](crate::explain::explain) has its keys.
pub fn render(value: &Value) -> String {
    let mut out = String::new();
    if let Some(url) = value["url"].as_str() {
        let method = value["method"].as_str().unwrap_or("GET");
        // A String takes everything, here and below.
        let _ = writeln!(out, "{} {}\n", printable(method), printable(url));
    }
    let empty = serde_json::Map::new();
    let map = value.as_object().unwrap_or(&empty);
    let known = ORDER.into_iter().filter_map(|key| map.get_key_value(key));
    let other = map
        .iter()
        .filter(|(key, _)| !ORDER.contains(&key.as_str()) && !ELSEWHERE.contains(&key.as_str()));
    let entries: Vec<(String, Vec<String>)> = known
        .chain(other)
        .map(|(key, value)| (printable(key), lines(value)))
        .filter(|(_, lines)| !lines.is_empty())
        .collect();
    let width = entries
        .iter()
        .map(|(key, _)| key.chars().count())
        .max()
        .unwrap_or(0);
    for (key, lines) in &entries {
        for (i, line) in lines.iter().enumerate() {
            let key = if i == 0 { key.as_str() } else { "" };
            let _ = writeln!(out, "{key:<width$}  {line}");
        }
    }
    if !found(value) {
        out.push_str("\nnothing would serve this request\n");
    }
    out
}

/// One line per element of a list, none for an absent value.
fn lines(value: &Value) -> Vec<String> {
    match value {
        Value::Array(items) => items.iter().map(inline).filter(|line| !line.is_empty()).collect(),
        other => Some(inline(other))
            .filter(|line| !line.is_empty())
            .into_iter()
            .collect(),
    }
}

/// `name=value name=value`, absent ones left out.
fn inline(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => printable(text),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::Array(items) => items.iter().map(inline).collect::<Vec<_>>().join(", "),
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| (key, inline(value)))
            .filter(|(_, value)| !value.is_empty())
            .map(|(key, value)| format!("{}={value}", printable(key)))
            .collect::<Vec<_>>()
            .join(" "),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;

    use serde_json::json;
    use tokio::task::JoinSet;

    use super::*;
    use crate::admin::fixture::FakeGateway;
    use crate::admin::{AdminServer, AdminState, Purpose};

    #[test]
    fn the_text_follows_the_request() {
        let value = json!({
            "found": true, "url": "http://greeter.default.localhost:8080/", "method": "GET",
            "revision": "greeter-v2", "service": "default/greeter", "host": "greeter.default.localhost",
            "listener": {"address": "127.0.0.1:8080", "visibility": "external"}, "tag": null,
            "split": [{"revision": "greeter-v1", "percent": 50, "tag": "current"},
                      {"revision": "greeter-v2", "percent": 50, "tag": null}],
            "why": ["the host is claimed by default/greeter", "no route matches: its own traffic"],
            "zone": "a",
        });
        assert_eq!(
            render(&value),
            "\
GET http://greeter.default.localhost:8080/

listener  address=127.0.0.1:8080 visibility=external
host      greeter.default.localhost
service   default/greeter
split     percent=50 revision=greeter-v1 tag=current
          percent=50 revision=greeter-v2
revision  greeter-v2
why       the host is claimed by default/greeter
          no route matches: its own traffic
zone      a
"
        );
    }

    #[test]
    fn nothing_found_says_so() {
        let text = render(&json!({"found": false, "reason": "no_route"}));
        assert_eq!(text, "reason  no_route\n\nnothing would serve this request\n");
        assert!(render(&Value::Null).contains("nothing would serve"));
    }

    #[tokio::test]
    async fn a_running_gateway_is_asked() {
        let loopback: SocketAddr = ([127, 0, 0, 1], 0).into();
        let server = AdminServer::bind(loopback, Purpose::Admin).await.unwrap();
        let admin: AdminUrl = server.address().to_string().parse().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(server.serve(
            Arc::new(FakeGateway::new()) as Arc<dyn AdminState>,
            crate::admin::graceful_shutdown().1,
        ));
        let headers = ["Host: greeter.default.localhost".to_owned()];
        let query = ExplainQuery::new("http://x/ü?a=b&c", "get", &headers).unwrap();
        let value = fetch(&admin, &query).await.unwrap();
        assert_eq!(
            (&value["found"], &value["host"], &value["path"]),
            (&json!(true), &json!("greeter.default.localhost"), &json!("/ü")),
            "{value:#}"
        );
        let empty = ExplainQuery::new("", "get", &[]).unwrap();
        let error = fetch(&admin, &empty).await.unwrap_err().to_string();
        assert!(error.contains("`url` is missing"), "{error}");
    }
}
