use crate::observe::Reason;
use std::net::SocketAddr;

use pingora_core::protocols::GetSocketDigest;
use pingora_core::protocols::http::ServerSession;
use pingora_http::ResponseHeader;
use sluice_model::Visibility;
use tokio::io::{AsyncReadExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::edge::CloseWatch;
use crate::h1::{ChunkFault, HeadFault};

pub(super) fn limits() -> Limits {
    Limits {
        header_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(60),
        max_header_bytes: 1024,
        max_headers: 16,
        max_uri_bytes: 256,
        max_body_bytes: Some(1000),
        body_read_timeout: Duration::from_secs(30),
        write_timeout: Duration::from_secs(20),
        max_connections: None,
        max_connections_per_client: None,
        max_connection_age: None,
        min_body_rate: None,
        max_concurrent_streams: 100,
        max_stream_resets: None,
        max_control_frames: None,
        upstream_idle_timeout: Duration::from_secs(4),
        connect_timeout: Duration::from_secs(1),
    }
}

const CLIENT: &str = "203.0.113.7:4242";

/// What a test holds of a connection beside the stream.
pub(super) struct Peer {
    drain: watch::Sender<Drain>,
    /// The other end of the socket that the close watch watches.
    socket: TcpStream,
    /// The watched end: the watch does not own it.
    _watched: Arc<TcpStream>,
}

pub(super) async fn guard(io: Box<dyn ByteStream>, wire: Wire) -> (GuardedStream, Peer) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let local = listener.local_addr().unwrap();
    let (client, server) = tokio::join!(TcpStream::connect(local), listener.accept());
    let (server, peer) = server.unwrap();
    let watched = Arc::new(server);
    let info = Arc::new(ConnectionInfo {
        listener: 0,
        visibility: Visibility::External,
        local,
        peer,
        client: CLIENT.parse::<SocketAddr>().unwrap(),
        tls: None,
        close_watch: CloseWatch::new(&watched),
    });
    let (drain, told) = watch::channel(Drain::Serving);
    let connection = Connection { io, info, wire };
    let stream = GuardedStream::new(connection, &limits(), told);
    let socket = client.unwrap();
    let peer = Peer {
        drain,
        socket,
        _watched: watched,
    };
    (stream, peer)
}

async fn pair(room: usize) -> (GuardedStream, DuplexStream, Peer) {
    let (near, far) = duplex(room);
    let (stream, peer) = guard(Box::new(near), Wire::Http1).await;
    (stream, far, peer)
}

pub(super) async fn next(stream: &mut GuardedStream) -> Result<Option<Head>, HeadError> {
    let limits = limits();
    stream
        .next_head(
            &HeadLimits::from(&limits),
            limits.header_timeout,
            limits.idle_timeout,
        )
        .await
}

/// Reads the current message to its end, `room` bytes at a time, raw.
pub(super) async fn message(stream: &mut GuardedStream, room: usize) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut buf = vec![0; room];
    while !stream.message_complete() {
        let read = stream.read(&mut buf).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        out.extend_from_slice(&buf[..read]);
    }
    Ok(out)
}

/// Whether a read waits (for longer than anything here takes).
async fn waits(stream: &mut GuardedStream) -> bool {
    timeout(Duration::from_secs(3600), stream.read(&mut [0; 16]))
        .await
        .is_err()
}

pub(super) const PLAIN: &str = "GET /1 HTTP/1.1\r\nHost: a\r\n\r\n";
pub(super) const LENGTH: &str = "POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
pub(super) const CHUNKED: &str =
    "POST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: v\r\n\r\n";

#[tokio::test(start_paused = true)]
async fn pipelined_requests_come_one_at_a_time() {
    let (mut stream, mut client, _peer) = pair(4096).await;
    let requests = [PLAIN, LENGTH, CHUNKED, PLAIN];
    client.write_all(requests.concat().as_bytes()).await.unwrap();
    for request in requests {
        let head = next(&mut stream).await.unwrap().unwrap();
        assert!(request.starts_with(std::str::from_utf8(head.bytes()).unwrap()));
        assert_eq!(message(&mut stream, 16).await.unwrap(), request.as_bytes());
        assert!(waits(&mut stream).await, "{request}");
    }
    assert_eq!(stream.bytes_in(), requests.concat().len() as u64);
    drop(client);
    assert!(next(&mut stream).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn the_client_leaving_is_seen_behind_a_pipelined_request() {
    let (mut stream, mut client, _peer) = pair(4096).await;
    client
        .write_all([PLAIN, LENGTH].concat().as_bytes())
        .await
        .unwrap();
    next(&mut stream).await.unwrap().unwrap();
    message(&mut stream, 4096).await.unwrap();
    assert!(waits(&mut stream).await);
    drop(client);
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test]
async fn the_client_leaving_is_seen_behind_more_than_is_read_ahead() {
    let (mut stream, mut client, peer) = pair(256 * 1024).await;
    let flood = PLAIN.repeat(4000);
    client.write_all(flood.as_bytes()).await.unwrap();
    next(&mut stream).await.unwrap().unwrap();
    message(&mut stream, 4096).await.unwrap();
    {
        let mut probe = [0; 1];
        let mut read = std::pin::pin!(stream.read(&mut probe));
        assert!(poll_once(read.as_mut()).await.is_pending());
        drop(peer.socket);
        assert_eq!(timeout(Duration::from_secs(10), read).await.unwrap().unwrap(), 0);
    }
    let ahead = stream.ahead.len();
    assert!((1..=READ_AHEAD + READ_CHUNK).contains(&ahead), "{ahead}");
}

async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

#[tokio::test(start_paused = true)]
async fn a_head_has_one_deadline_from_its_first_byte() {
    let (mut stream, mut client, _peer) = pair(4096).await;
    let dripping = tokio::spawn(async move {
        sleep(Duration::from_secs(30)).await;
        for byte in PLAIN.as_bytes() {
            if client.write_all(&[*byte]).await.is_err() {
                break;
            }
            sleep(Duration::from_secs(3)).await;
        }
    });
    let start = Instant::now();
    let error = next(&mut stream).await.unwrap_err();
    assert_eq!(
        (error.reason(), error.status()),
        (Reason::RequestTimeout, Some(408))
    );
    assert_eq!(start.elapsed().as_secs(), 40);
    assert!(
        next(&mut stream).await.unwrap().is_none(),
        "the connection is over"
    );
    dripping.abort();
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_goes_after_its_time() {
    let (mut stream, _client, _peer) = pair(64).await;
    let start = Instant::now();
    assert!(next(&mut stream).await.unwrap().is_none());
    assert_eq!(start.elapsed().as_secs(), 60);
    assert_eq!(stream.ahead.capacity(), 0, "idle connections hold no buffer");
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_idle_connections_but_not_a_request_on_its_way() {
    let (mut stream, mut client, peer) = pair(4096).await;
    peer.drain.send_replace(Drain::Draining);
    client.write_all(PLAIN.as_bytes()).await.unwrap();
    assert!(next(&mut stream).await.unwrap().is_some());
    message(&mut stream, 4096).await.unwrap();

    let start = Instant::now();
    assert!(next(&mut stream).await.unwrap().is_none());
    assert_eq!(start.elapsed(), DRAIN_IDLE);
}

#[tokio::test(start_paused = true)]
async fn a_drain_is_noticed_while_idle() {
    let (mut stream, _client, peer) = pair(64).await;
    let start = Instant::now();
    let (head, ()) = tokio::join!(next(&mut stream), async {
        sleep(Duration::from_secs(5)).await;
        peer.drain.send_replace(Drain::Closing);
    });
    assert!(head.unwrap().is_none());
    assert_eq!(start.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_nobody_can_call_any_more_is_none() {
    let (mut stream, _client, peer) = pair(64).await;
    drop(peer.drain);
    let start = Instant::now();
    assert!(next(&mut stream).await.unwrap().is_none());
    assert_eq!(start.elapsed().as_secs(), 60);
}

#[tokio::test(start_paused = true)]
async fn a_client_leaving_in_a_head_is_told_from_one_leaving_before_it() {
    let (mut stream, mut client, _peer) = pair(64).await;
    client.write_all(b"GET / HT").await.unwrap();
    drop(client);
    let error = next(&mut stream).await.unwrap_err();
    assert!(matches!(error, HeadError::ClientGone));
    assert_eq!(error.status(), None);

    let (mut stream, mut client, _peer) = pair(64).await;
    client.write_all(b"\r\n").await.unwrap();
    drop(client);
    assert!(next(&mut stream).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_bad_head_ends_the_connection() {
    let (mut stream, mut client, _peer) = pair(4096).await;
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    let error = next(&mut stream).await.unwrap_err();
    assert!(matches!(error, HeadError::Fault(HeadFault::HostRepeated)));
    assert!(next(&mut stream).await.unwrap().is_none());

    let answer = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
    let mut read = Vec::new();
    let (_, end) = tokio::join!(stream.refuse(answer), client.read_to_end(&mut read));
    end.unwrap();
    assert_eq!(read, answer);
}

#[tokio::test(start_paused = true)]
async fn a_head_over_the_limit_is_refused_with_a_bounded_buffer() {
    let (mut stream, mut client, _peer) = pair(256 * 1024).await;
    let huge = format!("GET / HTTP/1.1\r\nX: {}", "a".repeat(200_000));
    client.write_all(huge.as_bytes()).await.unwrap();
    let error = next(&mut stream).await.unwrap_err();
    assert_eq!(
        (error.reason(), error.status()),
        (Reason::HeadersTooLarge, Some(431))
    );
    assert!(stream.ahead.len() <= 1024 + READ_CHUNK);
}

#[tokio::test(start_paused = true)]
async fn a_body_over_the_limit_is_refused_before_or_while_it_comes() {
    let (mut stream, mut client, _peer) = pair(4096).await;
    client
        .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n")
        .await
        .unwrap();
    let error = next(&mut stream).await.unwrap_err();
    assert_eq!(
        (error.reason(), error.status()),
        (Reason::BodyTooLarge, Some(413))
    );

    let (mut stream, mut client, _peer) = pair(4096).await;
    let body = format!("{}\r\n", "a".repeat(500));
    let request = format!(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1f4\r\n{body}1f4\r\n{body}1\r\nx\r\n0\r\n\r\n"
    );
    client.write_all(request.as_bytes()).await.unwrap();
    next(&mut stream).await.unwrap().unwrap();
    assert!(message(&mut stream, 100).await.is_err());
    assert_eq!(stream.fault(), Some(&BodyFault::TooLarge { limit: 1000 }));
    assert_eq!(stream.fault().map(BodyFault::status), Some(413));
    assert!(!stream.message_complete());
    assert!(next(&mut stream).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn bad_chunk_framing_is_an_error() {
    let (mut stream, mut client, _peer) = pair(4096).await;
    client
        .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\nx")
        .await
        .unwrap();
    next(&mut stream).await.unwrap().unwrap();
    assert!(message(&mut stream, 4096).await.is_err());
    assert_eq!(
        stream.fault(),
        Some(&BodyFault::Chunk(ChunkFault::BadSize(b'\n')))
    );
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stops_coming_times_out_between_reads() {
    let (mut stream, mut client, _peer) = pair(4096).await;
    client
        .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
        .await
        .unwrap();
    next(&mut stream).await.unwrap().unwrap();
    let start = Instant::now();
    let (read, client) = tokio::join!(message(&mut stream, 64), async {
        for _ in 0..3 {
            sleep(Duration::from_secs(29)).await;
            client.write_all(b"x").await.unwrap();
        }
        client
    });
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert_eq!(start.elapsed().as_secs(), 3 * 29 + 30);
    assert_eq!(stream.fault(), Some(&BodyFault::ReadTimeout));
    drop(client);
}

#[tokio::test(start_paused = true)]
async fn a_body_cut_short_is_the_client_gone() {
    let (mut stream, mut client, _peer) = pair(4096).await;
    client
        .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nxy")
        .await
        .unwrap();
    drop(client);
    next(&mut stream).await.unwrap().unwrap();
    assert!(message(&mut stream, 4096).await.is_err());
    assert_eq!(stream.fault(), Some(&BodyFault::ClientGone));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_times_out() {
    for wire in [Wire::Http1, Wire::Http2] {
        let (near, mut far) = duplex(64);
        let (mut stream, _peer) = guard(Box::new(near), wire).await;
        let start = Instant::now();
        let (written, ()) = tokio::join!(stream.write_all(&[b'x'; 1000]), async {
            sleep(Duration::from_secs(19)).await;
            far.read_exact(&mut [0; 64]).await.unwrap();
        });
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed().as_secs(), 39);
        assert_eq!(stream.fault(), Some(&BodyFault::WriteTimeout));
        assert_eq!(stream.bytes_out(), 128);
    }
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_gets_what_followed_the_head() {
    let (mut stream, mut client, _peer) = pair(4096).await;
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly")
        .await
        .unwrap();
    let head = next(&mut stream).await.unwrap().unwrap();
    assert!(head.offer().unwrap().websocket);
    let (mut io, leftover) = stream.into_parts();
    assert_eq!(leftover, b"early");
    client.write_all(b" and late").await.unwrap();
    let mut rest = [0; 9];
    io.read_exact(&mut rest).await.unwrap();
    assert_eq!(&rest, b" and late");
}

#[tokio::test(start_paused = true)]
async fn http2_passes_as_it_is() {
    let (near, mut far) = duplex(4096);
    let (mut stream, _peer) = guard(Box::new(near), Wire::Http2).await;
    far.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut preface = [0; 24];
    stream.read_exact(&mut preface).await.unwrap();
    assert_eq!(&preface[..3], b"PRI");
    stream.write_all(b"frame").await.unwrap();
    far.read_exact(&mut [0; 5]).await.unwrap();
    assert_eq!((stream.bytes_in(), stream.bytes_out()), (24, 5));
}

/// A whole turn through Pingora's session, and the stream back for the next one.
#[tokio::test(start_paused = true)]
async fn pingora_serves_one_request_and_gives_the_stream_back() {
    let (mut stream, mut client, _peer) = pair(4096).await;
    client
        .write_all([CHUNKED, PLAIN].concat().as_bytes())
        .await
        .unwrap();
    let head = next(&mut stream).await.unwrap().unwrap();
    stream.context().put(Box::new(head));
    let socket = stream.get_socket_digest().unwrap();
    assert_eq!(socket.peer_addr().unwrap().to_string(), CLIENT);

    let mut session = ServerSession::new_http1(Box::new(stream));
    assert!(session.read_request().await.unwrap());
    let context = ConnectionContext::of(session.digest().unwrap()).unwrap();
    assert_eq!(context.info().client.to_string(), CLIENT);
    assert!(context.take::<String>().is_none());
    assert_eq!(context.take::<Head>().unwrap().path(), "/3");
    assert_eq!(session.req_header().raw_path(), b"/3");
    let mut body = Vec::new();
    while let Some(part) = session.read_request_body().await.unwrap() {
        body.extend_from_slice(&part);
    }
    assert_eq!(body, b"abc");

    let mut header = ResponseHeader::build(200, None).unwrap();
    header.insert_header("Content-Length", "2").unwrap();
    session.write_response_header(Box::new(header)).await.unwrap();
    session
        .write_response_body(Bytes::from_static(b"ok"), true)
        .await
        .unwrap();
    let (io, prefix) = session.finish().await.unwrap().unwrap().into_parts();
    assert!(prefix.is_none());
    let mut stream = *io.into_any().downcast::<GuardedStream>().unwrap();
    assert!(stream.message_complete());
    assert_eq!(next(&mut stream).await.unwrap().unwrap().path(), "/1");

    let mut answer = vec![0; 1024];
    let read = client.read(&mut answer).await.unwrap();
    assert!(answer[..read].starts_with(b"HTTP/1.1 200 OK\r\n"));
    assert!(answer[..read].ends_with(b"\r\n\r\nok"));
}

#[tokio::test(start_paused = true)]
async fn closing_early_reads_on_so_that_the_answer_arrives() {
    let (mut stream, mut client, _peer) = pair(64).await;
    client
        .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 900\r\n\r\n")
        .await
        .unwrap();
    next(&mut stream).await.unwrap().unwrap();
    let start = Instant::now();
    let (_, sent) = tokio::join!(stream.refuse(b"HTTP/1.1 404 Not Found\r\n\r\n"), async {
        // Far more than there is room for: somebody has to take it.
        client.write_all(&[b'x'; 900]).await.map(|()| drop(client))
    });
    sent.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO, "over once the client closed");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_closes_is_not_waited_for() {
    let (mut stream, mut client, _peer) = pair(4096).await;
    client.write_all(b"nonsense\r\n\r\n").await.unwrap();
    assert!(next(&mut stream).await.is_err());
    let start = Instant::now();
    stream.refuse(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    assert_eq!(start.elapsed(), LINGER);
    drop(client);
}
