//! Faults of heads, with messages for people.

use sluice_model::NameError;
use thiserror::Error;

/// Why a line of a request or response head is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FieldFault {
    /// The head does not end with an empty line.
    #[error("the head is not complete")]
    Incomplete,
    /// A LF that no CR precedes.
    #[error("a line ends with LF alone")]
    BareLf,
    /// A CR that no LF follows.
    #[error("a CR without LF")]
    BareCr,
    /// A field line that begins with a space or tab.
    #[error("a field is folded over two lines")]
    Folding,
    /// A field line without a colon.
    #[error("a field line has no colon")]
    NoColon,
    /// Whitespace between a field's name and its colon.
    #[error("whitespace before a field's colon")]
    SpaceBeforeColon,
    /// A field line that begins with its colon.
    #[error("a field has no name")]
    EmptyName,
    /// A byte in a field's name that no token has.
    #[error("a field name has the byte {0:#04x}")]
    BadNameByte(u8),
    /// A control byte in a field's value.
    #[error("a field value has the byte {0:#04x}")]
    BadValueByte(u8),
}

/// Why a request head is rejected. The message says what is wrong and goes into the response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HeadFault {
    /// A line or field is malformed.
    #[error(transparent)]
    Field(#[from] FieldFault),
    /// More bytes than [`HeadLimits::max_bytes`](super::HeadLimits::max_bytes).
    #[error("the request head is longer than {limit} bytes")]
    HeadTooLarge {
        /// The limit.
        limit: usize,
    },
    /// More fields than [`HeadLimits::max_headers`](super::HeadLimits::max_headers).
    #[error("the request head has more than {limit} fields")]
    TooManyFields {
        /// The limit.
        limit: usize,
    },
    /// A target longer than [`HeadLimits::max_uri_bytes`](super::HeadLimits::max_uri_bytes).
    #[error("the request target is longer than {limit} bytes")]
    UriTooLong {
        /// The limit.
        limit: usize,
    },
    /// More empty lines before the request line than clients send by accident.
    #[error("too many empty lines before the request line")]
    EmptyLines,
    /// The method is empty or has a byte that no token has.
    #[error("the method is not a token")]
    BadMethod,
    /// CONNECT, a request for a tunnel; rejected with 405.
    #[error("CONNECT is not served")]
    ConnectRefused,
    /// A request line without a version.
    #[error("the request line has no HTTP version (HTTP/0.9 is not served)")]
    Http09,
    /// HTTP/2 where only HTTP/1 is served.
    #[error("HTTP/2 is not served on this connection")]
    Http2Preface,
    /// A version other than 1.0 and 1.1.
    #[error("the HTTP version is not supported (1.0 and 1.1 are)")]
    UnsupportedVersion,
    /// The request line's last word is no HTTP version.
    #[error("the request line does not end with an HTTP version")]
    BadVersion,
    /// A byte that is not allowed in a target: space, control, non-ASCII, or a bare `<` and its like.
    #[error("the request target has the byte {0:#04x}")]
    BadTargetByte(u8),
    /// A `#` in the target.
    #[error("the request target has a fragment")]
    Fragment,
    /// Neither a path, nor an http or https URL, nor `*` for OPTIONS.
    #[error("the request target is neither a path nor an http URL")]
    BadTargetForm,
    /// `user@` in the target's authority.
    #[error("the request target has user information")]
    Userinfo,
    /// HTTP/1.1 without Host.
    #[error("the Host field is missing")]
    HostMissing,
    /// More than one Host field.
    #[error("two Host fields")]
    HostRepeated,
    /// A Host field or authority that is not a valid host.
    #[error("the host is not valid: {0}")]
    HostInvalid(#[source] NameError),
    /// An absolute-form target whose host differs from the Host field.
    #[error("Host differs from the request target's authority")]
    HostMismatch,
    /// More than one Content-Length field, equal or not.
    #[error("two Content-Length fields")]
    ContentLengthRepeated,
    /// A Content-Length with a comma.
    #[error("Content-Length is a list")]
    ContentLengthList,
    /// A Content-Length that is not a number of decimal digits, or overflows 64 bits.
    #[error("Content-Length is not a number")]
    ContentLengthMalformed,
    /// Content-Length together with Transfer-Encoding.
    #[error("Content-Length together with Transfer-Encoding")]
    ContentLengthWithTransferEncoding,
    /// Transfer-Encoding in HTTP/1.0, which does not know it.
    #[error("Transfer-Encoding in an HTTP/1.0 request")]
    TransferEncodingIn10,
    /// A Transfer-Encoding that does not end in chunked: the body's end is unknown.
    #[error("Transfer-Encoding does not end in chunked")]
    NotChunkedLast,
    /// chunked more than once.
    #[error("Transfer-Encoding names chunked twice")]
    ChunkedTwice,
    /// Another coding beside chunked, or an empty list element.
    #[error("Transfer-Encoding names a coding other than chunked")]
    UnknownCoding,
}

/// Why a backend's response head is rejected: nothing of it reaches the client, and the connection is closed.
/// The message is for the log and the error detail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ResponseFault {
    /// A line or field is malformed.
    #[error(transparent)]
    Field(#[from] FieldFault),
    /// More bytes than [`ResponseLimits::max_bytes`](super::ResponseLimits::max_bytes).
    #[error("the response head is longer than {limit} bytes")]
    HeadTooLarge {
        /// The limit.
        limit: usize,
    },
    /// More fields than [`ResponseLimits::max_fields`](super::ResponseLimits::max_fields).
    #[error("the response head has more than {limit} fields")]
    TooManyFields {
        /// The limit.
        limit: usize,
    },
    /// The first line is not a status line of HTTP/1.
    #[error("the response does not begin with HTTP/1.1 or HTTP/1.0")]
    NotHttp1,
    /// The status is not a number of three digits from 100 on.
    #[error("the status is not a number of three digits from 100 on")]
    BadStatus,
    /// A control byte in the reason phrase.
    #[error("the reason phrase has the byte {0:#04x}")]
    BadPhraseByte(u8),
    /// Content-Length fields that differ.
    #[error("two Content-Length fields that differ")]
    ContentLengthDiffers,
    /// A Content-Length with a comma.
    #[error("Content-Length is a list")]
    ContentLengthList,
    /// A Content-Length that is not a number of decimal digits, or overflows 64 bits.
    #[error("Content-Length is not a number")]
    ContentLengthMalformed,
    /// Content-Length together with Transfer-Encoding.
    #[error("Content-Length together with Transfer-Encoding")]
    ContentLengthWithTransferEncoding,
    /// Transfer-Encoding in HTTP/1.0, which does not know it.
    #[error("Transfer-Encoding in an HTTP/1.0 response")]
    TransferEncodingIn10,
    /// A Transfer-Encoding other than `chunked`, once.
    #[error("Transfer-Encoding is not chunked alone")]
    NotChunkedAlone,
    /// An interim response that announces a body: whether one follows is unknown.
    #[error("an interim response announces a body")]
    InterimWithBody,
}
