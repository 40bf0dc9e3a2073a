use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::traces::TraceEnvironment;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

async fn listener(variables: &[(&str, &str)]) -> (TcpListener, Collector) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/otlp", listener.local_addr().unwrap());
    let read = TraceEnvironment::read(|name| match name {
        "OTEL_EXPORTER_OTLP_ENDPOINT" => Some(url.clone()),
        name => variables
            .iter()
            .find(|(n, _)| *n == name)
            .map(|&(_, v)| v.to_owned()),
    });
    (listener, Collector::new(&read.settings.unwrap()))
}

/// Reads one request on a connection, and writes a response.
async fn answer(stream: &mut TcpStream, response: &str) -> (String, Vec<u8>) {
    let mut all = Vec::new();
    loop {
        assert!(stream.read_buf(&mut all).await.unwrap() > 0, "{all:?}");
        let Some(end) = all.windows(4).position(|w| w == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8(all[..end].to_vec()).unwrap();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        if all.len() == end + 4 + length.unwrap().parse::<usize>().unwrap() {
            stream.write_all(response.as_bytes()).await.unwrap();
            return (head, all.split_off(end + 4));
        }
    }
}

#[tokio::test]
async fn posts_share_a_connection_and_a_closed_one_is_replaced() {
    let headers = (
        "OTEL_EXPORTER_OTLP_HEADERS",
        "api-key=s3cret,content-type=text/plain",
    );
    let (listener, mut collector) = listener(&[headers]).await;
    let client = async {
        for body in ["one", "two", "three"] {
            let partial = collector.post(Bytes::from_static(body.as_bytes())).await.unwrap();
            assert_eq!(partial, PartialSuccess::default());
        }
    };
    let server = async {
        let (mut first, _) = listener.accept().await.unwrap();
        let (head, body) = answer(&mut first, OK).await;
        assert_eq!(body, b"one");
        assert!(head.starts_with("POST /otlp/v1/traces HTTP/1.1\r\n"), "{head}");
        for field in [
            "content-type: application/x-protobuf",
            "api-key: s3cret",
            "host: 127.0.0.1:",
        ] {
            assert!(head.contains(field), "{head}");
        }
        assert!(
            !head.contains("text/plain") && !head.contains("content-encoding"),
            "{head}"
        );
        let last = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        assert_eq!(answer(&mut first, last).await.1, b"two");
        let (mut second, _) = listener.accept().await.unwrap();
        assert_eq!(answer(&mut second, OK).await.1, b"three");
    };
    tokio::join!(client, server);
}

#[tokio::test]
async fn refusals_say_whether_and_when_to_try_again() {
    let (listener, mut collector) = listener(&[]).await;
    for (response, retry, after, why) in [
        (
            "HTTP/1.1 503 Busy\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n",
            true,
            Some(7),
            "503",
        ),
        (
            "HTTP/1.1 429 Slow\r\ncontent-length: 4\r\n\r\nslow",
            true,
            None,
            "429",
        ),
        (
            "HTTP/1.1 400 Bad\r\ncontent-length: 0\r\n\r\n",
            false,
            None,
            "400",
        ),
        (
            "HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n",
            false,
            None,
            "302",
        ),
        ("SSH-2.0-OpenSSH\r\n", true, None, ""),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 70000\r\n\r\n",
            false,
            None,
            "unreadable",
        ),
    ] {
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            answer(&mut stream, response).await;
            if response.contains("70000") {
                let _ = stream.write_all(&[0; 70_000]).await;
            }
        };
        let (posted, ()) = tokio::join!(collector.post(Bytes::from_static(b"x")), server);
        let failure = posted.unwrap_err();
        assert_eq!(
            (failure.retry, failure.after),
            (retry, after.map(Duration::from_secs)),
            "{response}"
        );
        assert!(failure.why.contains(why), "{}", failure.why);
    }
    drop(listener);
    let failure = collector.post(Bytes::new()).await.unwrap_err();
    assert!(
        failure.retry && failure.why.starts_with("cannot connect"),
        "{failure:?}"
    );
}

#[tokio::test]
async fn bodies_are_compressed_where_that_is_asked_for() {
    let (listener, mut collector) = listener(&[("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")]).await;
    let body = b"spans ".repeat(100);
    let sent = collector.encoded(body.clone());
    assert!(sent.len() < 100);
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        answer(&mut stream, OK).await
    };
    let (posted, (head, got)) = tokio::join!(collector.post(sent), server);
    posted.unwrap();
    assert!(head.contains("content-encoding: gzip"), "{head}");
    // As gzip(1) reads it, which checks length and checksum.
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, &got).unwrap();
    let read = std::process::Command::new("gzip")
        .args(["-dc"])
        .stdin(file.reopen().unwrap())
        .output()
        .unwrap();
    assert_eq!(read.stdout, body);
}
