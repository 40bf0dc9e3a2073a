//! Every way in which a request's body can end, between every pair of protocols: what the backend gets is exactly
//! what the message's framing allows, and nothing of one request reaches the next on the same connection
//! (RFC 9112 6.3, 7.1 and 9.3; RFC 9113 8.1 and 8.1.1).

use std::collections::HashSet;

use sluice_tests::bodies::{Way, ways};
use sluice_tests::gateway::Gateway;
use sluice_tests::h1::{self, H1};
use sluice_tests::raw_backend::{RawBackend, read_head};
use sluice_tests::wait::{SOON, quiet, within};
use sluice_tests::wire::{End, Framing, Protocol, Request, WireBackend};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::{WEB, web, web_with};

/// The set-up of one run.
struct Run {
    gateway: Gateway,
    backend: WireBackend,
    down: Protocol,
    /// The backend's path.
    path: &'static str,
    faults: Vec<String>,
    probes: usize,
}

impl Run {
    async fn start(down: Protocol, up: Protocol, path: &'static str) -> Self {
        let backend = WireBackend::start(up).await;
        let revision = format!("protocol: {}", up.key());
        let gateway = Gateway::start(&web_with(backend.addr(), &revision)).await;
        Self {
            gateway,
            backend,
            down,
            path,
            faults: Vec::new(),
            probes: 0,
        }
    }

    /// Sends one request for each way to end, each followed by a request that has to be served by itself.
    async fn all(mut self, whole: bool, judge: impl Fn(&Way, &Outcome, &[Request]) -> Result<(), String>) {
        for (nth, way) in ways(self.down, whole).enumerate() {
            let target = format!("{}?case={nth}", self.path);
            let answer = way.send(self.gateway.addr(), WEB, &target).await;
            let next = self.probe().await;
            // After the response: excess bytes would come later.
            let requests = self.settled(&target, whole).await;
            let judged = judge(way, &answer, &requests).and(next);
            if let Err(fault) = judged.and_then(|()| never_too_much(way, &requests)) {
                self.faults.push(format!("{}: {fault}", way.name));
            }
        }
        for stray in self.backend.stray() {
            self.faults.push(format!("the backend got {stray}"));
        }
        let faults = self.faults.join("\n  ");
        assert!(faults.is_empty(), "\n  {faults}");
    }

    /// A request of another client, on the backend connection of the last request if that was kept.
    async fn probe(&mut self) -> Result<(), String> {
        self.probes += 1;
        let target = format!("/after?probe={}", self.probes);
        let body = format!("probe {}", self.probes);
        let request = h1::request("POST", WEB, &target, &[], body.as_bytes());
        let answer = within("the next request", SOON, h1::fetch(self.gateway.addr(), &request)).await;
        let answer = answer.map_err(|e| format!("the next request: {e}"))?;
        let came: Vec<_> = self.backend.requests(&target);
        let whole = matches!(&came[..], [one] if one.end == End::Whole && one.body == body.as_bytes());
        let expected = (200, format!("got {}", body.len()));
        if !whole || (answer.status, answer.text()) != expected {
            return Err(format!(
                "the next request got {} {:?}, came as {came:?}",
                answer.status,
                answer.text()
            ));
        }
        Ok(())
    }

    /// The requests for a target, after all of them have ended. A request whose client left ends in time, too.
    async fn settled(&self, target: &str, whole: bool) -> Vec<Request> {
        let limit = tokio::time::Instant::now() + if whole { SOON / 10 } else { SOON / 4 };
        loop {
            let requests = self.backend.requests(target);
            let open = requests.iter().any(|r| r.end == End::Open);
            if !open || tokio::time::Instant::now() > limit {
                return requests;
            }
            quiet(std::time::Duration::from_millis(5)).await;
        }
    }
}

type Outcome = Result<Option<(u16, String)>, String>;

/// Asserts the invariant: no request has other bytes than were sent, and no incomplete request looks complete.
fn never_too_much(way: &Way, requests: &[Request]) -> Result<(), String> {
    for came in requests {
        if !way.body.starts_with(&came.body) {
            return Err(format!("other bytes than were sent: {came:?}"));
        }
        match (came.end, way.whole) {
            (End::Whole, true) if came.body == way.body => {}
            (End::Whole, _) => return Err(format!("looks whole: {came:?}")),
            (End::Cut, _) => {}
            (End::Open, _) => return Err(format!("never ends: {came:?}")),
        }
        if let (Some(length), Framing::Length(other)) = (way.length(), came.framing)
            && length != other
        {
            return Err(format!("another length: {came:?}"));
        }
        let ours: HashSet<_> = came
            .trailers
            .iter()
            .map(|(n, v)| (n.to_ascii_lowercase(), v.clone()))
            .collect();
        if !ours.is_empty() && ours != HashSet::from([("x-sum".to_owned(), "1".to_owned())]) {
            return Err(format!("other trailers: {came:?}"));
        }
    }
    Ok(())
}

/// Complete bodies arrive unchanged, once.
async fn whole(down: Protocol, up: Protocol) {
    let run = Run::start(down, up, "/after").await;
    run.all(true, |way, answer, requests| {
        let expected = Ok(Some((200, format!("got {}", way.body.len()))));
        match requests {
            [one] if one.end == End::Whole && *answer == expected => {}
            _ => return Err(format!("answered {answer:?}, came as {requests:?}")),
        }
        let announced = requests[0].framing;
        let kept = match way.length() {
            Some(0) => matches!(announced, Framing::Length(0) | Framing::None),
            Some(length) => announced == Framing::Length(length),
            None => true,
        };
        kept.then_some(())
            .ok_or_else(|| format!("the length is lost: {requests:?}"))
    })
    .await;
}

/// An early response arrives, and a body that is cut off is recognizable as cut off.
async fn answered_early(down: Protocol, up: Protocol) {
    for path in ["/early", "/early-close"] {
        let run = Run::start(down, up, path).await;
        run.all(true, move |_, answer, requests| {
            let early = Ok(Some((200, "early".to_owned())));
            let fine = *answer == early && requests.len() == 1;
            fine.then_some(())
                .ok_or_else(|| format!("{path}: answered {answer:?}, came as {requests:?}"))
        })
        .await;
    }
}

/// A backend that goes away costs its own request only.
async fn broken_by_the_backend(down: Protocol, up: Protocol) {
    for path in ["/hang-up", "/reset", "/early-gone"] {
        let run = Run::start(down, up, path).await;
        run.all(true, move |_, answer, _| {
            let fine = match answer {
                Ok(Some((200, text))) => path == "/early-gone" && text == "early",
                Ok(Some((status, _))) => *status == 502,
                _ => false,
            };
            fine.then_some(())
                .ok_or_else(|| format!("{path}: answered {answer:?}"))
        })
        .await;
    }
}

/// A client that leaves, or sends an invalid body, leaves no request that looks complete.
async fn broken_by_the_client(down: Protocol, up: Protocol) {
    let run = Run::start(down, up, "/after").await;
    run.all(false, |_, answer, requests| {
        let served = matches!(answer, Ok(Some((200, _)))) || requests.iter().any(|r| r.end == End::Whole);
        (!served)
            .then_some(())
            .ok_or_else(|| format!("answered {answer:?}, came as {requests:?}"))
    })
    .await;
}

macro_rules! for_all_pairs {
    ($($what:ident: $h1_h1:ident $h1_h2:ident $h2_h1:ident $h2_h2:ident;)*) => {$(
        #[tokio::test]
        async fn $h1_h1() { $what(Protocol::Http1, Protocol::Http1).await; }
        #[tokio::test]
        async fn $h1_h2() { $what(Protocol::Http1, Protocol::Http2).await; }
        #[tokio::test]
        async fn $h2_h1() { $what(Protocol::Http2, Protocol::Http1).await; }
        #[tokio::test]
        async fn $h2_h2() { $what(Protocol::Http2, Protocol::Http2).await; }
    )*};
}

for_all_pairs! {
    whole: whole_h1_to_h1 whole_h1_to_h2 whole_h2_to_h1 whole_h2_to_h2;
    answered_early: answered_early_h1_to_h1 answered_early_h1_to_h2 answered_early_h2_to_h1 answered_early_h2_to_h2;
    broken_by_the_backend: broken_by_the_backend_h1_to_h1 broken_by_the_backend_h1_to_h2
        broken_by_the_backend_h2_to_h1 broken_by_the_backend_h2_to_h2;
    broken_by_the_client: broken_by_the_client_h1_to_h1 broken_by_the_client_h1_to_h2
        broken_by_the_client_h2_to_h1 broken_by_the_client_h2_to_h2;
}

const POISON: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";

/// Answers, and sends more than the answer at once or a moment later.
async fn talkative(answer: &'static [u8], pause: bool) -> RawBackend {
    RawBackend::start(move |_, mut io: TcpStream| async move {
        loop {
            read_head(&mut io).await?;
            if pause {
                io.write_all(answer).await?;
                quiet(std::time::Duration::from_millis(30)).await;
                io.write_all(POISON).await?;
            } else {
                io.write_all(&[answer, POISON].concat()).await?;
            }
        }
    })
    .await
}

/// RFC 9112 9.2 and 11.1: bytes after an answer belong to no request, and the connection to none either.
#[tokio::test]
async fn an_answer_with_one_byte_too_many_ends_its_connection() {
    for answer in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"[..],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n",
    ] {
        for pause in [false, true] {
            let backend = talkative(answer, pause).await;
            let gateway = Gateway::start(&web(backend.addr())).await;
            let mut conn = H1::connect(gateway.addr()).await.expect("the gateway accepts");
            for nth in 0..4 {
                let response = conn.exchange(&h1::get(WEB, "/")).await.expect("an answer");
                let what = String::from_utf8_lossy(answer);
                assert!(
                    matches!(response.status, 200 | 204 | 304) && response.text() != "poison",
                    "request {nth}, pause {pause}: {what:?} became {response:?}"
                );
                if pause {
                    quiet(std::time::Duration::from_millis(60)).await;
                }
            }
        }
    }
}

/// RFC 9110 9.3.2: a response to HEAD has no body; a backend that sends one does not poison the connection.
#[tokio::test]
async fn an_answer_to_head_with_a_body_ends_its_connection() {
    let backend = talkative(b"HTTP/1.1 200 OK\r\nContent-Length: 43\r\n\r\n", false).await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    for _ in 0..4 {
        let request = h1::request("HEAD", WEB, "/", &[], b"");
        let head = gateway.send(&request).await;
        assert_eq!((head.status, head.header("content-length")), (200, Some("43")));
    }
    assert_eq!(backend.connections(), 4, "none is used again");
}
