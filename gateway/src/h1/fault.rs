//! What is wrong with a head, in words for a person and for the contract.

use std::io;

use sluice_model::NameError;
use thiserror::Error;

use crate::observe::Reason;
use crate::request::TargetFault;

/// Why a head is refused. The text says what exactly is wrong and goes into the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HeadFault {
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
    /// The head does not end with an empty line.
    #[error("the request head is not complete")]
    Incomplete,
    /// More empty lines before the request line than anybody sends by accident.
    #[error("too many empty lines before the request line")]
    EmptyLines,
    /// A LF that no CR precedes.
    #[error("a line ends with LF alone")]
    BareLf,
    /// A CR that no LF follows.
    #[error("a CR without LF")]
    BareCr,
    /// The method is empty or has a byte that no token has.
    #[error("the method is not a token")]
    BadMethod,
    /// A tunnel is asked for; answered 405.
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
    /// A byte that no target may have: space, control, non-ASCII, or a bare `<` and its like.
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
    /// HTTP/1.1 without Host.
    #[error("the Host field is missing")]
    HostMissing,
    /// More than one Host field.
    #[error("two Host fields")]
    HostRepeated,
    /// A Host field or authority that is no host.
    #[error("the host is not valid: {0}")]
    HostInvalid(#[source] NameError),
    /// An absolute-form target of another host than Host's.
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

impl From<TargetFault> for HeadFault {
    fn from(fault: TargetFault) -> Self {
        match fault {
            TargetFault::Empty => Self::BadTargetForm,
            TargetFault::Byte(byte) => Self::BadTargetByte(byte),
            TargetFault::Fragment => Self::Fragment,
        }
    }
}

impl HeadFault {
    /// The contract's reason.
    pub fn reason(&self) -> Reason {
        match self {
            Self::HeadTooLarge { .. } | Self::TooManyFields { .. } => Reason::HeadersTooLarge,
            Self::UriTooLong { .. } => Reason::UriTooLong,
            _ => Reason::BadRequest,
        }
    }

    /// The status to answer with, closing the connection.
    pub fn status(&self) -> u16 {
        match self {
            Self::HeadTooLarge { .. } | Self::TooManyFields { .. } => 431,
            Self::UriTooLong { .. } => 414,
            Self::ConnectRefused => 405,
            _ => 400,
        }
    }
}

/// Why a connection has no next request. It ends here in every case.
#[derive(Debug, Error)]
pub enum HeadError {
    /// The head is refused; answer and close.
    #[error(transparent)]
    Fault(#[from] HeadFault),
    /// The announced body is longer than the limit; answer 413 and close.
    #[error("the request body of {length} bytes is longer than {limit} bytes")]
    BodyTooLarge {
        /// What Content-Length says.
        length: u64,
        /// The limit.
        limit: u64,
    },
    /// The head was not complete in time; answer 408 and close.
    #[error("the request head did not come in time")]
    Timeout,
    /// The client left in the middle of a head; nobody is there to answer to.
    #[error("the client left in the middle of a request head")]
    ClientGone,
    /// The connection broke in the middle of a head.
    #[error("the connection broke in a request head: {0}")]
    Io(#[source] io::Error),
}

impl HeadError {
    /// The contract's reason.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Fault(fault) => fault.reason(),
            Self::BodyTooLarge { .. } => Reason::BodyTooLarge,
            Self::Timeout => Reason::RequestTimeout,
            Self::ClientGone | Self::Io(_) => Reason::ClientGone,
        }
    }

    /// The status to answer with; `None` when nobody is there to answer to.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Fault(fault) => Some(fault.status()),
            Self::BodyTooLarge { .. } => Some(413),
            Self::Timeout => Some(408),
            Self::ClientGone | Self::Io(_) => None,
        }
    }
}
