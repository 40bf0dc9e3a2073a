use proptest::prelude::*;

use super::*;

fn parsed(source: &str, destination: &str, used: usize) -> Header {
    Header::Parsed {
        addresses: Some(ProxyAddresses {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        }),
        used,
    }
}

fn unknown(used: usize) -> Header {
    Header::Parsed {
        addresses: None,
        used,
    }
}

/// A v2 header with this command, family byte and block.
fn v2_bytes(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let mut bytes = V2_START.to_vec();
    bytes.extend([0x20 | command, family]);
    bytes.extend((block.len() as u16).to_be_bytes());
    bytes.extend(block);
    bytes
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend((value.len() as u16).to_be_bytes());
    bytes.extend(value);
    bytes
}

const V4_BLOCK: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 2, 0xd4, 0x31, 0x01, 0xbb];

fn v6_block() -> Vec<u8> {
    let mut block = Vec::new();
    block.extend("2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
    block.extend("2001:db8::2".parse::<Ipv6Addr>().unwrap().octets());
    block.extend([0xd4, 0x31, 0x01, 0xbb]);
    block
}

/// A v2 header over IPv4 whose last extension is a right checksum.
fn checksummed() -> Vec<u8> {
    let mut block = V4_BLOCK.to_vec();
    block.extend(tlv(0xea, b"vpce-1"));
    block.extend(tlv(TLV_CRC32C, &[0; 4]));
    let mut bytes = v2_bytes(1, 0x11, &block);
    let mut crc = Crc32c::default();
    crc.update(&bytes);
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&crc.value().to_be_bytes());
    bytes
}

#[test]
fn crc32c_of_the_standard_check_string() {
    let mut crc = Crc32c::default();
    crc.update(b"123456789");
    assert_eq!(crc.value(), 0xe306_9283);
}

#[test]
fn v1_lines() {
    let longest = b"PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff \
        ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
    assert_eq!(longest.len(), V1_MAX);
    let cases: &[(&[u8], Header)] = &[
        (
            b"PROXY TCP4 192.0.2.1 198.51.100.2 54321 443\r\nGET /",
            parsed("192.0.2.1:54321", "198.51.100.2:443", 45),
        ),
        (
            b"PROXY TCP6 2001:db8::1 ::2 1 65535\r\n",
            parsed("[2001:db8::1]:1", "[::2]:65535", 36),
        ),
        (b"PROXY UNKNOWN\r\n", unknown(15)),
        (b"PROXY UNKNOWN what ever  \xc3\xa4 1\r\n\r\n", unknown(31)),
        (b"PROXY UNKNOWN \xff\xfe\r\n", unknown(18)),
        (longest, unknown(107)),
        (b"", Header::NeedMore),
        (b"P", Header::NeedMore),
        (b"PROXY ", Header::NeedMore),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r", Header::NeedMore),
        (b"POST / HTTP/1.1\r\n", Header::Absent),
        (b"PRI * HTTP/2.0\r\n", Header::Absent),
        (b"\x16\x03\x01", Header::Absent),
        (b"PROXYTCP4", Header::Absent),
    ];
    for (bytes, expected) in cases {
        assert_eq!(parse(bytes), *expected, "{:?}", bytes.escape_ascii().to_string());
    }
}

#[test]
fn malformed_v1_lines() {
    for line in [
        "TCP4 1.2.3.4 1.2.3.4 1",
        "TCP4 1.2.3.4 1.2.3.4 1 2 3",
        "TCP4 1.2.3.4 1.2.3.4 1 2 ",
        "TCP4  1.2.3.4 1.2.3.4 1 2",
        "TCP4 1.2.3.4 1.2.3.4 +1 2",
        "TCP4 1.2.3.4 1.2.3.4 1 65536",
        "TCP4 1.2.3.4 1.2.3.4 1 ",
        "TCP4 ::1 ::2 1 2",
        "TCP6 1.2.3.4 1.2.3.4 1 2",
        "TCP4 1.2.3.04 1.2.3.4 1 2",
        "UDP4 1.2.3.4 1.2.3.4 1 2",
        "unknown",
        "UNKNOWNX",
        "",
        " TCP4 1.2.3.4 1.2.3.4 1 2",
        "TCP4 1.2.3.4 1.2.3.4 1 2\n",
    ] {
        let bytes = format!("PROXY {line}\r\n");
        assert_eq!(parse(bytes.as_bytes()), Header::Bad(BadHeader::Line), "{bytes:?}");
    }
    let endless = [b"PROXY ".as_slice(), &[b'1'; 200]].concat();
    assert_eq!(parse(&endless), Header::Bad(BadHeader::TooLong));
    assert_eq!(parse(&endless[..V1_MAX - 1]), Header::NeedMore);
}

#[test]
fn v2_addresses() {
    let v4 = parsed("192.0.2.1:54321", "198.51.100.2:443", 28);
    assert_eq!(parse(&v2_bytes(1, 0x11, &V4_BLOCK)), v4);
    let v6 = parsed("[2001:db8::1]:54321", "[2001:db8::2]:443", 52);
    assert_eq!(parse(&v2_bytes(1, 0x21, &v6_block())), v6);
    assert_eq!(parse(&v2_bytes(0, 0x00, &[])), unknown(16), "LOCAL");
    assert_eq!(
        parse(&v2_bytes(0, 0x11, &[1, 2, 3])),
        unknown(19),
        "LOCAL, block skipped"
    );
    assert_eq!(
        parse(&v2_bytes(0, 0x9f, &[1, 2, 3])),
        unknown(19),
        "LOCAL, family skipped"
    );
    assert_eq!(parse(&v2_bytes(1, 0x00, &[])), unknown(16), "UNSPEC");
    assert_eq!(parse(&v2_bytes(1, 0x12, &V4_BLOCK)), unknown(28), "datagram");
    assert_eq!(parse(&v2_bytes(1, 0x31, &[b'/'; 216])), unknown(232), "unix");
}

#[test]
fn v2_extensions_and_checksum() {
    let mut block = V4_BLOCK.to_vec();
    block.extend(tlv(0x01, b"h2"));
    block.extend(tlv(0x04, &[0; 9]));
    assert_eq!(
        parse(&v2_bytes(1, 0x11, &block)),
        parsed("192.0.2.1:54321", "198.51.100.2:443", 16 + block.len())
    );
    let good = checksummed();
    assert_eq!(
        parse(&good),
        parsed("192.0.2.1:54321", "198.51.100.2:443", good.len())
    );
    for at in [17, 30, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        assert!(matches!(parse(&bad), Header::Bad(_)), "flipped byte {at}");
    }
    let mut address = good;
    address[17] ^= 1;
    assert_eq!(parse(&address), Header::Bad(BadHeader::Checksum));
}

#[test]
fn malformed_v2_headers() {
    let case = |bytes: Vec<u8>, why| assert_eq!(parse(&bytes), Header::Bad(why), "{bytes:?}");
    case(v2_bytes(2, 0x11, &V4_BLOCK), BadHeader::Version);
    case([V2_START.as_slice(), &[0x11]].concat(), BadHeader::Version);
    case(v2_bytes(1, 0x41, &V4_BLOCK), BadHeader::Family);
    case(v2_bytes(1, 0x13, &V4_BLOCK), BadHeader::Family);
    case(v2_bytes(1, 0x11, &V4_BLOCK[..11]), BadHeader::Truncated);
    case(v2_bytes(1, 0x21, &V4_BLOCK), BadHeader::Truncated);
    case(v2_bytes(1, 0x31, &V4_BLOCK), BadHeader::Truncated);
    case(
        [V2_START.as_slice(), &[0x21, 0x11, 0x10, 0x01]].concat(),
        BadHeader::TooLong,
    );
    let with = |extension: &[u8]| v2_bytes(1, 0x11, &[&V4_BLOCK, extension].concat());
    case(with(&[1]), BadHeader::Extension);
    case(with(&[1, 0, 2, 0]), BadHeader::Extension);
    case(with(&tlv(TLV_CRC32C, &[0; 3])), BadHeader::Extension);
    case(with(&tlv(TLV_CRC32C, &[0; 4])), BadHeader::Checksum);
}

/// Headers of every kind, with random damage.
fn input() -> impl Strategy<Value = Vec<u8>> {
    let block = prop::collection::vec(any::<u8>(), 0..300);
    let v2 = (0_u8..3, any::<u8>(), block.clone()).prop_map(|(c, f, b)| v2_bytes(c, f, &b));
    let v2_sound = (prop::sample::select(vec![0x11_u8, 0x21, 0x31]), block)
        .prop_map(|(f, tail)| v2_bytes(1, f, &[v6_block(), vec![0; 180], tlv(9, &tail)].concat()));
    let v1 = (any::<Ipv4Addr>(), any::<Ipv4Addr>(), any::<u16>(), any::<u16>())
        .prop_map(|(s, d, sp, dp)| format!("PROXY TCP4 {s} {d} {sp} {dp}\r\n").into_bytes());
    let v1_text = "PROXY [ -~\r\n]{0,130}".prop_map(String::into_bytes);
    let noise = prop::collection::vec(any::<u8>(), 0..40);
    let whole = prop_oneof![v2, v2_sound, v1, v1_text, noise, Just(checksummed())];
    let damage = prop::option::of((any::<prop::sample::Index>(), any::<u8>()));
    (whole, damage).prop_map(|(mut bytes, damage)| {
        if let (Some((at, value)), false) = (damage, bytes.is_empty()) {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes
    })
}

proptest! {
    /// Feeding any prefix first never changes the answer, and a header is never longer than what was given.
    #[test]
    fn splits_do_not_matter(head in input(), tail in prop::collection::vec(any::<u8>(), 0..64)) {
        let bytes = [head, tail].concat();
        let whole = parse(&bytes);
        let mut first = None;
        for n in 0..=bytes.len() {
            let answer = parse(&bytes[..n]);
            match first {
                None if answer == Header::NeedMore => {}
                None => {
                    if let Header::Parsed { used, .. } = answer {
                        prop_assert_eq!(used, n, "known at its last byte, not before nor after");
                    }
                    first = Some(answer);
                }
                Some(first) => prop_assert_eq!(answer, first),
            }
        }
        prop_assert_eq!(first.unwrap_or(Header::NeedMore), whole);
    }

    /// Lines written from addresses read back as the addresses.
    #[test]
    fn v1_round_trip(s in any::<Ipv6Addr>(), d in any::<Ipv6Addr>(), sp in any::<u16>(), dp in any::<u16>()) {
        let line = format!("PROXY TCP6 {s} {d} {sp} {dp}\r\n");
        let addresses = Some(ProxyAddresses {
            source: SocketAddr::new(s.into(), sp),
            destination: SocketAddr::new(d.into(), dp),
        });
        prop_assert_eq!(parse(line.as_bytes()), Header::Parsed { addresses, used: line.len() });
    }
}
