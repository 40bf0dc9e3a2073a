//! Best-effort parse of a rejected request head, for the log alone.

use super::syntax::is_token_byte;

/// The longest word that is taken for a method, in bytes.
const MAX_METHOD: usize = 32;

/// The longest value that is kept of any other part, in bytes.
const MAX_VALUE: usize = 1024;

/// Parts of a rejected head, as they were sent; parts that cannot be recognised are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RejectedHead {
    /// The first word, if it may be a method.
    pub method: Vec<u8>,
    /// The second word of the request line.
    pub target: Vec<u8>,
    /// The first Host field.
    pub host: Vec<u8>,
    /// The first User-Agent field.
    pub user_agent: Option<Vec<u8>>,
}

impl RejectedHead {
    /// Parses as much of a head as was received.
    pub fn of(head: &[u8]) -> Self {
        let head = head.trim_ascii_start();
        let mut lines = head.split(|&b| b == b'\n');
        let mut words = lines.next().unwrap_or_default().splitn(3, |&b| b == b' ');
        let method = words.next().unwrap_or_default();
        if method.is_empty() || method.len() > MAX_METHOD || !method.iter().all(|&b| is_token_byte(b)) {
            return Self::default();
        }
        let mut rejected = Self {
            method: method.to_vec(),
            target: value(words.next().unwrap_or_default()),
            ..Self::default()
        };
        for line in lines {
            let Some(colon) = line.iter().position(|&b| b == b':') else {
                continue;
            };
            let (name, rest) = (line[..colon].trim_ascii(), &line[colon + 1..]);
            if name.eq_ignore_ascii_case(b"host") && rejected.host.is_empty() {
                rejected.host = value(rest);
            } else if name.eq_ignore_ascii_case(b"user-agent") && rejected.user_agent.is_none() {
                rejected.user_agent = Some(value(rest));
            }
        }
        rejected
    }
}

fn value(bytes: &[u8]) -> Vec<u8> {
    let bytes = bytes.trim_ascii();
    bytes[..bytes.len().min(MAX_VALUE)].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(head: &[u8]) -> (String, String, String) {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let RejectedHead {
            method, target, host, ..
        } = RejectedHead::of(head);
        (text(method), text(target), text(host))
    }

    #[test]
    fn whatever_is_there_is_told() {
        let of = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
        let smuggled = b"POST /x?t=1 HTTP/1.1\r\nHost : a.example\r\nHOST: b.example\r\n\r\n";
        assert_eq!(told(smuggled), of("POST", "/x?t=1", "a.example"));
        assert_eq!(told(b"\r\nGET /half"), of("GET", "/half", ""));
        assert_eq!(told(b"GET"), of("GET", "", ""));
        assert_eq!(
            told(b"GET / HTTP/1.1\nHost: lf.example\n"),
            of("GET", "/", "lf.example")
        );
        for noise in [&b""[..], b"\x16\x03\x01\x02\x00\x01", b"\r\n\r\n", &[b'a'; 4096]] {
            assert_eq!(told(noise), of("", "", ""), "{noise:?}");
        }
        let long = [b"GET /".as_slice(), &[b'x'; 9000], b" HTTP/1.1\r\n"].concat();
        assert_eq!(told(&long).1.len(), MAX_VALUE);
        let agent = RejectedHead::of(b"GET / HTTP/1.1\r\nUser-Agent: me\r\n").user_agent;
        assert_eq!(agent.as_deref(), Some(&b"me"[..]));
    }
}
