//! The HTTP/2 side, on the `h2` crate, which judges frames, lengths and ends of streams by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Response};
use tokio::net::TcpStream;

use super::{End, Framing, Record, Request, SLOW, Script};

/// Serves a connection until either side ends it.
pub(super) async fn serve(io: TcpStream, record: Record) {
    let mut connection = match h2::server::handshake(io).await {
        Ok(connection) => connection,
        Err(e) => {
            // A connection that was probed and not used breaks off here.
            if !e.is_io() {
                record.stray(e.to_string());
            }
            return;
        }
    };
    let has_reset = Arc::new(AtomicBool::new(false));
    while let Some(accepted) = connection.accept().await {
        match accepted {
            Ok((request, respond)) => {
                let (record, has_reset) = (record.clone(), Arc::clone(&has_reset));
                tokio::spawn(async move { stream(request, respond, record, &has_reset).await });
            }
            Err(e) => {
                // What is on its way to a stream that this server has reset ends its connection now and then (one run of
                // thirty, side by side): the server's own doing, of which the client's requests have to be unharmed.
                let own = has_reset.load(Ordering::Relaxed) && e.reason() == Some(Reason::PROTOCOL_ERROR);
                if !(own || e.is_io() || e.is_go_away() && e.is_remote()) {
                    record.stray(e.to_string());
                }
                return;
            }
        }
    }
}

async fn stream(
    request: http::Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    record: Record,
    has_reset: &AtomicBool,
) {
    let (parts, mut body) = request.into_parts();
    let target = parts
        .uri
        .path_and_query()
        .map_or("*", |pq| pq.as_str())
        .to_owned();
    let length = parts.headers.get("content-length");
    let length = length.and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    let script = Script::of(&target);
    let index = record.begin(Request {
        method: parts.method.to_string(),
        target,
        fields: fields(&parts.headers),
        framing: match length {
            Some(length) => Framing::Length(length),
            None if body.is_end_stream() => Framing::None,
            None => Framing::Open,
        },
        body: Vec::new(),
        trailers: Vec::new(),
        end: End::Open,
    });
    if matches!(script, Script::HangUp | Script::Reset | Script::EarlyGone) {
        record.change(index, |r| r.end = End::Cut);
        has_reset.store(true, Ordering::Relaxed);
    }
    let answered = match &script {
        Script::HangUp => return respond.send_reset(Reason::REFUSED_STREAM),
        Script::Reset => return respond.send_reset(Reason::INTERNAL_ERROR),
        Script::Early | Script::EarlyClose => answer(&mut respond, &record, 200, "early"),
        // RFC 9113 8.1: dropped before its end, a request whose answer is whole is reset with NO_ERROR.
        Script::EarlyGone => return answer(&mut respond, &record, 200, "early").unwrap_or(()),
        Script::Refuse => answer(&mut respond, &record, 417, "no"),
        Script::Interim(codes) => {
            for code in codes {
                let link = format!("</{code}>");
                let interim = Response::builder().status(*code).header("link", link);
                let _ = respond.send_informational(interim.body(()).expect("a head"));
            }
            Ok(())
        }
        Script::After => Ok(()),
    };
    let read = read(&mut body, &record, index).await;
    record.change(index, |r| {
        r.end = if read.is_ok() { End::Whole } else { End::Cut };
    });
    if read.is_err() || answered.is_err() {
        return;
    }
    if matches!(script, Script::After | Script::Interim(_)) {
        tokio::time::sleep(SLOW).await;
        let len = record.with(|c| c.requests[index].body.len());
        // The client may have left.
        let _ = answer(&mut respond, &record, 200, &format!("got {len}"));
    }
}

fn answer(
    respond: &mut SendResponse<Bytes>,
    record: &Record,
    status: u16,
    body: &str,
) -> Result<(), h2::Error> {
    let mut head = Response::builder()
        .status(status)
        .header("content-length", body.len());
    for (name, value) in record.extra.iter() {
        head = head.header(name, value);
    }
    let mut send = respond.send_response(head.body(()).expect("a head"), false)?;
    send.send_data(Bytes::from(body.to_owned()), true)
}

async fn read(body: &mut RecvStream, record: &Record, index: usize) -> Result<(), h2::Error> {
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        record.change(index, |r| r.body.extend_from_slice(&data));
    }
    if let Some(trailers) = body.trailers().await? {
        record.change(index, |r| r.trailers = fields(&trailers));
    }
    Ok(())
}

fn fields(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |v: &http::HeaderValue| String::from_utf8_lossy(v.as_bytes()).into_owned();
    headers.iter().map(|(n, v)| (n.to_string(), text(v))).collect()
}
