//! A client of the test cluster's API server, for what would need thousands of `kubectl`s: objects by the thousand,
//! changes every few milliseconds, and polls.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

use serde_json::Value;

use crate::cluster::NODE;
use crate::dial::{Dial, Io};
use crate::h1::{self, H1};
use crate::tls;

/// Where the API server listens.
pub const ADDRESS: SocketAddr = SocketAddr::new(NODE, 6443);

/// The API server, with an administrator's token.
#[derive(Debug, Clone)]
pub struct ApiServer {
    dial: Dial,
    authorization: String,
}

impl ApiServer {
    /// That of the cluster whose state is in `dir`.
    ///
    /// # Panics
    /// When the files of a cluster are not there.
    pub fn of(dir: &Path) -> Self {
        let file = |name: &str| std::fs::read_to_string(dir.join(name)).expect("a file of the cluster");
        let tokens = file("tokens.csv");
        let token = tokens.split(',').next().unwrap_or_default();
        Self {
            dial: Dial::tls(
                ADDRESS,
                &NODE.to_string(),
                tls::trusting(&file("ca.crt"), &["http/1.1"]),
            ),
            authorization: format!("Bearer {token}"),
        }
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// The refusal.
    pub async fn connect(&self) -> io::Result<ApiConnection> {
        Ok(ApiConnection {
            http: H1::over(self.dial.connect().await?),
            authorization: self.authorization.clone(),
        })
    }

    /// [`ApiConnection::send`] on a connection of its own.
    ///
    /// # Errors
    /// As there, and the refusal of the connection.
    pub async fn send(&self, method: &str, path: &str, body: &Value) -> io::Result<Value> {
        self.connect().await?.send(method, path, body).await
    }

    /// Reads an object or a list.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn get(&self, path: &str) -> io::Result<Value> {
        self.send("GET", path, &Value::Null).await
    }
}

/// A connection to the API server, for one request after the other.
pub struct ApiConnection {
    http: H1<Io>,
    authorization: String,
}

impl ApiConnection {
    /// Sends a request and returns the object that answers it. `Null` is no body; the body of a PATCH is a merge patch,
    /// or a JSON patch where it is an array.
    ///
    /// # Errors
    /// A broken connection, and any status but 2xx with what the API server says.
    pub async fn send(&mut self, method: &str, path: &str, body: &Value) -> io::Result<Value> {
        let kind = match (method, body) {
            ("PATCH", Value::Array(_)) => "application/json-patch+json",
            ("PATCH", _) => "application/merge-patch+json",
            _ => "application/json",
        };
        let headers = [
            ("Authorization", self.authorization.as_str()),
            ("Accept", "application/json"),
            ("Content-Type", kind),
        ];
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let request = h1::request(method, "kubernetes", path, &headers, body.as_bytes());
        let answer = self.http.exchange(&request).await?;
        if !(200..300).contains(&answer.status) {
            let said = format!("{method} {path}: {} {}", answer.status, answer.text());
            return Err(io::Error::other(said));
        }
        serde_json::from_slice(&answer.body).map_err(io::Error::other)
    }
}

impl fmt::Debug for ApiConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiConnection").finish_non_exhaustive()
    }
}
