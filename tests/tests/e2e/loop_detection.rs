//! Loop detection: `X-Sluice-Hops` distinguishes a routing loop from a request that legitimately returns.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use sluice_tests::backend::HttpBackend;
use sluice_tests::gateway::Gateway;
use sluice_tests::h1;
use sluice_tests::raw_backend::{RawBackend, read_head};
use sluice_tests::wait::{SOON, wait_until, within};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::{WEB, web};

#[tokio::test]
async fn a_backend_that_is_the_gateway_itself_is_a_508_after_a_few_passes() {
    for (limits, passes) in [("", 10), ("limits: {maxHops: 3}\n", 3)] {
        let placeholder: SocketAddr = ([127, 0, 0, 1], 9).into();
        let gateway = Gateway::start(&format!("{limits}{}", web(placeholder))).await;
        gateway.reload(&format!("{limits}{}", web(gateway.addr()))).await;
        let answer = within("an answer", SOON, gateway.get(WEB, "/")).await;
        assert_eq!(answer.status, 508);
        wait_until("every pass is logged", SOON, || {
            gateway.access_log().len() > passes
        })
        .await;
        let log = gateway.access_log();
        // One connection for each pass, and one for the 508.
        assert_eq!(log.len(), passes + 1);
        let told = log.iter().filter(|entry| entry["reason"] == "loop").count();
        assert_eq!(told, 1, "{log:?}");
    }
}

#[tokio::test]
async fn a_backend_may_call_another_service_through_the_gateway() {
    const OTHER: &str = "other.default.localhost";
    let at: Arc<Mutex<Option<SocketAddr>>> = Arc::default();
    let gateway_at = Arc::clone(&at);
    let caller = RawBackend::start(move |_, mut io: TcpStream| {
        let gateway = *gateway_at.lock().unwrap();
        async move {
            let (head, _) = read_head(&mut io).await?;
            // With all fields of the request, as a tracing library passes them on.
            let mut fields = Vec::new();
            for line in head.lines().skip(1) {
                if let Some((name, value)) = line.split_once(": ")
                    && !name.eq_ignore_ascii_case("host")
                {
                    fields.push((name, value));
                }
            }
            let request = h1::request("GET", OTHER, "/inner", &fields, b"");
            let inner = h1::fetch(gateway.expect("it runs"), &request).await?;
            let text = inner.text();
            let length = text.len();
            io.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{text}").as_bytes())
                .await
        }
    })
    .await;
    let other = HttpBackend::start("inner").await;
    let config = format!(
        "{}  - {{name: other, endpoints: [\"{}\"]}}\n",
        web(caller.addr()),
        other.addr()
    );
    let gateway = Gateway::start(&config).await;
    *at.lock().unwrap() = Some(gateway.addr());
    let answer = within("an answer", SOON, gateway.get(WEB, "/")).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "inner"));
    assert_eq!(other.last().header("x-sluice-hops"), Some("2"));
}

#[tokio::test]
async fn malformed_counts_of_a_client_are_ignored() {
    let backend = HttpBackend::start("web").await;
    let gateway = Gateway::start(&web(backend.addr())).await;
    for (sent, told) in [
        (None, "1"),
        (Some("3"), "4"),
        (Some(""), "1"),
        (Some("-1"), "1"),
        (Some("+9"), "1"),
        (Some("0x10"), "1"),
        (Some("99 "), "100"),
        (Some("1, 2"), "1"),
        (Some("99999999999999999999"), "1"),
    ] {
        let fields: Vec<_> = sent.iter().map(|value| ("X-Sluice-Hops", *value)).collect();
        let answer = gateway.send(&h1::request("GET", WEB, "/", &fields, b"")).await;
        if told == "100" {
            assert_eq!((answer.status, answer.reason()), (508, Some("loop")), "{sent:?}");
            continue;
        }
        assert_eq!(answer.status, 200, "{sent:?}");
        let all: Vec<_> = backend
            .last()
            .headers
            .get_all("x-sluice-hops")
            .into_iter()
            .cloned()
            .collect();
        assert_eq!(all, [told], "{sent:?}");
    }
}
