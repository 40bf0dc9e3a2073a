//! `sluice echo`: a small backend for demos and tests, HTTP/1.1 and h2c.
//!
//! Every response is plain text: the instance, the request line, and the request's headers as they
//! arrived, so that headers that the gateway adds and strips can be seen.

use std::convert::Infallible;
use std::fmt::Write;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::cli::EchoArgs;

/// Back-off of the accept loop when `accept` fails (no file descriptors left); without it the loop would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Errors of `sluice echo` at its start. Each message says what to do.
#[derive(Debug, Error)]
pub enum EchoError {
    /// `$PORT` is not a port.
    #[error("the environment says PORT={0}, which is not a port: set it to 0..65535 or use --port")]
    Port(String),
    /// The address cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address to listen on.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// The runtime or a signal handler cannot be set up.
    #[error("cannot start: {0}")]
    Start(#[from] io::Error),
}

/// Runs until SIGTERM or SIGINT, then finishes open requests and exits 0; exits 2 when it cannot
/// start.
pub fn run(args: &EchoArgs) -> ExitCode {
    match start(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluice echo: {error}");
            ExitCode::from(2)
        }
    }
}

fn start(args: &EchoArgs) -> Result<(), EchoError> {
    let variable = |name: &str| std::env::var(name).ok();
    let address = SocketAddr::new(args.address, port(args.port, variable("PORT"))?);
    let answers = Answers {
        message: args
            .message
            .clone()
            .or_else(|| variable("MESSAGE"))
            .unwrap_or_else(|| "Hello".to_owned()),
        revision: variable("K_REVISION"),
        delay: args.delay,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut term = signal(SignalKind::terminate())?;
        let mut int = signal(SignalKind::interrupt())?;
        let mut stop = std::pin::pin!(async move {
            tokio::select! { _ = term.recv() => {} _ = int.recv() => {} }
        });
        tokio::select! {
            () = &mut stop => return Ok(()),
            () = sleep(args.start_delay) => {}
        }
        let bind = |source| EchoError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(bind)?;
        eprintln!(
            "sluice echo: listening on {}",
            listener.local_addr().map_err(bind)?
        );
        serve(listener, answers, stop).await;
        Ok(())
    })
}

fn port(option: Option<u16>, variable: Option<String>) -> Result<u16, EchoError> {
    match (option, variable) {
        (Some(port), _) => Ok(port),
        (None, Some(text)) => text.trim().parse().map_err(|_| EchoError::Port(text)),
        (None, None) => Ok(8080),
    }
}

/// The fixed parts of every response.
#[derive(Debug)]
struct Answers {
    message: String,
    /// `K_REVISION`
    revision: Option<String>,
    delay: Duration,
}

/// Serves until `stop`, then drains: returns when no request is open.
async fn serve(listener: TcpListener, answers: Answers, stop: impl Future<Output = ()>) {
    let answers = Arc::new(answers);
    let (stopping, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            biased;
            () = &mut stop => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, Arc::clone(&answers), stopped.clone()));
                }
                Err(error) => {
                    eprintln!("sluice echo: cannot accept: {error}");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    stopping.send_replace(true);
    while connections.join_next().await.is_some() {}
}

async fn connection(stream: TcpStream, answers: Arc<Answers>, mut stopped: watch::Receiver<bool>) {
    // TCP_NODELAY: otherwise Nagle's algorithm and a delayed acknowledgement cost a small response 40 ms.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let answers = Arc::clone(&answers);
        async move { Ok::<_, Infallible>(answers.answer(request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    builder.http2().timer(TokioTimer::new());
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    // Errors of a client's connection are ignored.
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = stopped.wait_for(|stopped| *stopped) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

impl Answers {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() == "/healthz" {
            return plain("ok\n".to_owned());
        }
        let (head, mut body) = request.into_parts();
        let mut received = 0;
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => received += frame.data_ref().map_or(0, Bytes::len),
                Err(error) => {
                    let mut answer = plain(format!("the request body broke: {error}\n"));
                    *answer.status_mut() = StatusCode::BAD_REQUEST;
                    return answer;
                }
            }
        }
        sleep(self.delay).await;
        plain(self.text(&head, received))
    }

    fn text(&self, head: &http::request::Parts, received: usize) -> String {
        let from = self.revision.as_deref().unwrap_or("echo");
        let host = head
            .headers
            .get(http::header::HOST)
            .map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned())
            .or_else(|| head.uri.authority().map(ToString::to_string))
            .unwrap_or_default();
        let path = head.uri.path();
        let target = head.uri.path_and_query().map_or(path, |target| target.as_str());
        let mut out = format!("{} from {from}\n\n", self.message);
        // A String takes everything, here and below.
        let _ = writeln!(out, "revision: {from}");
        let _ = writeln!(out, "host: {host}");
        let _ = writeln!(out, "request: {} {target} {:?}", head.method, head.version);
        let _ = writeln!(out, "body: {received} bytes");
        let _ = writeln!(out, "instance: pid {}\n", std::process::id());
        for (name, value) in &head.headers {
            let _ = writeln!(out, "{name}: {}", String::from_utf8_lossy(value.as_bytes()));
        }
        out
    }
}

fn plain(body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    let content_type = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::Empty;
    use hyper::client::conn::{http1, http2};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;

    use super::*;

    async fn echo(delay: Duration) -> (SocketAddr, oneshot::Sender<()>, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let answers = Answers {
            message: "Namaste".into(),
            revision: Some("greeter-v2".into()),
            delay,
        };
        let task = tokio::spawn(serve(listener, answers, async move {
            let _ = stopped.await;
        }));
        (address, stop, task)
    }

    async fn exchange(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn answers_say_who_and_what() {
        let (address, _stop, _task) = echo(Duration::ZERO).await;
        let request = "POST /a?b HTTP/1.1\r\nhost: greeter.localhost\r\nx-from: v2\r\n\
                       content-length: 5\r\nconnection: close\r\n\r\nhello";
        let answer = exchange(address, request).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with("HTTP/1.1 200 OK") && head.contains("text/plain"),
            "{head}"
        );
        let lines: Vec<&str> = body.lines().collect();
        assert_eq!(lines[0], "Namaste from greeter-v2");
        for line in [
            "revision: greeter-v2",
            "host: greeter.localhost",
            "request: POST /a?b HTTP/1.1",
            "body: 5 bytes",
            "x-from: v2",
        ] {
            assert!(lines.contains(&line), "{line} in {body}");
        }
    }

    #[tokio::test]
    async fn h2c_by_prior_knowledge() {
        let (address, _stop, _task) = echo(Duration::ZERO).await;
        let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        let driver = tokio::spawn(connection);
        let request = Request::get("http://h2.localhost/x")
            .body(Empty::<Bytes>::new())
            .unwrap();
        let body = sender.send_request(request).await.unwrap().into_body();
        let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        assert!(text.starts_with("Namaste from greeter-v2\n"), "{text}");
        assert!(
            text.contains("request: GET /x HTTP/2.0") && text.contains("host: h2.localhost"),
            "{text}"
        );
        driver.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn health_is_not_delayed() {
        let (address, _stop, _task) = echo(Duration::from_secs(3600)).await;
        let before = tokio::time::Instant::now();
        let request = "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        assert!(exchange(address, request).await.ends_with("\r\n\r\nok\n"));
        assert!(before.elapsed() < Duration::from_secs(3600));
    }

    /// Idle connections close at once, an open request is finished first, new ones are refused.
    #[tokio::test(start_paused = true)]
    async fn stopping_finishes_what_is_open() {
        let (address, stop, task) = echo(Duration::from_secs(5)).await;
        let mut idle = TcpStream::connect(address).await.unwrap();
        let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let (mut sender, connection) = http1::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get("/slow").header("host", "x");
        let open = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap());
        let open = tokio::spawn(open);
        // The request is being served once its delay is the only timer.
        sleep(Duration::from_secs(1)).await;
        stop.send(()).unwrap();
        assert_eq!(idle.read(&mut [0; 1]).await.unwrap(), 0);
        assert_eq!(open.await.unwrap().unwrap().status(), StatusCode::OK);
        task.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[test]
    fn the_port_comes_from_option_environment_or_default() {
        assert_eq!(port(Some(1), Some("2".into())).unwrap(), 1);
        assert_eq!(port(None, Some("2".into())).unwrap(), 2);
        assert_eq!(port(None, None).unwrap(), 8080);
        let error = port(None, Some("http".into())).unwrap_err().to_string();
        assert!(error.contains("PORT=http") && error.contains("--port"), "{error}");
    }
}
