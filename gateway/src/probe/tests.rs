use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use sluice_model::{Demand, EndpointSink, InstanceId, ManagedEndpoint, UrlBackend};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, UnixListener};

use super::*;
use crate::registry::test_kit::{Demands, address, fixed, id, snapshot, spec, until};
use crate::registry::{Registry, test_kit};
use crate::throttle::{Admission, Arrival};

fn http(period: Duration) -> Option<Probe> {
    Some(Probe {
        kind: ProbeKind::Http {
            path: "/healthz".into(),
        },
        period,
        timeout: Duration::from_secs(5),
        failure_threshold: 2,
    })
}

fn registry(spec: RevisionSpec) -> (Registry, Arc<Demands>) {
    let demands = Arc::new(Demands::default());
    let registry = test_kit::registry(
        &snapshot(vec![spec]),
        Arc::clone(&demands) as _,
        tokio::runtime::Handle::current(),
    );
    (registry, demands)
}

fn managed(instance: InstanceId, address: SocketAddr) -> ManagedEndpoint {
    ManagedEndpoint {
        instance,
        address,
        took: Duration::ZERO,
    }
}

/// One probe whose connection is not kept.
async fn attempt(address: &EndpointAddr, spec: &RevisionSpec) -> Result<(), String> {
    super::attempt(address, 0, spec, false, None)
        .await
        .map_err(|failed| failed.reason)
        .map(|kept| assert!(kept.is_none()))
}

/// Answers every connection while `well` holds with 200, else 500.
async fn backend(well: Arc<AtomicBool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let status = if well.load(Ordering::SeqCst) {
                "200 OK"
            } else {
                "500 Oops"
            };
            let mut head = [0; 1024];
            let _ = stream.read(&mut head).await;
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    address
}

/// A port that is taken, but refuses connections until its socket listens.
fn reserve() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("a port");
    let address = socket.local_addr().expect("bound");
    (socket, address)
}

#[test]
fn probes_are_tight_while_somebody_waits_and_calm_otherwise() {
    let timing = ProbeTiming {
        phase: EndpointPhase::Starting,
        waiting: true,
        local: true,
        starting: 1,
        instance: true,
        period: None,
        doubtful: false,
        min_delay: Duration::ZERO,
    };
    let ms = |timing| next_delay(timing).map(|d| d.as_millis());
    assert_eq!(ms(timing), Some(2));
    let remote = |starting| ProbeTiming {
        local: false,
        starting,
        ..timing
    };
    let intervals = [1, 4, 8, 10, 1_000].map(|starting| ms(remote(starting)));
    assert_eq!(intervals, [10, 10, 20, 25, 25].map(Some));
    let min_delay = hold(1);
    assert_eq!(ms(ProbeTiming { min_delay, ..timing }), Some(30));
    let calm = ProbeTiming {
        waiting: false,
        ..timing
    };
    assert_eq!(ms(calm), Some(100));
    let elsewhere = ProbeTiming {
        instance: false,
        ..calm
    };
    assert_eq!(ms(elsewhere), None);
    let ready = ProbeTiming {
        phase: EndpointPhase::Ready,
        ..timing
    };
    assert_eq!(ms(ready), None);
    let period = Some(Duration::from_secs(3));
    assert_eq!(ms(ProbeTiming { period, ..ready }), Some(3_000));
    let doubtful = ProbeTiming {
        period,
        doubtful: true,
        ..ready
    };
    assert_eq!(ms(doubtful), Some(1_000));
    let draining = ProbeTiming {
        phase: EndpointPhase::Draining,
        period,
        ..timing
    };
    assert_eq!(ms(draining), None);
}

#[test]
fn whoever_hangs_up_has_to_prove_more_each_time() {
    let ms: Vec<u128> = (0..7).map(|n| hold(n).as_millis()).collect();
    assert_eq!(ms, [3, 30, 90, 270, 810, 1_000, 1_000]);
    assert_eq!(hold(u32::MAX), STAYS_MOST);
}

#[tokio::test]
async fn what_counts_as_ready() {
    let well = Arc::new(AtomicBool::new(true));
    let to = EndpointAddr::Tcp(backend(Arc::clone(&well)).await);
    let tcp = spec("r", Backend::Managed);
    let mut get = tcp.clone();
    get.readiness = http(CALM);
    assert_eq!(attempt(&to, &tcp).await, Ok(()));
    assert_eq!(attempt(&to, &get).await, Ok(()));
    well.store(false, Ordering::SeqCst);
    assert_eq!(attempt(&to, &tcp).await, Ok(()));
    assert_eq!(attempt(&to, &get).await, Err("status 500".to_owned()));
    // Behind a URL there may be TLS: connecting is all that is asked.
    get.backend = Backend::Url(UrlBackend {
        scheme: sluice_model::Scheme::Https,
        host: sluice_model::Host::parse("localhost").expect("a host"),
        port: 443,
        path_prefix: String::new(),
    });
    assert_eq!(attempt(&to, &get).await, Ok(()));
    let (_silent, address) = reserve();
    let free = EndpointAddr::Tcp(address);
    assert!(attempt(&free, &tcp).await.is_err());
}

#[tokio::test]
async fn unix_sockets_and_h2c_are_asked_too() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("app.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let server = async {
        let (stream, _) = listener.accept().await.expect("a probe");
        let mut server = h2::server::handshake(stream).await.expect("h2");
        while let Some(Ok((request, mut respond))) = server.accept().await {
            assert_eq!(request.uri().path(), "/healthz");
            let answer = ::http::Response::builder().status(204).body(());
            let sent = respond.send_response(answer.expect("a response"), false);
            sent.expect("sent").send_data(Bytes::new(), true).expect("sent");
        }
    };
    let mut spec = spec("r", Backend::Managed);
    spec.readiness = http(CALM);
    spec.protocol = Protocol::H2c;
    let to = EndpointAddr::Unix(path);
    let (probed, ()) = tokio::join!(attempt(&to, &spec), server);
    assert_eq!(probed, Ok(()));
}

#[tokio::test]
async fn an_instance_is_ready_when_it_listens_and_the_waiter_goes_there() {
    let (registry, demands) = registry(spec("r", Backend::Managed));
    let live = registry.live(&id("r")).expect("is in it");
    let waiter = live.throttler().admit(Arrival::default(), clock());
    assert_eq!(demands.take(), [Demand::Activate(id("r"))]);
    let (socket, address) = reserve();
    let instance = InstanceId(1);
    registry.add(&id("r"), managed(instance, address));
    let revision = id("r");
    tokio::task::yield_now().await;
    let _listener = socket.listen(16).expect("listens");
    let permit = waiter.wait().await.expect("admitted");
    assert_eq!(permit.endpoint().instance, Some(instance));
    until("ready is told", || {
        demands.take()
            == [
                Demand::Ready {
                    revision: revision.clone(),
                    instance,
                },
                Demand::Activated(revision.clone()),
            ]
    })
    .await;
}

#[tokio::test]
async fn a_failing_probe_ejects_and_a_good_one_brings_back() {
    let well = Arc::new(AtomicBool::new(true));
    let sick = backend(Arc::clone(&well)).await;
    let fine = backend(Arc::new(AtomicBool::new(true))).await;
    let mut spec = spec("r", fixed(&[sick.port(), fine.port()]));
    spec.readiness = http(Duration::from_millis(5));
    let (registry, _) = registry(spec);
    let live = registry.live(&id("r")).expect("is in it");
    let ready = || {
        let views = live.throttler().endpoints();
        let sick = views.iter().find(|v| v.endpoint.address == address(sick.port()));
        sick.expect("is known").phase == EndpointPhase::Ready
    };
    assert!(ready());
    well.store(false, Ordering::SeqCst);
    until("it is ejected", || !ready()).await;
    well.store(true, Ordering::SeqCst);
    until("it is back", ready).await;
}

#[tokio::test]
async fn what_something_elsewhere_starts_is_probed_only_while_somebody_waits() {
    let target = backend(Arc::new(AtomicBool::new(true))).await;
    let Backend::Static { targets, .. } = fixed(&[target.port()]) else {
        unreachable!("it is static");
    };
    let activated = true;
    let (registry, demands) = registry(spec("r", Backend::Static { targets, activated }));
    let live = registry.live(&id("r")).expect("is in it");
    assert_eq!(live.throttler().peek(clock()).ready, 0);
    let admission = live.throttler().admit(Arrival::default(), clock());
    assert!(matches!(admission, Admission::Waiting(_)));
    assert_eq!(demands.take(), [Demand::Activate(id("r"))]);
    drop(admission.wait().await.expect("the probe found it"));
}

#[tokio::test]
async fn probes_end_with_the_endpoint_and_with_the_revision() {
    let metrics = tokio::runtime::Handle::current().metrics();
    let (registry, _) = registry(spec("r", Backend::Managed));
    let at = |instance| managed(InstanceId(instance), ([127, 0, 0, 1], 1).into());
    registry.add(&id("r"), at(1));
    registry.add(&id("r"), at(2));
    assert_eq!(metrics.num_alive_tasks(), 2);
    registry.remove(&id("r"), InstanceId(1));
    until("one ended", || metrics.num_alive_tasks() == 1).await;
    drop(registry);
    until("both ended", || metrics.num_alive_tasks() == 0).await;
}
