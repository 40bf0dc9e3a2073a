//! How many writes the frames of an HTTP/2 connection take: of streams that are ready together, one.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::future::join_all;
use rustls_pki_types::ServerName;
use sluice_tests::gateway::Gateway;
use sluice_tests::h2_client::{self, H2};
use sluice_tests::raw_backend::RawBackend;
use sluice_tests::tls::Ca;
use sluice_tests::wait::{SOON, within};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::{WEB, web_with};

/// Streams that are ready together.
const STREAMS: usize = 20;

/// Counts the TLS records of application data that are read: a write of the peer's is one, up to 16 KiB.
struct Records {
    io: TcpStream,
    count: Arc<AtomicUsize>,
    /// What came of the header of a record.
    head: Vec<u8>,
    /// Bytes of the record that are still to come.
    left: usize,
}

impl Records {
    fn advance(&mut self, mut data: &[u8]) {
        const APPLICATION_DATA: u8 = 23;
        while !data.is_empty() {
            if self.left > 0 {
                let n = self.left.min(data.len());
                self.left -= n;
                data = &data[n..];
                continue;
            }
            self.head.push(data[0]);
            data = &data[1..];
            if let [kind, _, _, high, low] = self.head[..] {
                self.left = usize::from(u16::from_be_bytes([high, low]));
                self.count
                    .fetch_add(usize::from(kind == APPLICATION_DATA), Ordering::SeqCst);
                self.head.clear();
            }
        }
    }
}

impl AsyncRead for Records {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = out.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, out))?;
        this.advance(&out.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Records {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Answers when this many requests are there: all at once, in one write.
async fn answers_together() -> RawBackend {
    RawBackend::start(async |_, io: TcpStream| {
        let mut connection = h2::server::handshake(io).await.map_err(io::Error::other)?;
        let mut waiting = Vec::new();
        while let Some(Ok((_request, respond))) = connection.accept().await {
            waiting.push(respond);
            if waiting.len() == STREAMS {
                for mut respond in waiting.drain(..) {
                    let sent = respond.send_response(http::Response::new(()), false);
                    let sent = sent.and_then(|mut stream| stream.send_data(Bytes::from_static(b"ok"), true));
                    sent.map_err(io::Error::other)?;
                }
            }
        }
        Ok(())
    })
    .await
}

/// On one data thread: two may write while the other still makes frames.
#[tokio::test]
async fn frames_of_streams_that_are_ready_together_leave_in_one_write() {
    let backend = answers_together().await;
    let ca = Ca::new();
    let builder = Gateway::builder(&format!(
        "listeners: [{{address: \"127.0.0.1:0\", tls: {{certificates: [{{certFile: a.crt, keyFile: a.key}}]}}}}]\n{}",
        web_with(backend.addr(), "protocol: h2c")
    ));
    ca.issue(&[WEB]).write(builder.dir(), "a");
    let gateway = builder.env("TOKIO_WORKER_THREADS", "1").start().await;

    let tcp = TcpStream::connect(gateway.addr())
        .await
        .expect("the gateway accepts");
    let count = Arc::new(AtomicUsize::new(0));
    let records = Records {
        io: tcp,
        count: Arc::clone(&count),
        head: Vec::new(),
        left: 0,
    };
    let name = ServerName::try_from(WEB).expect("a name");
    let tls = ca
        .client(&["h2"])
        .connect(name, records)
        .await
        .expect("a handshake");
    let client = H2::over(tls).await;
    for round in 0..5 {
        let before = count.load(Ordering::SeqCst);
        let calls = (0..STREAMS).map(|_| client.exchange(h2_client::get("https", WEB, "/"), Bytes::new()));
        for answer in within("all answers", SOON, join_all(calls)).await {
            assert_eq!(answer.expect("a whole answer").text(), "ok");
        }
        let writes = count.load(Ordering::SeqCst) - before;
        // The first round opens the connection to the backend, and SETTINGS are acknowledged.
        assert!(
            round == 0 || writes <= 3,
            "{writes} writes for {STREAMS} answers, round {round}"
        );
    }
}
