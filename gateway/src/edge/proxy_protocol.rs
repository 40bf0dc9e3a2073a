//! PROXY protocol parser, versions 1 and 2: pure, over a connection's first bytes.
//!
//! **Invariant:** the result for some bytes holds for any longer input that starts with them, except
//! [`Header::NeedMore`]; so it does not matter how the network cut them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const V1_START: &[u8] = b"PROXY ";
/// The specification's bound for a whole v1 line with its CRLF.
const V1_MAX: usize = 107;
const V2_START: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_FIXED: usize = 16;
/// Limit of a v2 header after its fixed part, in bytes. The format allows 64 KiB; load balancers send a few
/// hundred.
const V2_MAX: usize = 4096;
const TLV_CRC32C: u8 = 0x03;

/// The two ends of the connection that a load balancer took over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxyAddresses {
    /// The client.
    pub source: SocketAddr,
    /// The address the client connected to.
    pub destination: SocketAddr,
}

/// The parse result of a connection's first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// A whole header of `used` bytes; the bytes behind it are the client's.
    Parsed {
        /// `None` for LOCAL, UNKNOWN and families without ports: the socket's own addresses count.
        addresses: Option<ProxyAddresses>,
        /// The header's length in bytes.
        used: usize,
    },
    /// The bytes may become a header.
    NeedMore,
    /// The bytes are no header.
    Absent,
    /// The bytes begin as a header does and are malformed.
    Bad(BadHeader),
}

/// Why a header is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadHeader {
    /// A v1 line without an end, or a v2 length over the bound.
    TooLong,
    /// A v1 line that is not as specified.
    Line,
    /// Neither version 2 nor a known command.
    Version,
    /// An unknown address family or transport.
    Family,
    /// Shorter than its family's addresses.
    Truncated,
    /// An extension that runs over the header's end.
    Extension,
    /// The checksum is wrong.
    Checksum,
}

impl fmt::Display for BadHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLong => "too long",
            Self::Line => "malformed line",
            Self::Version => "unknown version or command",
            Self::Family => "unknown address family or transport",
            Self::Truncated => "shorter than its addresses",
            Self::Extension => "an extension runs over the end",
            Self::Checksum => "wrong checksum",
        })
    }
}

/// Parses the first bytes of a connection.
pub fn parse(bytes: &[u8]) -> Header {
    if let Some(done) = signature(bytes, V1_START) {
        return if done { v1(bytes) } else { Header::NeedMore };
    }
    match signature(bytes, V2_START) {
        Some(true) => v2(bytes).unwrap_or_else(Header::Bad),
        Some(false) => Header::NeedMore,
        None => Header::Absent,
    }
}

/// Whether a header's signature is complete (`true`) or a prefix so far (`false`); `None` when the bytes
/// differ.
fn signature(bytes: &[u8], start: &[u8]) -> Option<bool> {
    let n = bytes.len().min(start.len());
    (bytes[..n] == start[..n]).then_some(n == start.len())
}

fn v1(bytes: &[u8]) -> Header {
    let window = &bytes[..bytes.len().min(V1_MAX)];
    match window.windows(2).position(|pair| pair == b"\r\n") {
        Some(end) => match line(&window[V1_START.len()..end]) {
            Some(addresses) => Header::Parsed {
                addresses,
                used: end + 2,
            },
            None => Header::Bad(BadHeader::Line),
        },
        None if window.len() == V1_MAX => Header::Bad(BadHeader::TooLong),
        None => Header::NeedMore,
    }
}

/// Parses a v1 line after `PROXY `. The outer `None` is malformed, the inner one UNKNOWN.
fn line(rest: &[u8]) -> Option<Option<ProxyAddresses>> {
    if rest == b"UNKNOWN" || rest.starts_with(b"UNKNOWN ") {
        // The specification has the rest of an UNKNOWN line ignored.
        return Some(None);
    }
    let rest = std::str::from_utf8(rest).ok()?;
    let mut words = rest.split(' ');
    let family = words.next()?;
    let mut ip = || -> Option<IpAddr> {
        let word = words.next()?;
        match family {
            "TCP4" => word.parse().ok().map(IpAddr::V4),
            "TCP6" => word.parse().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    let (source, destination) = (ip()?, ip()?);
    let (from, to) = (port(words.next()?)?, port(words.next()?)?);
    words.next().is_none().then(|| {
        Some(ProxyAddresses {
            source: SocketAddr::new(source, from),
            destination: SocketAddr::new(destination, to),
        })
    })
}

/// Parses a port of digits only: `u16::from_str` would accept a sign.
fn port(word: &str) -> Option<u16> {
    let plain = word.len() <= 5 && word.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| word.parse().ok()).flatten()
}

fn v2(bytes: &[u8]) -> Result<Header, BadHeader> {
    // Each byte is checked as soon as it arrives, so that garbage is not waited for.
    let Some(&version_command) = bytes.get(12) else {
        return Ok(Header::NeedMore);
    };
    let local = match version_command {
        0x20 => true,
        0x21 => false,
        _ => return Err(BadHeader::Version),
    };
    let Some(&family) = bytes.get(13) else {
        return Ok(Header::NeedMore);
    };
    let (address_len, transport) = match family >> 4 {
        // The specification has the family of LOCAL ignored.
        _ if local => (0, 0),
        0 => (0, family & 0x0f),
        1 => (12, family & 0x0f),
        2 => (36, family & 0x0f),
        3 => (216, family & 0x0f),
        _ => return Err(BadHeader::Family),
    };
    if transport > 2 {
        return Err(BadHeader::Family);
    }
    let Some(length) = bytes.get(14..V2_FIXED) else {
        return Ok(Header::NeedMore);
    };
    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
    if length > V2_MAX {
        return Err(BadHeader::TooLong);
    }
    if length < address_len {
        return Err(BadHeader::Truncated);
    }
    let used = V2_FIXED + length;
    let Some(header) = bytes.get(..used) else {
        return Ok(Header::NeedMore);
    };
    // The specification has the whole block of LOCAL skipped.
    let addresses = if local {
        None
    } else {
        extensions(header, V2_FIXED + address_len)?;
        tcp_addresses(family, &header[V2_FIXED..])
    };
    Ok(Header::Parsed { addresses, used })
}

/// The addresses of TCP over IPv4 and IPv6; `None` for datagrams and Unix sockets, which are no client of
/// ours.
fn tcp_addresses(family: u8, block: &[u8]) -> Option<ProxyAddresses> {
    let port = |at: usize| u16::from_be_bytes([block[at], block[at + 1]]);
    let v4 = |at: usize| <[u8; 4]>::try_from(&block[at..at + 4]).ok().map(Ipv4Addr::from);
    let v6 = |at: usize| <[u8; 16]>::try_from(&block[at..at + 16]).ok().map(Ipv6Addr::from);
    match family {
        0x11 => Some(ProxyAddresses {
            source: SocketAddr::new(v4(0)?.into(), port(8)),
            destination: SocketAddr::new(v4(4)?.into(), port(10)),
        }),
        0x21 => Some(ProxyAddresses {
            source: SocketAddr::new(v6(0)?.into(), port(32)),
            destination: SocketAddr::new(v6(16)?.into(), port(34)),
        }),
        _ => None,
    }
}

/// Checks the extensions (TLVs) from `at` on: their lengths, and the value of the checksum.
fn extensions(header: &[u8], mut at: usize) -> Result<(), BadHeader> {
    while at < header.len() {
        let Some(&[kind, high, low]) = header.get(at..at + 3) else {
            return Err(BadHeader::Extension);
        };
        let value = at + 3;
        at = value + usize::from(u16::from_be_bytes([high, low]));
        let Some(found) = header.get(value..at) else {
            return Err(BadHeader::Extension);
        };
        if kind == TLV_CRC32C {
            let Ok(found) = <[u8; 4]>::try_from(found) else {
                return Err(BadHeader::Extension);
            };
            // The checksum is computed over the whole header with its own bytes as zero.
            let mut crc = Crc32c::default();
            crc.update(&header[..value]);
            crc.update(&[0; 4]);
            crc.update(&header[at..]);
            if crc.value() != u32::from_be_bytes(found) {
                return Err(BadHeader::Checksum);
            }
        }
    }
    Ok(())
}

/// CRC-32C (Castagnoli), one table lookup per byte: at most 4 KiB, once per connection.
struct Crc32c(u32);

impl Default for Crc32c {
    fn default() -> Self {
        Self(!0)
    }
}

impl Crc32c {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut i = 0;
        while i < 256 {
            let mut crc = i as u32;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 1 == 1 {
                    (crc >> 1) ^ 0x82f6_3b78
                } else {
                    crc >> 1
                };
                bit += 1;
            }
            table[i] = crc;
            i += 1;
        }
        table
    };

    fn update(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 >> 8) ^ Self::TABLE[((self.0 ^ u32::from(*byte)) & 0xff) as usize];
        }
    }

    fn value(&self) -> u32 {
        !self.0
    }
}

#[cfg(test)]
#[path = "proxy_protocol_tests.rs"]
mod tests;
