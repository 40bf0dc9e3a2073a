use http::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::super::answers::text;
use super::super::fixture::FakeGateway;
use super::*;

fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// A signal that never comes.
fn staying() -> ShutdownSignal {
    crate::admin::graceful_shutdown().1
}

async fn admin_server() -> (SocketAddr, Arc<FakeGateway>, JoinSet<()>) {
    let server = AdminServer::bind(loopback(), Purpose::Admin).await.unwrap();
    let address = server.tcp_address().unwrap();
    let state = Arc::new(FakeGateway::new());
    let mut tasks = JoinSet::new();
    tasks.spawn(server.serve(Arc::clone(&state) as Arc<dyn AdminState>, staying()));
    (address, state, tasks)
}

/// Sends one request as bytes and reads to the end: head and body.
async fn exchange(address: SocketAddr, method: &str, target: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

async fn get(address: SocketAddr, target: &str) -> (u16, String) {
    let (head, body) = exchange(address, "GET", target).await;
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body)
}

#[tokio::test]
async fn every_endpoint_answers() {
    let (address, state, _tasks) = admin_server().await;
    assert_eq!(get(address, "/healthz").await, (200, "ok\n".into()));
    assert_eq!(
        get(address, "/readyz").await,
        (200, "ready, generation 3\n".into())
    );
    let (status, metrics) = get(address, "/metrics").await;
    assert_eq!(status, 200);
    assert!(metrics.contains("sluice_config_generation 3"), "{metrics}");
    assert!(
        metrics.contains(
            "sluice_requests_in_flight{namespace=\"default\",service=\"greeter\",revision=\"greeter-v1\"} 7"
        ),
        "{metrics}"
    );
    for path in ["/api/routes", "/api/revisions", "/api/config"] {
        let (status, body) = get(address, path).await;
        assert_eq!(status, 200);
        let value: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(value["generation"], 3, "{path}");
        // The index page lists every path.
        assert!(get(address, "/").await.1.contains(path));
    }
    let (status, body) = get(
        address,
        "/api/explain?url=http%3A%2F%2Fgreeter.default.localhost%2Fv2&method=post&header=A:%201",
    )
    .await;
    assert_eq!(status, 200);
    let value: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (&value["found"], &value["revision"]),
        (&json!(true), &json!("default/greeter-v2")),
        "{value:#}"
    );
    let (status, body) = get(address, "/api/explain").await;
    assert!(status == 400 && body.contains("url"), "{body}");
    assert_eq!(get(address, "/nothing").await.0, 404);
    state.drain();
    assert_eq!(
        get(address, "/readyz").await,
        (503, "not ready: draining\n".into())
    );
    assert_eq!(get(address, "/healthz").await.0, 200, "draining is alive");
}

#[tokio::test]
async fn it_is_read_only() {
    let (address, _state, _tasks) = admin_server().await;
    for method in ["POST", "DELETE", "PUT"] {
        let (head, _) = exchange(address, method, "/api/config").await;
        assert!(
            head.starts_with("HTTP/1.1 405") && head.contains("allow: GET, HEAD"),
            "{head}"
        );
    }
    let (head, body) = exchange(address, "HEAD", "/healthz").await;
    assert!(head.starts_with("HTTP/1.1 200") && body.is_empty(), "{head}");
}

#[tokio::test]
async fn the_health_server_knows_health_only() {
    let server = AdminServer::bind(loopback(), Purpose::Health).await.unwrap();
    let address = server.tcp_address().unwrap();
    let state = Arc::new(FakeGateway::new());
    let mut tasks = JoinSet::new();
    tasks.spawn(server.serve(Arc::clone(&state) as Arc<dyn AdminState>, staying()));
    assert_eq!(get(address, "/healthz").await.0, 200);
    assert_eq!(get(address, "/readyz").await.0, 200);
    for path in ["/", "/metrics", "/api/config", "/api/revisions"] {
        assert_eq!(get(address, path).await.0, 404, "{path}");
    }
    state.drain();
    assert_eq!(get(address, "/readyz").await.0, 503);
}

#[tokio::test]
async fn in_a_cluster_the_health_server_has_the_metrics_too() {
    let server = AdminServer::bind(loopback(), Purpose::HealthAndMetrics)
        .await
        .unwrap();
    let address = server.tcp_address().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(server.serve(Arc::new(FakeGateway::new()), staying()));
    let (status, body) = get(address, "/metrics").await;
    assert!(
        status == 200 && body.contains("sluice_config_generation"),
        "{status} {body}"
    );
    assert_eq!(get(address, "/readyz").await.0, 200);
    for path in ["/", "/api/config", "/api/upgrade", "/api/revisions"] {
        assert_eq!(get(address, path).await.0, 404, "{path}");
    }
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let server = AdminServer::bind(loopback(), Purpose::Admin).await.unwrap();
    let taken = server.tcp_address().unwrap();
    let error = AdminServer::bind(taken, Purpose::Admin).await.unwrap_err();
    assert_eq!(error.address, taken.into());
    let text = error.to_string();
    assert!(
        text.contains(&taken.to_string()) && text.contains("admin"),
        "{text}"
    );
    let error = AdminServer::bind(taken, Purpose::Health)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("health"), "{error}");
}

#[tokio::test]
async fn a_socket_of_another_process_is_taken_over() {
    let socket = std::net::TcpListener::bind(loopback()).unwrap();
    let address = socket.local_addr().unwrap();
    let server = AdminServer::inherit(socket.into(), &loopback().into(), Purpose::Admin).unwrap();
    assert_eq!(server.tcp_address(), Some(address));
    let mut tasks = JoinSet::new();
    tasks.spawn(server.serve(Arc::new(FakeGateway::new()), staying()));
    assert_eq!(get(address, "/healthz").await.0, 200);
}

#[tokio::test]
async fn silent_connections_make_room_and_answers_under_way_do_not() {
    let server = AdminServer::bind(loopback(), Purpose::Admin).await.unwrap();
    let address = server.tcp_address().unwrap();
    let (started, goes_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (starts, wait) = (Arc::clone(&started), Arc::clone(&goes_on));
    let answer = move |request: Request<Incoming>| {
        let (starts, wait) = (Arc::clone(&starts), Arc::clone(&wait));
        async move {
            if request.uri().path() == "/slow" {
                starts.notify_one();
                wait.notified().await;
            }
            text(StatusCode::OK, "ok\n")
        }
    };
    let mut tasks = JoinSet::new();
    let (request, accepting) = staying().split();
    tasks.spawn(server.serve_with(answer, request, accepting));
    let slow = tokio::spawn(async move { get(address, "/slow").await });
    started.notified().await;
    let mut silent = Vec::new();
    for _ in 0..2 * MAX_CONNECTIONS {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    // Long before the head timeout of any of them.
    let asked = timeout(HEADER_TIMEOUT / 2, get(address, "/healthz")).await;
    assert_eq!(asked.expect("no place").0, 200);
    goes_on.notify_one();
    assert_eq!(slow.await.unwrap(), (200, "ok\n".into()));
}

#[tokio::test]
async fn dropping_the_server_closes_its_connections() {
    let (address, _state, mut tasks) = admin_server().await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    let mut some = [0; 8];
    stream.read_exact(&mut some).await.unwrap();
    tasks.shutdown().await;
    let mut rest = Vec::new();
    // A reset counts as an end.
    let _ = stream.read_to_end(&mut rest).await;
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn an_upgrade_is_asked_for_by_post_alone_and_says_what_came_of_it() {
    let (address, state, _tasks) = admin_server().await;
    let post = async |target: &str| {
        let (head, body) = exchange(address, "POST", target).await;
        let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str::<Value>(&body).unwrap())
    };
    let (status, said) = post("/api/upgrade").await;
    assert_eq!(
        (status, &said["upgraded"], &said["pid"]),
        (200, &json!(true), &json!(7))
    );
    assert_eq!(said["previousPid"], std::process::id());
    let (status, said) = post("/api/upgrade?timeout=5s").await;
    assert_eq!(
        (status, said),
        (500, json!({"upgraded": false, "error": "not within 5s"}))
    );
    for wrong in ["timeout=0s", "timeout=51s", "timeout=x", "limit=5s"] {
        let (status, said) = post(&format!("/api/upgrade?{wrong}")).await;
        assert!(status == 400 && said["upgraded"] == false, "{wrong}: {said}");
    }
    state.drain();
    assert_eq!(
        post("/api/upgrade").await,
        (409, json!({"upgraded": false, "error": "draining"}))
    );
    let (head, _) = exchange(address, "GET", "/api/upgrade").await;
    assert!(
        head.starts_with("HTTP/1.1 405") && head.contains("allow: POST"),
        "{head}"
    );
}

#[tokio::test]
async fn who_asks_is_checked_before_anything_is_answered() {
    let (address, _state, _tasks) = admin_server().await;
    let asked = async |head: &str| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{head}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let page = asked("POST /api/upgrade HTTP/1.1\r\nhost: localhost\r\norigin: http://localhost").await;
    assert!(
        page.starts_with("HTTP/1.1 403") && page.contains("\"upgraded\": false"),
        "{page}"
    );
    for path in ["/healthz", "/", "/api/events", "/api/upgrade", "/nothing"] {
        let rebound = asked(&format!("GET {path} HTTP/1.1\r\nhost: x")).await;
        assert!(rebound.starts_with("HTTP/1.1 421"), "{rebound}");
    }
}

#[tokio::test]
async fn the_stream_keeps_its_connection_beyond_the_age_of_others() {
    let (address, _state, _tasks) = admin_server().await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(b"GET /api/events HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    let mut head = vec![0; 1 << 10];
    let read = stream.read(&mut head).await.unwrap();
    let head = String::from_utf8_lossy(&head[..read]).into_owned();
    assert!(
        head.starts_with("HTTP/1.1 200") && head.contains("text/event-stream"),
        "{head}"
    );
    assert!(head.contains("connection: close"), "{head}");
    // Silent connections do not push it out.
    let mut silent = Vec::new();
    for _ in 0..2 * MAX_CONNECTIONS {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    assert_eq!(get(address, "/healthz").await.0, 200);
    let more = timeout(Duration::from_secs(20), stream.read(&mut [0; 64])).await;
    assert!(more.unwrap().unwrap() > 0, "an event");
}

#[tokio::test]
async fn leaving_closes_the_socket_here_and_ends_what_is_open() {
    let server = AdminServer::bind(loopback(), Purpose::Health).await.unwrap();
    let address = server.tcp_address().unwrap();
    let socket = server.socket().unwrap();
    let theirs = AdminServer::inherit(socket, server.address(), Purpose::Health).unwrap();
    let (mut shutdown, signal) = crate::admin::graceful_shutdown();
    let mut tasks = JoinSet::new();
    tasks.spawn(server.serve(Arc::new(FakeGateway::new()), signal));
    // A kept-alive, idle connection.
    let mut idle = TcpStream::connect(address).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    assert!(idle.read(&mut [0; 512]).await.unwrap() > 0);
    shutdown.stop_accepting().await;
    let mut rest = Vec::new();
    let ended = timeout(Duration::from_secs(20), idle.read_to_end(&mut rest)).await;
    assert!(ended.unwrap().is_ok());
    timeout(Duration::from_secs(20), tasks.join_next())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    // The socket lives on in its other holder, and new connections wait in its accept queue.
    let waiting = tokio::spawn(async move { get(address, "/healthz").await });
    tasks.spawn(theirs.serve(Arc::new(FakeGateway::new()), staying()));
    assert_eq!(waiting.await.unwrap().0, 200);
}
