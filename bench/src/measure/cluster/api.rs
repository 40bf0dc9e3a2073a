//! A client of the cluster's API server.

use std::time::{Duration, Instant};

use futures_util::TryStreamExt as _;
use kube::core::WatchEvent;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::measure::Failure;
use crate::measure::client::LONG;
use crate::measure::machine::now_ns;

/// The API server, as the administrator that `KUBECONFIG` names.
#[derive(Clone)]
pub(super) struct Api(kube::Client);

fn failed(what: &str, e: impl std::fmt::Display) -> Failure {
    Failure::Unexpected(format!("{what}: {e}"))
}

impl Api {
    pub(super) async fn new() -> Result<Self, Failure> {
        if std::env::var_os("SLUICE_CLUSTER_DIR").is_none() {
            let missing = "not inside a cluster: bench/cluster starts one".to_owned();
            return Err(Failure::Missing(missing));
        }
        let client = kube::Client::try_default().await;
        client.map(Self).map_err(|e| failed("the API server", e))
    }

    async fn bytes(&self, method: &str, path: &str, body: &Value) -> Result<String, Failure> {
        let kind = match (method, body) {
            ("PATCH", Value::Array(_)) => "application/json-patch+json",
            ("PATCH", _) => "application/merge-patch+json",
            _ => "application/json",
        };
        let body = if body.is_null() {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", kind);
        let request = request.body(body).map_err(|e| failed(path, e))?;
        let answer = self.0.request_text(request).await;
        answer.map_err(|e| failed(&format!("{method} {path}"), e))
    }

    /// Sends a request and returns the object that answers it. `Null` is no body; the body of a PATCH is a merge patch, or
    /// a JSON patch where it is an array.
    ///
    /// # Errors
    /// A broken connection, and any status but 2xx.
    pub(super) async fn send(&self, method: &str, path: &str, body: &Value) -> Result<Value, Failure> {
        let text = self.bytes(method, path, body).await?;
        serde_json::from_str(&text).map_err(|e| failed(path, e))
    }

    pub(super) async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.send("GET", path, &Value::Null).await
    }

    /// What is no object, such as `/metrics`.
    pub(super) async fn text(&self, path: &str) -> Result<String, Failure> {
        self.bytes("GET", path, &Value::Null).await
    }

    /// Creates these objects, each at its path, a few at once. What exists already is left as it is.
    pub(super) async fn create(&self, objects: Vec<(String, Value)>) -> Result<(), Failure> {
        const AT_ONCE: usize = 24;
        let mut creating = JoinSet::new();
        let mut shares: Vec<Vec<(String, Value)>> = (0..AT_ONCE).map(|_| Vec::new()).collect();
        for (nth, object) in objects.into_iter().enumerate() {
            shares[nth % AT_ONCE].push(object);
        }
        for share in shares {
            let api = self.clone();
            creating.spawn(async move {
                for (path, object) in share {
                    match api.send("POST", &path, &object).await {
                        Err(e) if !e.to_string().contains("already exists") => return Err(e),
                        _ => {}
                    }
                }
                Ok(())
            });
        }
        while let Some(done) = creating.join_next().await {
            done.map_err(|e| failed("creating objects", e))??;
        }
        Ok(())
    }

    /// Follows the objects of a list from now on: each change with the time at which it arrived. The list is `path` with a
    /// query, if only an empty one (`?`). The watch ends with the receiver.
    pub(super) async fn watch(&self, path: &str) -> Result<mpsc::UnboundedReceiver<(i64, Value)>, Failure> {
        let now = self.get(&format!("{path}&limit=1")).await?;
        let version = now["metadata"]["resourceVersion"].as_str().unwrap_or("0");
        let from = format!("{path}&watch=1&timeoutSeconds=3600&resourceVersion={version}");
        let request = http::Request::get(&from)
            .body(Vec::new())
            .map_err(|e| failed(path, e))?;
        let events = self.0.request_events::<Value>(request).await;
        let events = events.map_err(|e| failed(path, e))?;
        let (send, receive) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut events = std::pin::pin!(events);
            while let Ok(Some(event)) = events.try_next().await {
                let (WatchEvent::Added(object) | WatchEvent::Modified(object)) = event else {
                    continue;
                };
                if send.send((now_ns(), object)).is_err() {
                    return;
                }
            }
        });
        Ok(receive)
    }
}

/// Asks every few milliseconds until there is an answer.
///
/// # Errors
/// An error of `ask`, and a time limit.
pub(super) async fn until<T, F>(what: &str, mut ask: impl FnMut() -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<Option<T>, Failure>>,
{
    let end = Instant::now() + LONG * 3;
    loop {
        if let Some(answer) = ask().await? {
            return Ok(answer);
        }
        if Instant::now() > end {
            return Err(Failure::Unexpected(format!("not within three minutes: {what}")));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
