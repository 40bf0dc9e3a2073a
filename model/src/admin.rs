//! Settings of the admin listener: its address, and who may change something by it.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// The settings of the admin listener. The address is fixed at the start of the process; hosts and token follow a
/// reload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminSettings {
    /// Where it listens.
    pub address: AdminAddress,
    /// Names in `Host`, besides IP literals and `localhost`: lower case, without port and closing dot.
    pub hosts: Vec<String>,
    /// The token that every change needs; `None`: changes are accepted on loopback and Unix sockets alone.
    pub token: Option<Secret>,
}

impl AdminSettings {
    /// An address, without further hosts and without a token.
    pub fn at(address: impl Into<AdminAddress>) -> Self {
        Self {
            address: address.into(),
            hosts: Vec::new(),
            token: None,
        }
    }
}

/// The address of an admin server, configured or bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminAddress {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix socket, which only the gateway's user may connect to.
    Unix(PathBuf),
}

/// The longest path of a Unix socket, in bytes: `sun_path` less the closing NUL.
pub const MAX_SOCKET_PATH: usize = 107;

impl From<SocketAddr> for AdminAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for AdminAddress {
    type Err = String;

    /// Parses `127.0.0.1:9900` or `unix:/run/admin.sock`; a relative path stays relative.
    ///
    /// # Errors
    /// What to write, to follow "… is not an address: ".
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() || path.contains('\0') {
                return Err("the socket's path is missing; write unix:/run/sluice/admin.sock".to_owned());
            }
            if path.len() > MAX_SOCKET_PATH {
                return Err(format!(
                    "the path of a Unix socket has at most {MAX_SOCKET_PATH} bytes"
                ));
            }
            return Ok(Self::Unix(path.into()));
        }
        text.parse()
            .map(Self::Tcp)
            .map_err(|_| "write 127.0.0.1:9900, [::1]:9900 or unix:/run/sluice/admin.sock".to_owned())
    }
}

/// A secret text: shown as `***` wherever it is formatted.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// A secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for a comparison in constant time. Must not be logged.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_back_as_they_are_shown() {
        for text in [
            "127.0.0.1:9900",
            "[::1]:0",
            "unix:/run/sluice/admin.sock",
            "unix:a.sock",
        ] {
            assert_eq!(text.parse::<AdminAddress>().unwrap().to_string(), text);
        }
        let long = format!("unix:/{}", "x".repeat(MAX_SOCKET_PATH));
        for text in ["", "localhost:1", "unix:", "unix:a\0b", &long, "127.0.0.1"] {
            assert!(text.parse::<AdminAddress>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_secret_is_never_shown() {
        let settings = AdminSettings {
            token: Some(Secret::new("hunter2")),
            ..AdminSettings::at(SocketAddr::from(([127, 0, 0, 1], 0)))
        };
        let shown = format!("{settings:?} {}", settings.token.as_ref().unwrap());
        assert!(!shown.contains("hunter2") && shown.contains("***"), "{shown}");
    }
}
