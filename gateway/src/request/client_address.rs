//! The address of the client behind trusted proxies.

use std::net::{IpAddr, SocketAddr};

use super::headers::Fields;

/// The address of the client: the connection's, or what trusted proxies say in `X-Forwarded-For`. Read from the right:
/// each proxy appends the address that it saw, so the first address that is no trusted proxy's is the last one that
/// nobody but a trusted proxy can have written. An entry that is no address ends the search.
pub fn client_behind_proxies(head: &impl Fields, peer: IpAddr, trusts: impl Fn(IpAddr) -> bool) -> IpAddr {
    let mut client = peer;
    if !trusts(client) {
        return client;
    }
    let mut chain: Vec<&[u8]> = Vec::new();
    head.each(|name, value| {
        if name.eq_ignore_ascii_case(b"x-forwarded-for") {
            chain.push(value);
        }
    });
    let entries = chain.iter().rev().flat_map(|value| value.rsplit(|&b| b == b','));
    for entry in entries {
        let Some(address) = address(entry.trim_ascii()) else {
            return client;
        };
        client = address;
        if !trusts(client) {
            return client;
        }
    }
    client
}

/// An address, with or without a port.
fn address(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?;
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let address = bare.unwrap_or(text).parse::<IpAddr>().ok();
    let address = address.or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()));
    address.map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Head(&'static [&'static str]);

    impl Fields for Head {
        fn each<'h>(&'h self, mut each: impl FnMut(&'h [u8], &'h [u8])) {
            for value in self.0 {
                each(b"X-Forwarded-For", value.as_bytes());
            }
        }

        fn first(&self, _: &str) -> Option<&[u8]> {
            None
        }
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        let trusts = |address: IpAddr| matches!(address, IpAddr::V4(v4) if v4.octets()[0] == 10);
        let of = |text: &str| text.parse::<IpAddr>().expect("an address");
        for (peer, chain, client) in [
            ("192.0.2.1", &["10.0.0.1"][..], "192.0.2.1"),
            ("10.0.0.1", &["198.51.100.7"], "198.51.100.7"),
            ("10.0.0.1", &["198.51.100.7, 203.0.113.9"], "203.0.113.9"),
            (
                "10.0.0.1",
                &["198.51.100.7", "203.0.113.9, 10.0.0.2"],
                "203.0.113.9",
            ),
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            ("10.0.0.1", &["198.51.100.7, unknown, 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &["198.51.100.7:4711"], "198.51.100.7"),
            ("10.0.0.1", &["[2001:db8::1]:80"], "2001:db8::1"),
            ("10.0.0.1", &["[2001:db8::1]"], "2001:db8::1"),
            ("10.0.0.1", &["::ffff:198.51.100.7"], "198.51.100.7"),
            ("10.0.0.1", &[""], "10.0.0.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
        ] {
            assert_eq!(
                client_behind_proxies(&Head(chain), of(peer), trusts),
                of(client),
                "{chain:?}"
            );
        }
    }
}
