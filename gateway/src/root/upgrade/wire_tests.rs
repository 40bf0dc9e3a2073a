use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream as StdStream;

use super::*;

fn pair() -> (Channel, Channel) {
    let (a, b) = StdStream::pair().unwrap();
    (Channel::new(a).unwrap(), Channel::new(b).unwrap())
}

fn name(kind: SocketKind) -> SocketName {
    SocketName {
        kind,
        address: "127.0.0.1:0".parse().unwrap(),
    }
}

#[tokio::test]
async fn every_frame_arrives_as_it_was_sent_and_then_the_end() {
    let (a, mut b) = pair();
    let frames = [
        Frame::Hello(Hello {
            version: VERSION,
            build: "1.2.3".to_owned(),
            pid: 7,
            sockets: 2,
        }),
        Frame::Sockets(vec![
            name(SocketKind::Listener),
            SocketName {
                kind: SocketKind::Admin,
                address: AdminAddress::Unix("/run/a.sock".into()),
            },
        ]),
        Frame::Welcome(Welcome {
            version: 9,
            build: String::new(),
        }),
        Frame::Prepared,
        Frame::Failed("a port is taken".to_owned()),
        Frame::Scaling(Bytes::from(vec![0xff; 3 << 20])),
        Frame::Take,
        Frame::Serving,
        Frame::Released,
    ];
    let said = frames.clone();
    let writing = tokio::spawn(async move {
        for frame in &said {
            a.send(frame, Vec::new()).await.unwrap();
        }
        a.flush().await;
    });
    for frame in &frames {
        let message = b.recv().await.unwrap();
        assert_eq!(&message.frame, frame);
        assert!(message.descriptors.is_empty());
    }
    writing.await.unwrap();
    assert!(matches!(b.recv().await, Err(WireError::Closed)));
}

#[tokio::test]
async fn descriptors_come_with_their_frame() {
    let (a, mut b) = pair();
    let listeners: Vec<TcpListener> = (0..MAX_DESCRIPTORS + 1)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    let addresses: Vec<_> = listeners.iter().map(|l| l.local_addr().unwrap()).collect();
    let mut descriptors: Vec<OwnedFd> = listeners.into_iter().map(OwnedFd::from).collect();
    let last = descriptors.pop().unwrap();
    let names = vec![name(SocketKind::Listener); MAX_DESCRIPTORS];
    let many = Frame::Scaling(Bytes::from(vec![1; 300_000]));
    let say = async {
        // Large frames without descriptors before and between: they must not take others' descriptors.
        a.send(&many, Vec::new()).await.unwrap();
        a.send(&Frame::Sockets(names.clone()), descriptors).await.unwrap();
        a.send(&many, vec![last]).await.unwrap();
        a.send(&Frame::Take, Vec::new()).await.unwrap();
    };
    let hear = async {
        assert!(b.recv().await.unwrap().descriptors.is_empty());
        let sockets = b.recv().await.unwrap().descriptors;
        let one = b.recv().await.unwrap().descriptors;
        assert!(b.recv().await.unwrap().descriptors.is_empty());
        sockets
            .into_iter()
            .chain(one)
            .map(TcpListener::from)
            .collect::<Vec<_>>()
    };
    let ((), inherited) = tokio::join!(say, hear);
    let found: Vec<_> = inherited.iter().map(|l| l.local_addr().unwrap()).collect();
    assert_eq!(found, addresses);
    // And they are those sockets, not only of their names.
    let mut client = TcpStream::connect(addresses[MAX_DESCRIPTORS]).unwrap();
    let (mut server, _) = inherited[MAX_DESCRIPTORS].accept().unwrap();
    client.write_all(b"x").unwrap();
    server.read_exact(&mut [0]).unwrap();
}

#[tokio::test]
async fn nonsense_is_an_error_and_not_an_allocation() {
    let hear = async |bytes: &[u8]| {
        let (mut a, b) = StdStream::pair().unwrap();
        let mut b = Channel::new(b).unwrap();
        a.write_all(bytes).unwrap();
        drop(a);
        b.recv().await.unwrap_err()
    };
    assert!(matches!(hear(b"").await, WireError::Closed));
    assert!(matches!(hear(&[0, 0, 0]).await, WireError::Cut));
    assert!(matches!(hear(&[0, 0, 0, 9, 1, 0, b'{']).await, WireError::Cut));
    assert!(matches!(hear(&[0xff; 6]).await, WireError::TooLong(_)));
    assert!(matches!(
        hear(&[0, 0, 0, 0, 99, 0]).await,
        WireError::Unknown { kind: 99 }
    ));
    assert!(matches!(
        hear(&[0, 0, 0, 0, 7, 1]).await,
        WireError::Descriptors {
            announced: 1,
            came: 0
        }
    ));
    let told = hear(&[0, 0, 0, 2, 1, 0, b'{', b'}']).await.to_string();
    assert!(told.contains("Hello") && told.contains("version"), "{told}");
}

#[tokio::test]
async fn what_is_too_much_is_not_sent() {
    let (a, _b) = pair();
    let socket = || OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap());
    let many = (0..=MAX_DESCRIPTORS).map(|_| socket()).collect();
    assert!(matches!(
        a.send(&Frame::Take, many).await,
        Err(WireError::Descriptors { .. })
    ));
    let long = Frame::Scaling(Bytes::from(vec![0; MAX_BODY + 1]));
    assert!(matches!(
        a.send(&long, Vec::new()).await,
        Err(WireError::TooLong(_))
    ));
}

/// A newer binary's `Hello` may have further fields; this binary needs only the version.
#[test]
fn a_greeting_from_another_version_is_read() {
    let body = Bytes::from_static(br#"{"version": 7, "colour": "green"}"#);
    let Frame::Hello(hello) = Frame::decode(1, body.clone()).unwrap() else {
        panic!()
    };
    assert_eq!((hello.version, hello.sockets), (7, 0));
    let Frame::Welcome(welcome) = Frame::decode(3, body).unwrap() else {
        panic!()
    };
    assert_eq!(welcome.version, 7);
}
