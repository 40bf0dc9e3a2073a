//! Sluice, nginx and HAProxy with configurations that ask the same of each: one worker, no access log,
//! a plain and a TLS listener, connections to the backend kept.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::child::{Child, free_addresses, program};
use super::client;
use super::{Failure, machine};

/// Which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub(crate) enum Kind {
    /// The gateway.
    Sluice,
    /// nginx.
    Nginx,
    /// HAProxy.
    Haproxy,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sluice => "sluice",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
        })
    }
}

/// Name the gateway gives its services, and the client asks for.
pub(crate) const HOST: &str = "bench.example.com";

/// How long one may take until it listens; ten thousand certificates take a while.
const STARTING: Duration = Duration::from_secs(90);

/// One that runs.
pub(crate) struct Proxy {
    pub(crate) child: Child,
    pub(crate) plain: SocketAddr,
    pub(crate) tls: SocketAddr,
    /// Only the gateway has one.
    admin: Option<SocketAddr>,
    /// Workers that it forks belong to it; instances that the gateway starts do not.
    forks: bool,
}

/// Where it puts its own files.
pub(crate) struct Place<'a> {
    pub(crate) folder: &'a Path,
    /// Bound to this CPU.
    pub(crate) cpu: Option<usize>,
}

impl Proxy {
    /// A gateway with these lines of configuration after its listener and admin address.
    pub(crate) async fn sluice(
        binary: &Path,
        name: &str,
        lines: &str,
        place: &Place<'_>,
    ) -> Result<Self, Failure> {
        let [plain, tls, admin] = free_addresses()?;
        let lines = lines.replace("@TLS@", &tls.to_string());
        let listeners = if lines.contains("listeners:") {
            String::new()
        } else {
            format!("listeners: [{{address: {plain}}}]\n")
        };
        let config = format!(
            "{listeners}admin: {{address: {admin}}}\naccessLog: {{format: off}}\ndrain: {{timeout: 1s}}\n{}",
            lines.replace("@PLAIN@", &plain.to_string())
        );
        let file = write(place.folder, &format!("{name}.yaml"), &config)?;
        let arguments = ["run".to_owned(), file.display().to_string()];
        let child = Child::start(name, binary, &arguments, place.cpu, place.folder)?;
        let mut proxy = Self {
            child,
            plain,
            tls,
            admin: Some(admin),
            forks: false,
        };
        proxy.child.listens(plain, STARTING).await?;
        Ok(proxy)
    }

    /// Any of the three in front of one backend, TLS with one certificate.
    pub(crate) async fn before(
        kind: Kind,
        sluice: &Path,
        backend: SocketAddr,
        certificate: &Certificate,
        place: &Place<'_>,
    ) -> Result<Self, Failure> {
        let Certificate { cert, key, both } = certificate;
        let (cert, key, both) = (cert.display(), key.display(), both.display());
        let folder = place.folder.display();
        match kind {
            Kind::Sluice => {
                let lines = format!(
                    "listeners:\n- {{address: @PLAIN@}}\n- address: @TLS@\n  tls: {{certificates: [{{certFile: {cert}, keyFile: {key}}}]}}\n\
                     limits: {{headerTimeout: 300s, idleTimeout: 300s}}\n\
                     services:\n- {{name: a, hosts: [{HOST}], endpoints: [{backend}]}}\n"
                );
                Self::sluice(sluice, "sluice", &lines, place).await
            }
            Kind::Nginx => {
                let [plain, tls] = free_addresses()?;
                let http = format!(
                    "upstream backend {{ server {backend}; keepalive 128; keepalive_requests 100000000; }}
  server {{
    listen {plain}; listen {tls} ssl; server_name {HOST};
    ssl_certificate {cert}; ssl_certificate_key {key};
    ssl_protocols TLSv1.2 TLSv1.3; ssl_session_cache shared:S:20m; ssl_session_tickets on;
    location / {{
      proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection \"\";
      proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr;
    }}
  }}"
                );
                let config = nginx(&folder.to_string(), &http);
                Self::peer(kind, &config, plain, tls, place).await
            }
            Kind::Haproxy => {
                let [plain, tls] = free_addresses()?;
                let config = haproxy(&format!(
                    "frontend f
  bind {plain}
  bind {tls} ssl crt {both} ssl-min-ver TLSv1.2
  option forwardfor
  default_backend b
backend b
  server s {backend}
"
                ));
                Self::peer(kind, &config, plain, tls, place).await
            }
        }
    }

    /// nginx or HAProxy with a whole configuration.
    pub(crate) async fn peer(
        kind: Kind,
        config: &str,
        plain: SocketAddr,
        tls: SocketAddr,
        place: &Place<'_>,
    ) -> Result<Self, Failure> {
        let name = kind.to_string();
        let file = write(place.folder, &format!("{name}.conf"), config)?;
        let flag = if kind == Kind::Nginx { "-c" } else { "-f" };
        let arguments = [flag.to_owned(), file.display().to_string()];
        let child = Child::start(&name, &program(&name)?, &arguments, place.cpu, place.folder)?;
        let mut proxy = Self {
            child,
            plain,
            tls,
            admin: None,
            forks: true,
        };
        proxy.child.listens(tls, STARTING).await?;
        Ok(proxy)
    }

    /// The processes that do the proxy's work.
    pub(crate) fn pids(&self) -> Vec<u32> {
        if self.forks {
            machine::family(self.child.pid())
        } else {
            vec![self.child.pid()]
        }
    }

    /// The gateway's own `/api/revisions`.
    pub(crate) async fn queued(&self, revision: &str) -> Result<u64, Failure> {
        let admin = self
            .admin
            .ok_or_else(|| Failure::Unexpected("only the gateway has an admin address".to_owned()))?;
        let body = client::get(admin, "admin", "/api/revisions").await?;
        let read: Value = serde_json::from_str(&body)
            .map_err(|e| Failure::Unexpected(format!("/api/revisions is no JSON: {e}")))?;
        let mut revisions = read["revisions"].as_array().into_iter().flatten();
        let found = revisions.find(|r| r["revision"] == revision);
        found
            .and_then(|r| r["queued"].as_u64())
            .ok_or_else(|| Failure::Unexpected(format!("/api/revisions does not know {revision}")))
    }
}

/// nginx with these lines inside of `http`.
pub(crate) fn nginx(folder: &str, http: &str) -> String {
    format!(
        "daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr warn;
worker_rlimit_nofile 20000;
events {{ worker_connections 19000; }}
http {{
  access_log off; keepalive_timeout 300s; client_header_timeout 300s; keepalive_requests 100000000;
  client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
  uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
  {http}
}}
"
    )
}

/// HAProxy with these sections after `defaults`.
pub(crate) fn haproxy(sections: &str) -> String {
    format!(
        "global
  nbthread 1
  maxconn 9000
defaults
  mode http
  timeout connect 2s
  timeout client 300s
  timeout server 300s
  timeout http-request 300s
  timeout http-keep-alive 300s
  http-reuse always
{sections}"
    )
}

/// A certificate's files, as each of the proxies wants them.
#[derive(Debug, Clone)]
pub(crate) struct Certificate {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    /// Certificate and key in one file.
    pub(crate) both: PathBuf,
}

impl Certificate {
    /// ECDSA P-256, signed by itself: clients here look at no signature.
    pub(crate) fn generate(
        folder: &Path,
        both_in: &Path,
        stem: &str,
        host: &str,
        key: &rcgen::KeyPair,
    ) -> Result<Self, Failure> {
        let failed = |e: rcgen::Error| Failure::Unexpected(format!("a certificate for {host}: {e}"));
        let params = rcgen::CertificateParams::new(vec![host.to_owned()]).map_err(failed)?;
        let cert = params.self_signed(key).map_err(failed)?.pem();
        let key = key.serialize_pem();
        Ok(Self {
            cert: write(folder, &format!("{stem}.crt"), &cert)?,
            key: write(folder, &format!("{stem}.key"), &key)?,
            both: write(both_in, &format!("{stem}.pem"), &format!("{cert}{key}"))?,
        })
    }

    /// One for [`HOST`] in a directory of its own.
    pub(crate) fn single(folder: &Path) -> Result<Self, Failure> {
        Self::generate(folder, folder, "one", HOST, &key()?)
    }
}

/// A P-256 key.
pub(crate) fn key() -> Result<rcgen::KeyPair, Failure> {
    rcgen::KeyPair::generate().map_err(|e| Failure::Unexpected(format!("a key: {e}")))
}

/// Writes a file beside others.
pub(crate) fn write(folder: &Path, name: &str, contents: &str) -> Result<PathBuf, Failure> {
    let path = folder.join(name);
    std::fs::write(&path, contents).map_err(|e| Failure::io(&path.display().to_string(), e))?;
    Ok(path)
}
