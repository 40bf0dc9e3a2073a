//! Messages between replicas: JSON with its length before it, as a 32-bit number in network byte order.
//!
//! Replicas of different versions meet during a rolling update. Fields and kinds of messages that are not known are
//! ignored, fields that are missing have defaults; a version that has to know more looks at the other's `version`.

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::source::cluster::acks::Served;

/// The version of the messages.
pub(super) const VERSION: u32 = 1;

/// The longest message, in bytes.
const MAX_LENGTH: usize = 256 * 1024;

/// Acknowledgements in one message: an uid, 36 bytes as a rule, may have 128.
pub(super) const MAX_ACKS: usize = 1_000;

/// A message.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub(super) enum Message {
    /// The first message of a replica.
    Hello {
        #[serde(default)]
        version: u32,
        /// The name of the Pod.
        replica: String,
        /// The number of the recipe of the hashes.
        #[serde(default)]
        recipe: u32,
    },
    /// The leader's answer.
    Welcome {
        #[serde(default)]
        version: u32,
        leader: String,
    },
    /// The answer of a replica that does not lead, which closes.
    Refused {
        /// Who leads, if it is known.
        #[serde(default)]
        leader: Option<String>,
    },
    /// What a replica serves now, and the uids of what it does not serve any more.
    Served {
        #[serde(default)]
        acks: Vec<Ack>,
        #[serde(default)]
        gone: Vec<String>,
    },
    /// The first message of a replica that shares slots with this one. After it and its answer the connection has frames of
    /// bytes, which are the data plane's.
    Meet {
        #[serde(default)]
        version: u32,
        /// The name of the Pod.
        replica: String,
        /// The number of the process, in 16 hexadecimal digits.
        incarnation: String,
    },
    /// The answer to it.
    Met {
        #[serde(default)]
        version: u32,
        replica: String,
        incarnation: String,
    },
    /// Keep-alive, sent by both sides.
    Ping,
    /// A message of a later version.
    #[serde(other)]
    Unknown,
}

/// An acknowledgement.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ack {
    uid: String,
    generation: i64,
    /// 16 hexadecimal digits: a number of 64 bits is none of JSON's for everybody.
    hash: String,
}

impl From<Served> for Ack {
    fn from(served: Served) -> Self {
        Self {
            uid: served.uid.to_string(),
            generation: served.generation,
            hash: format!("{:016x}", served.hash),
        }
    }
}

impl TryFrom<Ack> for Served {
    type Error = io::Error;

    fn try_from(ack: Ack) -> Result<Self, io::Error> {
        Ok(Self {
            uid: Arc::from(ack.uid),
            generation: ack.generation,
            hash: number(&ack.hash)?,
        })
    }
}

/// A number of 64 bits, from hexadecimal digits.
///
/// # Errors
/// It is none.
pub(super) fn number(digits: &str) -> io::Result<u64> {
    u64::from_str_radix(digits, 16).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// Reads a message, whose buffer is used again. A dropped future loses what it has read: the connection is at its end.
///
/// # Errors
/// The connection ends, or what comes is no message.
pub(super) async fn read(from: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> io::Result<Message> {
    let length = usize::try_from(from.read_u32().await?).unwrap_or(usize::MAX);
    if length > MAX_LENGTH {
        let message = format!("a message of {length} bytes, more than {MAX_LENGTH}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    buffer.clear();
    buffer.resize(length, 0);
    from.read_exact(buffer).await?;
    Ok(serde_json::from_slice(buffer)?)
}

/// Writes a message.
///
/// # Errors
/// The connection ends.
pub(super) async fn write(to: &mut (impl AsyncWrite + Unpin), message: &Message) -> io::Result<()> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = u32::try_from(frame.len() - 4).unwrap_or(u32::MAX);
    if let Some(head) = frame.first_chunk_mut() {
        *head = length.to_be_bytes();
    }
    to.write_all(&frame).await?;
    to.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read_text(json: &str) -> io::Result<Message> {
        let mut frame = u32::try_from(json.len()).unwrap().to_be_bytes().to_vec();
        frame.extend_from_slice(json.as_bytes());
        read(&mut frame.as_slice(), &mut Vec::new()).await
    }

    #[tokio::test]
    async fn messages_arrive_as_they_were_sent() {
        let served = Served {
            uid: "u-1".into(),
            generation: 7,
            hash: u64::MAX - 1,
        };
        let all = [
            Message::Hello {
                version: VERSION,
                replica: "a".into(),
                recipe: 1,
            },
            Message::Served {
                acks: vec![served.clone().into()],
                gone: vec!["u-0".into()],
            },
            Message::Refused { leader: None },
            Message::Meet {
                version: VERSION,
                replica: "a".into(),
                incarnation: "00000000000000ff".into(),
            },
            Message::Met {
                version: VERSION,
                replica: "b".into(),
                incarnation: "ffffffffffffffff".into(),
            },
            Message::Ping,
        ];
        let mut stream = Vec::new();
        for message in &all {
            write(&mut stream, message).await.unwrap();
        }
        let (mut stream, mut buffer) = (stream.as_slice(), Vec::new());
        for message in all {
            assert_eq!(read(&mut stream, &mut buffer).await.unwrap(), message);
        }
        assert_eq!(Served::try_from(Ack::from(served.clone())).unwrap(), served);
    }

    #[tokio::test]
    async fn later_and_earlier_versions_are_understood() {
        let later = r#"{"kind":"hello","version":9,"replica":"a","recipe":3,"colour":{"r":1}}"#;
        assert!(matches!(
            read_text(later).await.unwrap(),
            Message::Hello { recipe: 3, .. }
        ));
        let unknown = r#"{"kind":"lease","slots":[1,2,3]}"#;
        assert_eq!(read_text(unknown).await.unwrap(), Message::Unknown);
        let earlier = r#"{"kind":"served","acks":[]}"#;
        assert!(matches!(
            read_text(earlier).await.unwrap(),
            Message::Served { .. }
        ));
    }

    #[tokio::test]
    async fn what_is_no_message_is_an_error_and_is_not_kept() {
        for json in ["", "{", "[]", r#"{"kind":"hello"}"#, r#"{"acks":[]}"#] {
            read_text(json).await.expect_err(json);
        }
        let mut buffer = Vec::new();
        let endless: &[u8] = &[0xff; 4096];
        read(&mut &*endless, &mut buffer).await.expect_err("too long");
        assert!(buffer.capacity() == 0);
        let bad = Ack {
            uid: "u".into(),
            generation: 1,
            hash: "xyz".into(),
        };
        Served::try_from(bad).expect_err("no hash");
    }

    #[test]
    fn a_message_of_the_most_acknowledgements_is_short_enough() {
        let acks = (0..MAX_ACKS).map(|_| Ack {
            uid: "u".repeat(128),
            generation: i64::MAX,
            hash: "f".repeat(16),
        });
        let message = Message::Served {
            acks: acks.collect(),
            gone: vec![],
        };
        assert!(serde_json::to_vec(&message).unwrap().len() <= MAX_LENGTH);
    }
}
