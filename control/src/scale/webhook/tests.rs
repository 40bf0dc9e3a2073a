//! Real calls to a real HTTP server that behaves as real platforms do.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Mutex;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::plan::WebhookSpec;
use crate::scale::testing;

const PATIENCE: Duration = Duration::from_secs(20);
const SECRET: &str = "s3cret-t0ken";

enum Behaviour {
    Says(u16, String),
    SaysLater(u16, u64),
    Hangs,
    HangsUp,
}

fn says(status: u16, body: impl ToString) -> Behaviour {
    Behaviour::Says(status, body.to_string())
}

#[derive(Default)]
struct Platform {
    script: Mutex<VecDeque<Behaviour>>,
    seen: Mutex<Vec<(http::request::Parts, Value)>>,
}

impl Platform {
    /// Serves one connection for each behaviour and returns where.
    async fn start(script: Vec<Behaviour>, tls: Option<TlsAcceptor>) -> (Arc<Self>, SocketAddr) {
        let platform = Arc::new(Self {
            script: Mutex::new(script.into()),
            seen: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = Arc::clone(&platform);
        tokio::spawn(async move {
            while let Ok((io, _)) = listener.accept().await {
                let (platform, tls) = (Arc::clone(&serving), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => platform.serve(io).await,
                        Some(tls) => {
                            if let Ok(io) = tls.accept(io).await {
                                platform.serve(io).await;
                            }
                        }
                    }
                });
            }
        });
        (platform, address)
    }

    async fn serve(self: Arc<Self>, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let behaviour = self.script.lock().unwrap().pop_front().expect("no more calls");
        if matches!(behaviour, Behaviour::HangsUp) {
            return;
        }
        let behaviour = Mutex::new(Some(behaviour));
        let service = service_fn(|request| {
            let behaviour = behaviour
                .lock()
                .unwrap()
                .take()
                .expect("one call on a connection");
            Arc::clone(&self).answer(request, behaviour)
        });
        let _ = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(io), service)
            .await;
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        behaviour: Behaviour,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&body).unwrap();
        self.seen.lock().unwrap().push((head, body));
        let mut response = Response::builder();
        let (status, text) = match behaviour {
            Behaviour::Says(status, text) => (status, text),
            Behaviour::SaysLater(status, seconds) => {
                response = response.header("retry-after", seconds);
                (status, String::new())
            }
            Behaviour::Hangs | Behaviour::HangsUp => std::future::pending().await,
        };
        let body = Full::new(Bytes::from(text));
        Ok(response.status(status).body(body).unwrap())
    }
}

struct Bench {
    scaler: WebhookScaler,
    events: mpsc::Receiver<ScalerEvent>,
    url: String,
}

impl Bench {
    fn new(client: Client, url: String) -> Self {
        let (sender, events) = mpsc::channel(4);
        let scaler = WebhookScaler::with_client(client, sender);
        Self { scaler, events, url }
    }

    async fn with(script: Vec<Behaviour>) -> (Self, Arc<Platform>) {
        let (platform, address) = Platform::start(script, None).await;
        let url = format!("http://{address}/scale?code={SECRET}");
        (Self::new(Client::new(), url), platform)
    }

    async fn ask(&mut self, replicas: u32) -> Answer {
        self.ask_within(replicas, PATIENCE).await
    }

    async fn ask_within(&mut self, replicas: u32, limit: Duration) -> Answer {
        let headers = BTreeMap::from([("authorization".to_owned(), format!("Bearer {SECRET}"))]);
        let plan = RevisionPlan {
            scaler: ScalerSpec::Webhook(WebhookSpec {
                url: self.url.clone(),
                headers,
            }),
            ..testing::plan(&[])
        };
        let ask = Ask {
            key: "run-1".to_owned(),
            replicas,
            reason: "0 → 1: somebody waits".to_owned(),
            endpoints: vec![],
            limit,
            plan: Arc::new(plan),
        };
        let revision = RevisionId::parse("default", "greeter-v1").unwrap();
        self.scaler.order(&revision, ask);
        let event = tokio::time::timeout(PATIENCE, self.events.recv()).await;
        let ScalerEvent::Answered { answer, .. } = event.unwrap().unwrap() else {
            panic!("not an answer");
        };
        let told = format!("{answer:?}");
        assert!(!told.contains(SECRET), "{told}");
        answer
    }
}

fn agreed(ports: &[u16]) -> Answer {
    let endpoints = ports.iter().map(|&port| ([127, 0, 0, 1], port).into());
    Answer::Agreed {
        endpoints: endpoints.collect(),
    }
}

#[track_caller]
fn retries(answer: Answer, cause: &str) -> Option<Duration> {
    match answer {
        Answer::Retry { detail, after } if detail.contains(cause) => after,
        other => panic!("{other:?} is not to be retried for {cause}"),
    }
}

#[track_caller]
fn refuses(answer: &Answer, cause: &str) {
    assert!(
        matches!(answer, Answer::Refused(detail) if detail.contains(cause)),
        "{answer:?} is not refused for {cause}"
    );
}

#[tokio::test]
async fn what_is_posted() {
    let (mut bench, platform) = Bench::with(vec![says(200, "")]).await;
    assert_eq!(bench.ask(3).await, agreed(&[]));
    let (head, body) = platform.seen.lock().unwrap().pop().unwrap();
    assert_eq!(head.method, "POST");
    assert_eq!(head.uri.to_string(), format!("/scale?code={SECRET}"));
    let field = |name: &str| head.headers[name].to_str().unwrap();
    assert_eq!(field("idempotency-key"), "run-1");
    assert_eq!(field("content-type"), "application/json");
    assert_eq!(field("authorization"), format!("Bearer {SECRET}"));
    assert!(bench.url.contains(field("host")));
    assert_eq!(
        body,
        json!({
            "apiVersion": "sluice.dev/v1",
            "namespace": "default",
            "service": "greeter",
            "revision": "greeter-v1",
            "replicas": 3,
            "reason": "0 → 1: somebody waits",
        })
    );
}

#[tokio::test]
async fn what_a_reply_may_say() {
    let with = |endpoints: Value| says(200, json!({"endpoints": endpoints, "more": 1}));
    let long = format!("{{\"x\": \"{}\"}}", "x".repeat(70_000));
    let (mut bench, _platform) = Bench::with(vec![
        with(json!(["127.0.0.1:81", "localhost:82", "127.0.0.1:81"])),
        with(json!([])),
        with(Value::Null),
        says(202, "accepted"),
        says(204, ""),
        with(json!(["nonsense"])),
        with(json!(["http://127.0.0.1:80"])),
        with(json!(["127.0.0.1:0"])),
        with(json!("127.0.0.1:80")),
        says(200, "{"),
        says(200, long),
        with(json!(["no-such-host.invalid:80"])),
    ])
    .await;
    let Answer::Agreed { endpoints } = bench.ask(1).await else {
        panic!("it agreed");
    };
    let ports: Vec<_> = endpoints.iter().map(SocketAddr::port).collect();
    assert_eq!(ports, [81, 82]);
    for _ in 0..4 {
        assert_eq!(bench.ask(1).await, agreed(&[]));
    }
    refuses(&bench.ask(1).await, "'nonsense' is not host:port");
    refuses(&bench.ask(1).await, "is not host:port");
    refuses(&bench.ask(1).await, "has no port");
    refuses(&bench.ask(1).await, "not as documented");
    refuses(&bench.ask(1).await, "not as documented");
    refuses(&bench.ask(1).await, "longer than 64 KiB");
    retries(bench.ask(1).await, "no-such-host.invalid");
}

#[tokio::test]
async fn statuses_that_refuse_and_statuses_that_pass() {
    let (mut bench, _platform) = Bench::with(vec![
        says(500, SECRET),
        says(503, ""),
        Behaviour::SaysLater(429, 7),
        says(400, SECRET),
        says(404, ""),
        says(307, ""),
    ])
    .await;
    assert_eq!(retries(bench.ask(1).await, "500 Internal Server Error"), None);
    retries(bench.ask(1).await, "503");
    let after = retries(bench.ask(1).await, "429");
    assert_eq!(after, Some(Duration::from_secs(7)));
    refuses(&bench.ask(1).await, "400");
    refuses(&bench.ask(1).await, "404 Not Found");
    refuses(&bench.ask(1).await, "307");
}

#[tokio::test]
async fn a_platform_that_hangs_or_is_not_there() {
    let (mut bench, platform) = Bench::with(vec![Behaviour::Hangs, Behaviour::HangsUp]).await;
    let limit = Duration::from_millis(300);
    retries(bench.ask_within(1, limit).await, "did not answer within 300ms");
    assert_eq!(platform.seen.lock().unwrap().len(), 1);
    retries(bench.ask(1).await, "the call was lost");
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    bench.url = format!("http://{}/", socket.local_addr().unwrap());
    retries(bench.ask(1).await, "cannot connect");
}

#[tokio::test]
async fn https_is_verified() {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = certified.cert.der().clone();
    let key = PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], PrivateKeyDer::from(key))
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(server));
    let script = vec![says(200, json!({"endpoints": ["127.0.0.1:81"]}))];
    let (_platform, address) = Platform::start(script, Some(acceptor)).await;
    let url = format!("https://localhost:{}/", address.port());
    let trusting = |certificates: Vec<_>| {
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(certificates);
        Client::trusting(roots)
    };
    let mut stranger = Bench::new(trusting(vec![]), url.clone());
    retries(stranger.ask(1).await, "TLS failed");
    let mut bench = Bench::new(trusting(vec![certificate]), url);
    assert_eq!(bench.ask(1).await, agreed(&[81]));
}
