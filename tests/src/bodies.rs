//! Every way in which a request's body can end, over either protocol, as data.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;

use crate::h1::H1;
use crate::h2_client::{self, H2};
use crate::wait::quiet;
use crate::wire::Protocol;

/// The pause between two pieces: long enough for the first to have arrived.
const PAUSE: Duration = Duration::from_millis(20);

/// The timeout of a response.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a client does after the head.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// These bytes: of the connection over HTTP/1, of a DATA frame over HTTP/2.
    Send(&'static [u8]),
    /// DATA with END_STREAM.
    Last(&'static [u8]),
    /// Trailers, which end the stream.
    Trailers,
    /// Time passes.
    Pause,
    /// RST_STREAM, or a reset of the connection.
    Reset,
    /// The connection is closed.
    Close,
}

/// A request and how its body ends.
#[derive(Debug, Clone)]
pub struct Way {
    /// A description.
    pub name: &'static str,
    protocol: Protocol,
    method: &'static str,
    /// The fields of the head that frame the body.
    fields: &'static [(&'static str, &'static str)],
    /// END_STREAM on HEADERS.
    ends: bool,
    steps: &'static [Step],
    /// The body, as far as it is sent.
    pub body: &'static [u8],
    /// Whether the body ends as its framing says.
    pub whole: bool,
}

use Step::{Close, Last, Pause, Reset, Send, Trailers};

const LENGTH_0: &[(&str, &str)] = &[("content-length", "0")];
const LENGTH_5: &[(&str, &str)] = &[("content-length", "5")];
const LENGTH_10: &[(&str, &str)] = &[("content-length", "10")];
const CHUNKED: &[(&str, &str)] = &[("transfer-encoding", "chunked")];
const EXPECTS: &[(&str, &str)] = &[("content-length", "5"), ("expect", "100-continue")];

const fn http1(
    name: &'static str,
    fields: &'static [(&'static str, &'static str)],
    steps: &'static [Step],
    body: &'static [u8],
) -> Way {
    Way {
        name,
        protocol: Protocol::Http1,
        method: "POST",
        fields,
        ends: false,
        steps,
        body,
        whole: true,
    }
}

const fn http2(
    name: &'static str,
    fields: &'static [(&'static str, &'static str)],
    steps: &'static [Step],
    body: &'static [u8],
) -> Way {
    Way {
        protocol: Protocol::Http2,
        ends: steps.is_empty(),
        ..http1(name, fields, steps, body)
    }
}

const fn get(way: Way) -> Way {
    Way { method: "GET", ..way }
}

const fn cut(way: Way) -> Way {
    Way { whole: false, ..way }
}

/// All ways: RFC 9112 6 and 7.1, RFC 9113 8.1.
const WAYS: &[Way] = &[
    get(http1("GET", &[], &[], b"")),
    http1("no framing", &[], &[], b""),
    http1("length 0", LENGTH_0, &[], b""),
    http1("length, at once", LENGTH_5, &[Send(b"hello")], b"hello"),
    http1("length, later", LENGTH_5, &[Pause, Send(b"hello")], b"hello"),
    http1(
        "length, in pieces",
        LENGTH_10,
        &[Send(b"hel"), Pause, Send(b"lo wor"), Pause, Send(b"l")],
        b"hello worl",
    ),
    http1("length, expected", EXPECTS, &[Pause, Send(b"hello")], b"hello"),
    get(http1("GET with a length", LENGTH_5, &[Send(b"hello")], b"hello")),
    http1(
        "chunked, at once",
        CHUNKED,
        &[Send(b"5\r\nhello\r\n0\r\n\r\n")],
        b"hello",
    ),
    http1(
        "chunked, last chunk later",
        CHUNKED,
        &[Send(b"5\r\nhello\r\n"), Pause, Send(b"0\r\n\r\n")],
        b"hello",
    ),
    http1(
        "chunked, last chunk in pieces",
        CHUNKED,
        &[
            Send(b"5\r\nhello\r\n0"),
            Pause,
            Send(b"\r\n"),
            Pause,
            Send(b"\r"),
            Pause,
            Send(b"\n"),
        ],
        b"hello",
    ),
    http1("chunked, empty, at once", CHUNKED, &[Send(b"0\r\n\r\n")], b""),
    http1(
        "chunked, empty, later",
        CHUNKED,
        &[Pause, Send(b"0\r\n\r\n")],
        b"",
    ),
    http1(
        "chunked, many",
        CHUNKED,
        &[Send(b"1\r\nh\r\n1;x=y\r\ne\r\n002\r\nll\r\n1\r\no\r\n0\r\n\r\n")],
        b"hello",
    ),
    http1(
        "chunked, chunk in pieces",
        CHUNKED,
        &[
            Send(b"5\r\nhe"),
            Pause,
            Send(b"llo"),
            Pause,
            Send(b"\r\n0\r\n\r\n"),
        ],
        b"hello",
    ),
    http1(
        "chunked, trailers",
        CHUNKED,
        &[Send(b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n")],
        b"hello",
    ),
    http1(
        "chunked, trailers later",
        CHUNKED,
        &[Send(b"5\r\nhello\r\n0\r\n"), Pause, Send(b"X-Sum: 1\r\n\r\n")],
        b"hello",
    ),
    http1(
        "chunked, empty, trailers",
        CHUNKED,
        &[Send(b"0\r\nX-Sum: 1\r\n\r\n")],
        b"",
    ),
    cut(http1(
        "length, closed",
        LENGTH_10,
        &[Send(b"hello"), Pause, Close],
        b"hello",
    )),
    cut(http1(
        "length, reset",
        LENGTH_10,
        &[Send(b"hello"), Pause, Reset],
        b"hello",
    )),
    cut(http1(
        "chunked, closed in a chunk",
        CHUNKED,
        &[Send(b"a\r\nhello"), Pause, Close],
        b"hello",
    )),
    cut(http1(
        "chunked, closed between chunks",
        CHUNKED,
        &[Send(b"5\r\nhello\r\n"), Pause, Close],
        b"hello",
    )),
    cut(http1(
        "chunked, reset between chunks",
        CHUNKED,
        &[Send(b"5\r\nhello\r\n"), Pause, Reset],
        b"hello",
    )),
    cut(http1(
        "chunked, closed in the last chunk",
        CHUNKED,
        &[Send(b"5\r\nhello\r\n0\r\n"), Pause, Close],
        b"hello",
    )),
    cut(http1(
        "chunked, malformed",
        CHUNKED,
        &[Send(b"5\r\nhello\r\n"), Pause, Send(b"x\r\n\r\n")],
        b"hello",
    )),
    get(http2("GET", &[], &[], b"")),
    http2("END_STREAM on HEADERS", &[], &[], b""),
    http2("END_STREAM on HEADERS, length 0", LENGTH_0, &[], b""),
    http2("END_STREAM on DATA", &[], &[Last(b"hello")], b"hello"),
    http2(
        "END_STREAM on DATA, later",
        &[],
        &[Pause, Last(b"hello")],
        b"hello",
    ),
    http2(
        "END_STREAM on DATA, length",
        LENGTH_5,
        &[Last(b"hello")],
        b"hello",
    ),
    http2(
        "END_STREAM on an empty DATA",
        &[],
        &[Send(b"hello"), Last(b"")],
        b"hello",
    ),
    http2(
        "END_STREAM on an empty DATA, later",
        &[],
        &[Send(b"hello"), Pause, Last(b"")],
        b"hello",
    ),
    http2(
        "END_STREAM on an empty DATA, length",
        LENGTH_5,
        &[Send(b"hello"), Pause, Last(b"")],
        b"hello",
    ),
    http2("an empty DATA alone", &[], &[Last(b"")], b""),
    http2("an empty DATA alone, later", &[], &[Pause, Last(b"")], b""),
    http2(
        "an empty DATA alone, length 0",
        LENGTH_0,
        &[Pause, Last(b"")],
        b"",
    ),
    http2(
        "empty DATA between",
        &[],
        &[
            Send(b""),
            Pause,
            Send(b"hel"),
            Send(b""),
            Pause,
            Send(b""),
            Last(b"lo"),
        ],
        b"hello",
    ),
    http2(
        "END_STREAM on trailers",
        &[],
        &[Send(b"hello"), Trailers],
        b"hello",
    ),
    http2(
        "END_STREAM on trailers, later",
        &[],
        &[Send(b"hello"), Pause, Trailers],
        b"hello",
    ),
    http2(
        "END_STREAM on trailers, length",
        LENGTH_5,
        &[Send(b"hello"), Trailers],
        b"hello",
    ),
    http2("trailers alone", &[], &[Pause, Trailers], b""),
    get(http2(
        "GET with a body",
        &[],
        &[Send(b"hello"), Pause, Last(b"")],
        b"hello",
    )),
    http2("length, expected", EXPECTS, &[Pause, Last(b"hello")], b"hello"),
    cut(http2("reset", &[], &[Send(b"hello"), Pause, Reset], b"hello")),
    cut(http2(
        "reset, length",
        LENGTH_10,
        &[Send(b"hello"), Pause, Reset],
        b"hello",
    )),
    cut(http2("closed", &[], &[Send(b"hello"), Pause, Close], b"hello")),
    cut(http2(
        "closed, length",
        LENGTH_10,
        &[Send(b"hello"), Pause, Close],
        b"hello",
    )),
    cut(http2(
        "less than its length",
        LENGTH_10,
        &[Send(b"hello"), Pause, Last(b"")],
        b"hello",
    )),
    cut(http2(
        "less than its length, trailers",
        LENGTH_10,
        &[Send(b"hello"), Pause, Trailers],
        b"hello",
    )),
    cut(http2(
        "more than its length",
        LENGTH_5,
        &[Send(b"hel"), Pause, Last(b"lox")],
        b"hel",
    )),
];

/// All ways of a protocol that end as the framing says, or all that do not.
pub fn ways(protocol: Protocol, whole: bool) -> impl Iterator<Item = &'static Way> {
    WAYS.iter()
        .filter(move |way| way.protocol == protocol && way.whole == whole)
}

impl Way {
    /// Whether the head announces how long the body is.
    pub fn length(&self) -> Option<u64> {
        let length = self.fields.iter().find(|(name, _)| *name == "content-length");
        length.and_then(|(_, value)| value.parse().ok())
    }

    /// Sends the request on a connection of its own: all of it, whatever comes meanwhile. Then reads the answer:
    /// its status and body; `None` where the client left by itself.
    ///
    /// # Errors
    /// What came instead of a whole answer, in words.
    pub async fn send(
        &self,
        addr: SocketAddr,
        host: &str,
        target: &str,
    ) -> Result<Option<(u16, String)>, String> {
        let sent = async {
            match self.protocol {
                Protocol::Http1 => self.http1(addr, host, target).await.map_err(|e| e.to_string()),
                Protocol::Http2 => self.http2(addr, host, target).await.map_err(|e| e.to_string()),
            }
        };
        let answered = tokio::time::timeout(PATIENCE, sent).await;
        answered.unwrap_or_else(|_| Err("no answer in time".to_owned()))
    }

    async fn http1(&self, addr: SocketAddr, host: &str, target: &str) -> io::Result<Option<(u16, String)>> {
        let mut conn = H1::connect(addr).await?;
        let mut head = format!("{} {target} HTTP/1.1\r\nHost: {host}\r\n", self.method);
        for (name, value) in self.fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let mut pending = head.into_bytes();
        for step in self.steps {
            match step {
                Send(bytes) | Last(bytes) => pending.extend_from_slice(bytes),
                Trailers => unreachable!("they are bytes"),
                Pause => {
                    // An early answer may have closed the connection: it counts.
                    let _ = conn.send(&std::mem::take(&mut pending)).await;
                    quiet(PAUSE).await;
                }
                Reset => {
                    conn.reset();
                    return Ok(None);
                }
                Close => return Ok(None),
            }
        }
        let _ = conn.send(&pending).await;
        let response = conn.response_to(format!("{} ", self.method).as_bytes()).await?;
        Ok(Some((response.status, response.text())))
    }

    async fn http2(
        &self,
        addr: SocketAddr,
        host: &str,
        target: &str,
    ) -> Result<Option<(u16, String)>, h2::Error> {
        let client = H2::connect(addr).await;
        let mut request = h2_client::with_method(self.method, "http", host, target);
        for (name, value) in self.fields {
            request
                .headers_mut()
                .insert(*name, http::HeaderValue::from_static(value));
        }
        let mut send = client.send.clone().ready().await?;
        let (response, mut stream) = send.send_request(request, self.ends)?;
        for step in self.steps {
            // An early answer may have ended the stream: it counts.
            let _ = match step {
                Send(bytes) => stream.send_data(Bytes::from_static(bytes), false),
                Last(bytes) => stream.send_data(Bytes::from_static(bytes), true),
                Trailers => {
                    let mut trailers = HeaderMap::new();
                    trailers.insert("x-sum", http::HeaderValue::from_static("1"));
                    stream.send_trailers(trailers)
                }
                Pause => {
                    quiet(PAUSE).await;
                    Ok(())
                }
                Reset => {
                    stream.send_reset(h2::Reason::CANCEL);
                    // The frame goes out with the connection's task.
                    quiet(PAUSE).await;
                    return Ok(None);
                }
                Close => return Ok(None),
            };
        }
        let response = h2_client::collect(response.await?).await?;
        Ok(Some((response.status, response.text())))
    }
}
