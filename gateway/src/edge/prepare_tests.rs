use std::time::Duration;

use sluice_model::{ProxyProtocol, ProxyProtocolMode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use super::super::testing::*;
use super::super::{CloseReason, ConnectionProtocol};
use super::*;

fn speaking(mode: ProxyProtocolMode, from: &str) -> sluice_model::ListenerSettings {
    sluice_model::ListenerSettings {
        proxy_protocol: Some(ProxyProtocol {
            mode,
            from: vec![from.parse().unwrap()],
        }),
        ..plain()
    }
}

const HEADER: &[u8] = b"PROXY TCP4 192.0.2.1 198.51.100.2 54321 443\r\n";

#[tokio::test]
async fn plain_http1_arrives_whole_with_its_addresses() {
    let mut fixture = EdgeFixture::start(settings(vec![plain()])).await;
    let mut client = fixture.connect().await;
    echo(&mut client, b"GET / HTTP/1.1\r\n\r\n").await;
    let (info, http_version) = fixture.served().await;
    assert_eq!(http_version, HttpVersion::Http1);
    assert_eq!(info.client, client.local_addr().unwrap());
    assert_eq!(info.peer, info.client);
    assert_eq!(info.local, client.peer_addr().unwrap());
    assert!(info.tls.is_none());
    assert_eq!(fixture.counts.open(ConnectionProtocol::Http1), 1);
    drop(client);
    info.close_watch.closed().await;
    fixture.closed(CloseReason::Served, 1).await;
    assert_eq!(fixture.counts.open(ConnectionProtocol::Http1), 0);
    assert_eq!(fixture.counts.open(ConnectionProtocol::Opening), 0);
}

#[tokio::test]
async fn the_h2_preface_is_known_in_any_pieces() {
    let mut fixture = EdgeFixture::start(settings(vec![plain()])).await;
    for cuts in [vec![], vec![1], vec![3, 14, 23], (1..24).collect::<Vec<_>>()] {
        let mut client = fixture.connect().await;
        client.set_nodelay(true).unwrap();
        let mut sent = 0;
        for cut in cuts {
            client.write_all(&H2_PREFACE[sent..cut]).await.unwrap();
            sent = cut;
            // Lets the server see this piece alone, mostly.
            tokio::task::yield_now().await;
        }
        let rest = [&H2_PREFACE[sent..], b"frames"].concat();
        client.write_all(&rest).await.unwrap();
        let mut got = vec![0; H2_PREFACE.len() + 6];
        timeout(PATIENCE, client.read_exact(&mut got))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(got, [H2_PREFACE, b"frames".as_slice()].concat());
        assert_eq!(fixture.served().await.1, HttpVersion::Http2);
    }
    for other in ["PRI * HTTP/1.1\r\n", "POST", "PRI * HTTP/2.0\r\n\r\nSX"] {
        let mut client = fixture.connect().await;
        echo(&mut client, other.as_bytes()).await;
        assert_eq!(fixture.served().await.1, HttpVersion::Http1);
    }
}

#[tokio::test]
async fn a_trickling_client_meets_one_deadline() {
    let (dir, mut all) = (tempfile::tempdir().unwrap(), vec![plain()]);
    all.push(speaking(ProxyProtocolMode::Required, "127.0.0.0/8"));
    all.push(tls_listener(vec![certificate(dir.path(), "a", &["a.test"]).0]));
    let mut settings = settings(all);
    settings.limits.header_timeout = Duration::from_millis(150);
    let fixture = EdgeFixture::start(settings).await;
    // A TLS record of 200 bytes that never ends.
    let hello = [b"\x16\x03\x01\x00\xc8".as_slice(), &[1, 0, 0, 196], &[3; 190]].concat();
    let slow: [&[u8]; 3] = [H2_PREFACE, HEADER, &hello];
    for (listener, bytes) in slow.iter().enumerate() {
        let client = TcpStream::connect(fixture.address(listener)).await.unwrap();
        let (mut read, mut write) = client.into_split();
        let trickle = async {
            for byte in &bytes[..bytes.len() - 1] {
                if write.write_all(&[*byte]).await.is_err() {
                    break;
                }
                sleep(Duration::from_millis(10)).await;
            }
            sleep(PATIENCE).await;
        };
        let mut rest = Vec::new();
        tokio::select! {
            () = trickle => panic!("listener {listener} waits for ever"),
            _ = read.read_to_end(&mut rest) => {}
        }
        fixture.closed(CloseReason::HeaderTimeout, listener + 1).await;
    }
    assert_eq!(fixture.edge.open_connections(), 0);
}

#[tokio::test]
async fn the_announced_client_is_the_client() {
    let mut fixture = EdgeFixture::start(settings(vec![speaking(
        ProxyProtocolMode::Required,
        "127.0.0.0/8",
    )]))
    .await;
    let mut client = fixture.connect().await;
    client.write_all(HEADER).await.unwrap();
    echo(&mut client, b"GET / HTTP/1.1\r\n").await;
    let (info, http_version) = fixture.served().await;
    assert_eq!(http_version, HttpVersion::Http1);
    assert_eq!(info.client, "192.0.2.1:54321".parse().unwrap());
    assert_eq!(info.local, "198.51.100.2:443".parse().unwrap());
    assert_eq!(info.peer, client.local_addr().unwrap());

    let mut unknown = fixture.connect().await;
    unknown.write_all(b"PROXY UNKNOWN\r\n").await.unwrap();
    echo(&mut unknown, b"GET").await;
    assert_eq!(fixture.served().await.0.client, unknown.local_addr().unwrap());
}

#[tokio::test]
async fn a_header_and_the_preface_in_any_pieces() {
    let mut fixture = EdgeFixture::start(settings(vec![speaking(
        ProxyProtocolMode::Optional,
        "127.0.0.0/8",
    )]))
    .await;
    let bytes = [HEADER, H2_PREFACE].concat();
    for cut in [
        1,
        HEADER.len() - 1,
        HEADER.len(),
        HEADER.len() + 1,
        bytes.len() - 1,
    ] {
        let mut client = fixture.connect().await;
        client.set_nodelay(true).unwrap();
        client.write_all(&bytes[..cut]).await.unwrap();
        tokio::task::yield_now().await;
        client.write_all(&bytes[cut..]).await.unwrap();
        let mut got = [0; 24];
        timeout(PATIENCE, client.read_exact(&mut got))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&got, H2_PREFACE);
        let (info, http_version) = fixture.served().await;
        assert_eq!(http_version, HttpVersion::Http2);
        assert_eq!(info.client_ip().to_string(), "192.0.2.1");
    }
}

#[tokio::test]
async fn a_header_before_tls_alone_or_with_the_hello() {
    let dir = tempfile::tempdir().unwrap();
    let mut listener = tls_listener(vec![certificate(dir.path(), "a", &["a.test"]).0]);
    listener.proxy_protocol = speaking(ProxyProtocolMode::Required, "127.0.0.0/8").proxy_protocol;
    let mut fixture = EdgeFixture::start(settings(vec![listener])).await;
    for together in [false, true] {
        let mut tcp = fixture.connect().await;
        // Corked, the header leaves with the hello behind it.
        socket2::SockRef::from(&tcp).set_tcp_cork(together).unwrap();
        tcp.write_all(HEADER).await.unwrap();
        let mut client = handshake(&client_config(&["h2"]), tcp, "a.test").await;
        echo(&mut client, b"GET").await;
        let (info, http_version) = fixture.served().await;
        assert_eq!(http_version, HttpVersion::Http2);
        assert_eq!(info.client, "192.0.2.1:54321".parse().unwrap());
        assert_eq!(info.tls.as_ref().unwrap().sni.as_deref(), Some("a.test"));
    }
}

#[tokio::test]
async fn who_may_and_must_announce() {
    let mut fixture = EdgeFixture::start(settings(vec![
        speaking(ProxyProtocolMode::Required, "127.0.0.0/8"),
        speaking(ProxyProtocolMode::Optional, "127.0.0.0/8"),
        speaking(ProxyProtocolMode::Required, "10.0.0.0/8"),
        speaking(ProxyProtocolMode::Optional, "10.0.0.0/8"),
    ]))
    .await;
    let at: Vec<_> = (0..4).map(|n| fixture.address(n)).collect();
    let refused = [
        (0, b"GET / HTTP/1.1\r\n".as_slice(), CloseReason::ProxyMissing, 1),
        (0, b"PROXY TCP4 nonsense\r\n", CloseReason::ProxyMalformed, 1),
        (1, b"PROXY TCP4 nonsense\r\n", CloseReason::ProxyMalformed, 2),
        (2, HEADER, CloseReason::ProxyForbidden, 1),
        (2, b"GET / HTTP/1.1\r\n", CloseReason::ProxyMissing, 2),
        (3, HEADER, CloseReason::ProxyForbidden, 2),
    ];
    for (listener, bytes, reason, n) in refused {
        let mut client = TcpStream::connect(at[listener]).await.unwrap();
        client.write_all(bytes).await.unwrap();
        expect_close(&mut client).await;
        fixture.closed(reason, n).await;
    }
    for listener in [1, 3] {
        let mut client = TcpStream::connect(at[listener]).await.unwrap();
        echo(&mut client, b"GET / HTTP/1.1\r\n").await;
        assert_eq!(fixture.served().await.0.client, client.local_addr().unwrap());
    }
}

#[tokio::test]
async fn a_probe_is_counted_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = EdgeFixture::start(settings(vec![
        plain(),
        speaking(ProxyProtocolMode::Required, "127.0.0.0/8"),
        tls_listener(vec![certificate(dir.path(), "a", &["a.test"]).0]),
    ]))
    .await;
    for listener in 0..3 {
        drop(TcpStream::connect(fixture.address(listener)).await.unwrap());
        fixture.closed(CloseReason::Probe, listener + 1).await;
        let reset = TcpStream::connect(fixture.address(listener)).await.unwrap();
        socket2::SockRef::from(&reset)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    }
    fixture.edge.stop_accepting().await;
    fixture.edge.drained().await;
    fixture.closed(CloseReason::Probe, 6).await;
}

#[tokio::test]
async fn the_announced_client_is_who_is_limited() {
    let mut settings = settings(vec![speaking(ProxyProtocolMode::Required, "127.0.0.0/8")]);
    settings.limits.max_connections_per_client = Some(1);
    let mut fixture = EdgeFixture::start(settings).await;
    let mut first = fixture.connect().await;
    first.write_all(HEADER).await.unwrap();
    echo(&mut first, b"GET").await;
    let mut second = fixture.connect().await;
    second.write_all(HEADER).await.unwrap();
    expect_close(&mut second).await;
    fixture.closed(CloseReason::ClientLimit, 1).await;
    let mut other = fixture.connect().await;
    other
        .write_all(b"PROXY TCP4 192.0.2.9 198.51.100.2 54321 443\r\n")
        .await
        .unwrap();
    echo(&mut other, b"GET").await;
    // The limit follows a reload, and a place comes back.
    fixture.settings.limits.max_connections_per_client = Some(2);
    assert!(fixture.reload().await.is_empty());
    let mut third = fixture.connect().await;
    third.write_all(HEADER).await.unwrap();
    echo(&mut third, b"GET").await;
    drop((first, third, other));
    fixture.edge.drained().await;
    fixture.closed(CloseReason::Served, 3).await;
}
