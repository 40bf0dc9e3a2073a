//! TCP backends scripted byte by byte, for output that no HTTP server would produce.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// A running scripted backend; dropping it closes everything.
#[derive(Debug)]
pub struct RawBackend {
    addr: SocketAddr,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl RawBackend {
    /// Runs `script` for every connection, with its number from 0.
    ///
    /// # Panics
    /// When nothing can be bound.
    pub async fn start<F, Fut>(script: F) -> Self
    where
        F: Fn(usize, TcpStream) -> Fut + Send + 'static,
        Fut: Future<Output = io::Result<()>> + Send + 'static,
    {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let addr = listener.local_addr().expect("a bound socket");
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            let mut running = JoinSet::new();
            while let Ok((io, _)) = listener.accept().await {
                // A socket that is gone already is no reason to stop.
                let _ = io.set_nodelay(true);
                running.spawn(script(counter.fetch_add(1, Ordering::SeqCst), io));
                while running.try_join_next().is_some() {}
            }
        });
        Self {
            addr,
            connections,
            task,
        }
    }

    /// Accepts and never sends a byte.
    pub async fn silent() -> Self {
        Self::start(async |_, mut io: TcpStream| drain(&mut io).await.map(drop)).await
    }

    /// Accepts and closes at once.
    pub async fn hangs_up() -> Self {
        Self::start(async |_, _| Ok(())).await
    }

    /// Answers one request per connection with these bytes and then closes, without `Connection: close`.
    pub async fn answers_once(response: &'static [u8]) -> Self {
        Self::start(async move |_, mut io: TcpStream| {
            read_head(&mut io).await?;
            io.write_all(response).await
        })
        .await
    }

    /// Answers every request with these bytes, and keeps the connection.
    pub async fn answers(response: &'static [u8]) -> Self {
        Self::start(async move |_, mut io: TcpStream| {
            loop {
                read_head(&mut io).await?;
                io.write_all(response).await?;
            }
        })
        .await
    }

    /// Sends these bytes after the request's head, then a reset.
    pub async fn answers_then_resets(response: &'static [u8]) -> Self {
        Self::start(async move |_, mut io: TcpStream| {
            read_head(&mut io).await?;
            io.write_all(response).await?;
            io.set_zero_linger()
        })
        .await
    }

    /// Records everything that arrives, and answers every head with an empty 200.
    pub async fn recording() -> (Self, Arc<Mutex<Vec<u8>>>) {
        let record = Arc::new(Mutex::new(Vec::new()));
        let recorded = Arc::clone(&record);
        let backend = Self::start(move |_, mut io: TcpStream| {
            let record = Arc::clone(&record);
            async move {
                let mut chunk = [0u8; 4096];
                loop {
                    let read = io.read(&mut chunk).await?;
                    if read == 0 {
                        return Ok(());
                    }
                    record
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .extend_from_slice(&chunk[..read]);
                    if chunk[..read].windows(4).any(|w| w == b"\r\n\r\n") {
                        io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                            .await?;
                    }
                }
            }
        })
        .await;
        (backend, recorded)
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for RawBackend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads a request's head; returns the head and the bytes after it that came with the same read.
///
/// # Errors
/// An end of file before the head's end.
pub async fn read_head(io: &mut TcpStream) -> io::Result<(String, Vec<u8>)> {
    let mut buf = Vec::new();
    loop {
        if let Some(at) = buf.windows(4).position(|w| w == b"\r\n\r\n") {
            let rest = buf.split_off(at + 4);
            return Ok((String::from_utf8_lossy(&buf).into_owned(), rest));
        }
        if io.read_buf(&mut buf).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Reads and drops everything until the other side closes; how much it was.
///
/// # Errors
/// A reset.
pub async fn drain(io: &mut TcpStream) -> io::Result<u64> {
    let mut chunk = vec![0u8; 64 * 1024];
    let mut total = 0;
    loop {
        match io.read(&mut chunk).await? {
            0 => return Ok(total),
            n => total += n as u64,
        }
    }
}

/// A port that refuses every connection while this value lives: bound, so that no other socket gets the port, but
/// never listening.
#[derive(Debug)]
pub struct Refused {
    addr: SocketAddr,
    _socket: Socket,
}

impl Refused {
    /// Takes a port.
    ///
    /// # Panics
    /// When nothing can be bound.
    pub fn new() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        socket.bind(&any.into()).expect("a free port");
        let addr = socket.local_addr().ok().and_then(|a| a.as_socket());
        Self {
            addr: addr.expect("a bound socket"),
            _socket: socket,
        }
    }

    /// The address that refuses.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Default for Refused {
    fn default() -> Self {
        Self::new()
    }
}
