//! Why there is no next request, in words for a person and for the contract.

use std::io;

use thiserror::Error;

use crate::http1::HeadFault;
use crate::observe::Reason;

/// The contract's reason.
fn reason_of(fault: &HeadFault) -> Reason {
    match fault {
        HeadFault::HeadTooLarge { .. } | HeadFault::TooManyFields { .. } => Reason::HeadersTooLarge,
        HeadFault::UriTooLong { .. } => Reason::UriTooLong,
        _ => Reason::BadRequest,
    }
}

/// The status to answer with, closing the connection.
fn status_of(fault: &HeadFault) -> u16 {
    match fault {
        HeadFault::HeadTooLarge { .. } | HeadFault::TooManyFields { .. } => 431,
        HeadFault::UriTooLong { .. } => 414,
        HeadFault::ConnectRefused => 405,
        _ => 400,
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
            Self::Fault(fault) => reason_of(fault),
            Self::BodyTooLarge { .. } => Reason::BodyTooLarge,
            Self::Timeout => Reason::RequestTimeout,
            Self::ClientGone | Self::Io(_) => Reason::ClientGone,
        }
    }

    /// The status to answer with; `None` when nobody is there to answer to.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Fault(fault) => Some(status_of(fault)),
            Self::BodyTooLarge { .. } => Some(413),
            Self::Timeout => Some(408),
            Self::ClientGone | Self::Io(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_carry_the_contracts_reason_and_status() {
        let of = |fault: HeadFault| (reason_of(&fault), status_of(&fault));
        assert_eq!(of(HeadFault::ContentLengthRepeated), (Reason::BadRequest, 400));
        assert_eq!(of(HeadFault::UnsupportedVersion), (Reason::BadRequest, 400));
        assert_eq!(of(HeadFault::ConnectRefused), (Reason::BadRequest, 405));
        assert_eq!(
            of(HeadFault::TooManyFields { limit: 1 }),
            (Reason::HeadersTooLarge, 431)
        );
        assert_eq!(
            of(HeadFault::HeadTooLarge { limit: 1 }),
            (Reason::HeadersTooLarge, 431)
        );
        assert_eq!(of(HeadFault::UriTooLong { limit: 1 }), (Reason::UriTooLong, 414));
    }
}
