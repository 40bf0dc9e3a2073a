//! The backend of cold starts: an instance that the gateway starts, that listens on command, and that reports its
//! times and those of its requests by the common clock.
//!
//! The protocol over the socket of `MEASURE_SOCKET`: the instance sends `SERVICE`, waits for `listen N`, and reports
//! after the Nth request: `LISTENED FIRST_CONNECTION FIRST_BYTE RECEIVED...`, times in nanoseconds. Without a socket
//! the instance never listens.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

use super::Failure;
use super::client::LONG;
use super::machine::now_ns;

const SOCKET: &str = "MEASURE_SOCKET";

/// The backlog of the listener: as many connections as are held at once at most.
const BACKLOG: i32 = 4096;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// The configuration of a service with this program as its one instance.
pub(crate) fn service(
    name: &str,
    socket: Option<&Path>,
    concurrency: u32,
    extra: &str,
) -> Result<String, Failure> {
    let me = std::env::current_exe().map_err(|e| Failure::io("this executable", e))?;
    let socket = socket.map_or_else(|| "''".to_owned(), |s| s.display().to_string());
    Ok(format!(
        "- name: {name}\n  hosts: [{name}.bench]\n  containerConcurrency: {concurrency}\n  \
         process: {{command: [{}, instance], env: {{{SOCKET}: {socket}}}, stopGracePeriod: 100ms}}\n  \
         startTimeout: 600s\n  responseStartTimeoutSeconds: 0\n  autoscaling: {{maxScale: 1}}\n{extra}",
        me.display(),
    ))
}

/// The times of an instance, in nanoseconds of the common clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Timeline {
    pub(crate) listened: i64,
    /// The first connection was accepted: a probe of the gateway, or the first request's connection.
    pub(crate) connected: i64,
    /// The first byte of a request was read.
    pub(crate) first_byte: i64,
    /// The times at which each whole request was read, in order.
    pub(crate) received: Vec<i64>,
}

impl Timeline {
    fn parse(line: &str) -> Option<Self> {
        let times: Option<Vec<i64>> = line.split_whitespace().map(|t| t.parse().ok()).collect();
        let times = times?;
        let [listened, connected, first_byte, received @ ..] = times.as_slice() else {
            return None;
        };
        Some(Self {
            listened: *listened,
            connected: *connected,
            first_byte: *first_byte,
            received: received.to_vec(),
        })
    }

    /// The time at which the last whole request was read.
    pub(crate) fn last(&self) -> i64 {
        self.received.last().copied().unwrap_or(self.first_byte)
    }
}

/// The socket that instances report to.
pub(crate) struct Instances {
    listener: UnixListener,
    path: PathBuf,
}

impl Instances {
    pub(crate) fn new(folder: &Path, name: &str) -> Result<Self, Failure> {
        let path = folder.join(format!("{name}.sock"));
        let listener = UnixListener::bind(&path).map_err(|e| Failure::io(&path.display().to_string(), e))?;
        Ok(Self { listener, path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The instance of `service` that the gateway starts next.
    ///
    /// # Errors
    /// When no instance comes in time, or an instance of another service.
    pub(crate) async fn started(&self, service: &str) -> Result<Instance, Failure> {
        let accepted = tokio::time::timeout(LONG, self.listener.accept()).await;
        let (stream, _) = accepted
            .map_err(|_| Failure::Unexpected(format!("no instance of {service} within {LONG:?}")))?
            .map_err(|e| Failure::io("an instance", e))?;
        let mut instance = Instance {
            stream: BufReader::new(stream),
        };
        let name = instance.line().await?;
        if name != service {
            return Err(Failure::Unexpected(format!(
                "an instance of {name} came when {service} was asked for"
            )));
        }
        Ok(instance)
    }
}

/// An instance that waits for the command to listen.
pub(crate) struct Instance {
    stream: BufReader<UnixStream>,
}

impl Instance {
    /// Sends the command to listen now and to report after this number of requests.
    pub(crate) async fn listen(&mut self, requests: usize) -> Result<(), Failure> {
        let line = format!("listen {requests}\n");
        let sent = self.stream.get_mut().write_all(line.as_bytes()).await;
        sent.map_err(|e| Failure::io("telling an instance to listen", e))
    }

    /// Reads the report of the instance.
    pub(crate) async fn report(&mut self) -> Result<Timeline, Failure> {
        let line = tokio::time::timeout(LONG, self.line())
            .await
            .map_err(|_| Failure::Unexpected(format!("no report of an instance within {LONG:?}")))??;
        Timeline::parse(&line).ok_or_else(|| Failure::Unexpected(format!("an instance reports '{line}'")))
    }

    async fn line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        match self.stream.read_line(&mut line).await {
            Ok(0) => Err(Failure::Unexpected(
                "an instance ended without a report".to_owned(),
            )),
            Ok(_) => Ok(line.trim_end().to_owned()),
            Err(e) => Err(Failure::io("an instance", e)),
        }
    }
}

/// Runs as an instance, until the process is ended.
pub(crate) async fn run() -> Result<(), Failure> {
    let wanted = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let (Some(socket), Some(service)) = (wanted(SOCKET), wanted("K_SERVICE")) else {
        // Longer than any run; the gateway ends the process before.
        tokio::time::sleep(Duration::from_secs(900)).await;
        return Ok(());
    };
    let port = wanted("PORT").and_then(|port| port.parse().ok());
    let port: u16 = port.ok_or_else(|| Failure::Missing("PORT is not set".to_owned()))?;
    let stream = UnixStream::connect(&socket).await;
    let mut stream = BufReader::new(stream.map_err(|e| Failure::io(&socket, e))?);
    let failed = |e| Failure::io("the control socket", e);
    stream
        .get_mut()
        .write_all(format!("{service}\n").as_bytes())
        .await
        .map_err(failed)?;
    let mut line = String::new();
    stream.read_line(&mut line).await.map_err(failed)?;
    let requests: usize = line
        .trim_end()
        .strip_prefix("listen ")
        .and_then(|n| n.parse().ok())
        .ok_or_else(|| Failure::Unexpected(format!("told '{line}'")))?;

    let failed = |e| Failure::io(&format!("listening on {port}"), e);
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).map_err(failed)?;
    listener.set_reuse_address(true).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    listener
        .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())
        .map_err(failed)?;
    listener.listen(BACKLOG).map_err(failed)?;
    let listened = now_ns();
    let listener = TcpListener::from_std(listener.into()).map_err(failed)?;
    LocalSet::new()
        .run_until(serve(listener, listened, requests, stream))
        .await
}

async fn serve(
    listener: TcpListener,
    listened: i64,
    requests: usize,
    mut control: BufReader<UnixStream>,
) -> Result<(), Failure> {
    let (seen, mut sightings) = mpsc::unbounded_channel();
    let (first, connected) = oneshot::channel();
    let seen = Rc::new(seen);
    tokio::task::spawn_local(async move {
        let mut first = Some(first);
        while let Ok((stream, _)) = listener.accept().await {
            if let Some(first) = first.take() {
                let _ = first.send(now_ns());
            }
            let seen = Rc::clone(&seen);
            tokio::task::spawn_local(async move { answer(stream, &seen).await });
        }
    });
    let ended = |_| Failure::Unexpected("the listener ended".to_owned());
    let connected = connected.await.map_err(ended)?;
    let (mut first_byte, mut received) = (i64::MAX, Vec::with_capacity(requests));
    while received.len() < requests {
        let Some((byte, whole)) = sightings.recv().await else {
            break;
        };
        first_byte = first_byte.min(byte);
        received.push(whole);
    }
    received.sort_unstable();
    let mut line = format!("{listened} {connected} {first_byte}");
    for time in received {
        line.push_str(&format!(" {time}"));
    }
    line.push('\n');
    let sent = control.get_mut().write_all(line.as_bytes()).await;
    sent.map_err(|e| Failure::io("reporting", e))?;
    std::future::pending().await
}

async fn answer(mut stream: TcpStream, seen: &mpsc::UnboundedSender<(i64, i64)>) {
    let _ = stream.set_nodelay(true);
    let (mut buf, mut filled, mut first) = (vec![0; 4096], 0, 0);
    while let Ok(read @ 1..) = stream.read(&mut buf[filled..]).await {
        let now = now_ns();
        if filled == 0 {
            first = now;
        }
        filled += read;
        if buf[..filled].ends_with(b"\r\n\r\n") {
            filled = 0;
            let _ = seen.send((first, now));
            if stream.write_all(ANSWER).await.is_err() {
                return;
            }
        }
        if filled == buf.len() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeline_is_read_as_it_is_written() {
        let timeline = Timeline::parse("1000000 3000000 3500000 4000000 9000000\n").expect("a timeline");
        let (first, last) = (timeline.first_byte, timeline.last());
        assert_eq!((timeline.listened, timeline.connected), (1_000_000, 3_000_000));
        assert_eq!((first, last), (3_500_000, 9_000_000));
        assert_eq!(Timeline::parse("1 2"), None);
        assert_eq!(Timeline::parse("1 2 x"), None);
    }

    #[test]
    fn an_instance_waits_listens_and_reports() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let local = LocalSet::new();
        runtime.block_on(local.run_until(async {
            let folder = tempfile::tempdir().expect("a directory");
            let instances = Instances::new(folder.path(), "test").expect("a socket");
            let stream = UnixStream::connect(instances.path()).await.expect("it listens");
            let mut stream = BufReader::new(stream);
            stream.get_mut().write_all(b"greeter\n").await.expect("sent");
            let mut instance = instances.started("greeter").await.expect("the right one");
            instance.listen(2).await.expect("told");
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("bound");
            let listened = now_ns();
            tokio::task::spawn_local(serve(listener, listened, 2, stream));
            for _ in 0..2 {
                let mut client = super::super::client::connect(address).await.expect("it listens");
                let head = super::super::client::head("a", "/");
                let status = super::super::client::exchange(&mut client, &head).await;
                assert_eq!(status.expect("an answer"), 200);
            }
            let seen = instance.report().await.expect("a report");
            assert_eq!((seen.listened, seen.received.len()), (listened, 2));
            assert!(seen.listened <= seen.connected && seen.connected <= seen.first_byte);
            assert!(seen.first_byte <= seen.received[0] && seen.received[0] <= seen.received[1]);
        }));
    }
}
