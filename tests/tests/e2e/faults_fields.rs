//! Every registered field passes unchanged, in requests and responses, between every pair of protocols
//! (RFC 9110 5.1 and 7.6: what a proxy does not know it forwards).

use bytes::Bytes;
use sluice_tests::gateway::Gateway;
use sluice_tests::h1;
use sluice_tests::h2_client::{self, H2};
use sluice_tests::wait::{SOON, within};
use sluice_tests::wire::{Protocol, WireBackend};

use crate::{WEB, web_with};

/// IANA's registry of HTTP field names, `*` left out.
const NAMES: &str = "A-IM Accept Accept-Additions Accept-CH Accept-Charset Accept-Datetime Accept-Encoding \
    Accept-Features Accept-Language Accept-Patch Accept-Post Accept-Query Accept-Ranges Accept-Signature \
    Access-Control Access-Control-Allow-Credentials Access-Control-Allow-Headers Access-Control-Allow-Methods \
    Access-Control-Allow-Origin Access-Control-Expose-Headers Access-Control-Max-Age \
    Access-Control-Request-Headers Access-Control-Request-Method Activate-Storage-Access Age Allow ALPN Alt-Svc \
    Alt-Used Alternates AMP-Cache-Transform Apply-To-Redirect-Ref Authentication-Control Authentication-Info \
    Authorization Available-Dictionary C-Ext C-Man C-Opt C-PEP C-PEP-Info Cache-Control \
    Cache-Group-Invalidation Cache-Groups Cache-Status Cal-Managed-ID CalDAV-Timezones Capsule-Protocol \
    CDN-Cache-Control CDN-Loop Cert-Not-After Cert-Not-Before Clear-Site-Data Client-Cert Client-Cert-Chain \
    Close CMCD-Object CMCD-Request CMCD-Session CMCD-Status CMSD-Dynamic CMSD-Static Concealed-Auth-Export \
    Configuration-Context Connection Content-Base Content-Digest Content-Disposition Content-Encoding Content-ID \
    Content-Language Content-Length Content-Location Content-MD5 Content-Range Content-Script-Type \
    Content-Security-Policy Content-Security-Policy-Report-Only Content-Style-Type Content-Type Content-Version \
    Cookie Cookie2 Cross-Origin-Embedder-Policy Cross-Origin-Embedder-Policy-Report-Only \
    Cross-Origin-Opener-Policy Cross-Origin-Opener-Policy-Report-Only Cross-Origin-Resource-Policy \
    CTA-Common-Access-Token DASL Date DAV Default-Style Delta-Base Deprecation Depth Derived-From Destination \
    Detached-JWS Dictionary-ID Differential-ID Digest DPoP DPoP-Nonce Early-Data EDIINT-Features ETag Expect \
    Expect-CT Expires Ext Forwarded From GetProfile Hobareg Host HTTP2-Settings If If-Match If-Modified-Since \
    If-None-Match If-Range If-Schedule-Tag-Match If-Unmodified-Since IM Include-Referred-Token-Binding-ID \
    Incremental Isolation Keep-Alive Label Last-Event-ID Last-Modified Link Link-Template Location Lock-Token Man \
    Max-Forwards Memento-Datetime Meter Method-Check Method-Check-Expires MIME-Version Negotiate NEL \
    OData-EntityId OData-Isolation OData-MaxVersion OData-Version Opt Optional-WWW-Authenticate Ordering-Type \
    Origin Origin-Agent-Cluster OSCORE OSLC-Core-Version Overwrite P3P PEP PEP-Info Permissions-Policy PICS-Label \
    Ping-From Ping-To Position Pragma Prefer Preference-Applied Priority ProfileObject Protocol Protocol-Info \
    Protocol-Query Protocol-Request Proxy-Authenticate Proxy-Authentication-Info Proxy-Authorization \
    Proxy-Features Proxy-Instruction Proxy-Status Public Public-Key-Pins Public-Key-Pins-Report-Only Range \
    Redirect-Ref Referer Referer-Root Referrer-Policy Refresh Repeatability-Client-ID Repeatability-First-Sent \
    Repeatability-Request-ID Repeatability-Result Replay-Nonce Reporting-Endpoints Repr-Digest Retry-After Safe \
    Schedule-Reply Schedule-Tag Sec-Fetch-Dest Sec-Fetch-Mode Sec-Fetch-Site Sec-Fetch-Storage-Access \
    Sec-Fetch-User Sec-GPC Sec-Purpose Sec-Token-Binding Sec-WebSocket-Accept Sec-WebSocket-Extensions \
    Sec-WebSocket-Key Sec-WebSocket-Protocol Sec-WebSocket-Version Security-Scheme Server Server-Timing \
    Set-Cookie Set-Cookie2 SetProfile Signature Signature-Input SLUG SoapAction Status-URI \
    Strict-Transport-Security Sunset Surrogate-Capability Surrogate-Control TCN TE Timeout Timing-Allow-Origin \
    Topic Traceparent Tracestate Trailer Transfer-Encoding TTL Unencoded-Digest Upgrade Urgency URI \
    Use-As-Dictionary User-Agent Variant-Vary Vary Via Want-Content-Digest Want-Digest Want-Repr-Digest Warning \
    WWW-Authenticate X-Content-Type-Options X-Frame-Options";

/// Fields that the gateway drops in either direction, with the reason.
const ENDS_HERE: &[(&str, &str)] = &[
    ("Connection", "RFC 9110 7.6.1"),
    ("Keep-Alive", "RFC 9110 7.6.1: of one connection"),
    ("TE", "RFC 9110 7.6.1: of one connection"),
    (
        "Transfer-Encoding",
        "RFC 9112 6.1: of one connection; framing has its own tests",
    ),
    (
        "Upgrade",
        "RFC 9110 7.8: of one connection; upgrades have their own tests",
    ),
    ("HTTP2-Settings", "RFC 7540 3.2.1: of one connection"),
    ("Content-Length", "framing has its own tests"),
    (
        "Trailer",
        "names the trailers of a message, of which some may be dropped",
    ),
    ("Proxy-Authenticate", "RFC 9110 11.7.1: of the next proxy"),
    ("Proxy-Authentication-Info", "RFC 9110 11.7.3: of the next proxy"),
    ("Proxy-Authorization", "RFC 9110 11.7.2: of the next proxy"),
];

/// Request fields that the gateway consumes or sets.
const ENDS_HERE_OF_REQUESTS: &[(&str, &str)] = &[
    ("Host", "routing has its own tests"),
    (
        "Expect",
        "RFC 9110 10.1.1: acted upon; interim answers have their own tests",
    ),
    ("Forwarded", "a stranger's is dropped, as X-Forwarded-* is"),
];

/// Fields of one message: well below every limit on their number.
const BATCH: usize = 60;

/// Each name with a unique, meaningless value.
fn batches(without: &[&[(&str, &str)]]) -> Vec<Vec<(String, String)>> {
    let excluded = |name: &&str| {
        without
            .iter()
            .any(|list| list.iter().any(|(other, _)| other == name))
    };
    let names: Vec<&str> = NAMES.split_whitespace().filter(|name| !excluded(name)).collect();
    let valued = |name: &&str| {
        let value = match *name {
            // RFC 9110 6.6.1: an invalid Date may be replaced.
            "Date" => "Mon, 01 Jan 2001 00:00:00 GMT".to_owned(),
            name => format!("\"{name}\"; a=1, b"),
        };
        ((*name).to_owned(), value)
    };
    names
        .chunks(BATCH)
        .map(|batch| batch.iter().map(valued).collect())
        .collect()
}

/// An answer's fields, with names as they came.
async fn exchange(
    gateway: &Gateway,
    down: Protocol,
    target: &str,
    fields: &[(String, String)],
) -> Vec<(String, String)> {
    match down {
        Protocol::Http1 => {
            let fields: Vec<_> = fields.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            let request = h1::request("GET", WEB, target, &fields, b"");
            let response = within("an answer", SOON, gateway.send(&request)).await;
            assert_eq!(response.status, 200, "{}", response.text());
            response.headers
        }
        Protocol::Http2 => {
            let mut request = h2_client::get("http", WEB, target);
            for (name, value) in fields {
                let name: http::HeaderName = name.parse().expect("a name");
                request
                    .headers_mut()
                    .append(name, value.parse().expect("a value"));
            }
            let client = H2::connect(gateway.addr()).await;
            let answered = within("an answer", SOON, client.exchange(request, Bytes::new())).await;
            let response = answered.expect("an answer");
            assert_eq!(response.status, 200, "{}", response.text());
            let text = |v: &http::HeaderValue| v.to_str().expect("text").to_owned();
            response
                .headers
                .iter()
                .map(|(n, v)| (n.to_string(), text(v)))
                .collect()
        }
    }
}

/// The fields that did not arrive as they were sent. From HTTP/1 to HTTP/1 the case of names is kept, too.
fn changed(sent: &[(String, String)], came: &[(String, String)], spelling: bool) -> Vec<String> {
    let mut changed = Vec::new();
    for (name, value) in sent {
        let found: Vec<_> = came
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            .collect();
        let fine = matches!(&found[..], [(n, v)] if v == value && (!spelling || n == name));
        if !fine {
            changed.push(format!("{name}: {value:?} became {found:?}"));
        }
    }
    changed
}

fn assert_nothing(changed: &[String]) {
    assert!(changed.is_empty(), "\n  {}", changed.join("\n  "));
}

async fn requests(down: Protocol, up: Protocol) {
    let backend = WireBackend::start(up).await;
    let gateway = Gateway::start(&web_with(backend.addr(), &format!("protocol: {}", up.key()))).await;
    let mut all = Vec::new();
    for (nth, sent) in batches(&[ENDS_HERE, ENDS_HERE_OF_REQUESTS]).iter().enumerate() {
        let target = format!("/after?batch={nth}");
        exchange(&gateway, down, &target, sent).await;
        let came = backend.requests(&target).remove(0);
        all.extend(changed(
            sent,
            &came.fields,
            (down, up) == (Protocol::Http1, Protocol::Http1),
        ));
    }
    assert_nothing(&all);
}

async fn responses(down: Protocol, up: Protocol) {
    let mut all = Vec::new();
    for sent in batches(&[ENDS_HERE]) {
        let backend = WireBackend::answering(up, sent.clone()).await;
        let gateway = Gateway::start(&web_with(backend.addr(), &format!("protocol: {}", up.key()))).await;
        let came = exchange(&gateway, down, "/after", &[]).await;
        all.extend(changed(
            &sent,
            &came,
            (down, up) == (Protocol::Http1, Protocol::Http1),
        ));
    }
    assert_nothing(&all);
}

/// RFC 9110 6.6.1: Date is the origin's; a recipient with a clock adds one where there is none.
async fn dates(down: Protocol, up: Protocol) {
    let old = [("Date", "Mon, 01 Jan 2001 00:00:00 GMT"), ("Age", "5")];
    let old: Vec<_> = old
        .iter()
        .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
        .collect();
    let dates = |came: Vec<(String, String)>| -> Vec<String> {
        let dates = came.into_iter().filter(|(n, _)| n.eq_ignore_ascii_case("date"));
        dates.map(|(_, v)| v).collect()
    };
    for extra in [old.clone(), Vec::new()] {
        let backend = WireBackend::answering(up, extra.clone()).await;
        let gateway = Gateway::start(&web_with(backend.addr(), &format!("protocol: {}", up.key()))).await;
        let came = dates(exchange(&gateway, down, "/after", &[]).await);
        match (&came[..], extra.is_empty()) {
            ([date], false) => assert_eq!(date, &old[0].1),
            ([date], true) => assert!(date.ends_with(" GMT") && date.len() == 29, "{date}"),
            _ => panic!("not one Date: {came:?}"),
        }
    }
}

#[tokio::test]
async fn every_request_field_passes_h1_to_h1() {
    requests(Protocol::Http1, Protocol::Http1).await;
}
#[tokio::test]
async fn every_request_field_passes_h1_to_h2() {
    requests(Protocol::Http1, Protocol::Http2).await;
}
#[tokio::test]
async fn every_request_field_passes_h2_to_h1() {
    requests(Protocol::Http2, Protocol::Http1).await;
}
#[tokio::test]
async fn every_request_field_passes_h2_to_h2() {
    requests(Protocol::Http2, Protocol::Http2).await;
}
#[tokio::test]
async fn every_response_field_passes_h1_to_h1() {
    responses(Protocol::Http1, Protocol::Http1).await;
}
#[tokio::test]
async fn every_response_field_passes_h1_to_h2() {
    responses(Protocol::Http1, Protocol::Http2).await;
}
#[tokio::test]
async fn every_response_field_passes_h2_to_h1() {
    responses(Protocol::Http2, Protocol::Http1).await;
}
#[tokio::test]
async fn every_response_field_passes_h2_to_h2() {
    responses(Protocol::Http2, Protocol::Http2).await;
}
#[tokio::test]
async fn the_date_is_the_backends_h1_to_h1() {
    dates(Protocol::Http1, Protocol::Http1).await;
}
#[tokio::test]
async fn the_date_is_the_backends_h1_to_h2() {
    dates(Protocol::Http1, Protocol::Http2).await;
}
#[tokio::test]
async fn the_date_is_the_backends_h2_to_h1() {
    dates(Protocol::Http2, Protocol::Http1).await;
}
#[tokio::test]
async fn the_date_is_the_backends_h2_to_h2() {
    dates(Protocol::Http2, Protocol::Http2).await;
}
