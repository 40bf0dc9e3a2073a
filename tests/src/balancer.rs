//! A layer 4 load balancer, as clouds have them in front of a gateway.
//!
//! The balancer polls each member's health port, gives new connections only to members that are ready,
//! and sends the client's address by PROXY version 2. It never moves, retries or ends a connection.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::h1;
use crate::wait::{SOON, wait_until};

/// The interval of health checks: a tenth of the shortest interval that clouds' balancers have.
const CHECK: Duration = Duration::from_millis(100);

const PROXY_V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// A running balancer; dropping it closes all connections.
#[derive(Debug)]
pub struct Balancer {
    addr: SocketAddr,
    members: Arc<[Member]>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Member {
    traffic: SocketAddr,
    health: SocketAddr,
    ready: AtomicBool,
    connections: AtomicU64,
}

impl Balancer {
    /// Starts a balancer in front of `members`, each with its address for traffic and for health. Returns when
    /// all members are ready.
    ///
    /// # Panics
    /// When the members do not become ready.
    pub async fn start(members: &[(SocketAddr, SocketAddr)]) -> Self {
        let members: Arc<[Member]> = members
            .iter()
            .map(|&(traffic, health)| Member {
                traffic,
                health,
                ready: AtomicBool::new(false),
                connections: AtomicU64::new(0),
            })
            .collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("a bound socket");
        let mut tasks = JoinSet::new();
        for index in 0..members.len() {
            tasks.spawn(follow(Arc::clone(&members), index));
        }
        tasks.spawn(accept(listener, Arc::clone(&members)));
        let balancer = Self {
            addr,
            members,
            _tasks: tasks,
        };
        for index in 0..balancer.members.len() {
            balancer.wait_ready(index, true).await;
        }
        balancer
    }

    /// Where clients connect.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Connections given to a member so far.
    pub fn connections(&self, member: usize) -> u64 {
        self.members[member].connections.load(Ordering::SeqCst)
    }

    /// Waits until a member is found ready, or not ready.
    pub async fn wait_ready(&self, member: usize, ready: bool) {
        let state = &self.members[member].ready;
        wait_until(&format!("member {member} is ready: {ready}"), SOON, || {
            state.load(Ordering::SeqCst) == ready
        })
        .await;
    }
}

async fn follow(members: Arc<[Member]>, index: usize) {
    let member = &members[index];
    let question = h1::get("health", "/readyz");
    let mut clock = tokio::time::interval(CHECK);
    loop {
        clock.tick().await;
        let ready = tokio::time::timeout(10 * CHECK, h1::fetch(member.health, &question))
            .await
            .is_ok_and(|answer| answer.is_ok_and(|answer| answer.status == 200));
        member.ready.store(ready, Ordering::SeqCst);
    }
}

async fn accept(listener: TcpListener, members: Arc<[Member]>) {
    let turn = AtomicUsize::new(0);
    let mut connections = JoinSet::new();
    while let Ok((client, from)) = listener.accept().await {
        let ready: Vec<&Member> = members
            .iter()
            .filter(|m| m.ready.load(Ordering::SeqCst))
            .collect();
        let Some(member) = ready.get(turn.fetch_add(1, Ordering::Relaxed) % ready.len().max(1)) else {
            refuse(&client);
            continue;
        };
        member.connections.fetch_add(1, Ordering::SeqCst);
        connections.spawn(relay(client, from, member.traffic));
        while connections.try_join_next().is_some() {}
    }
}

/// Copies bytes both ways; a reset on one side becomes a reset on the other.
async fn relay(mut client: TcpStream, from: SocketAddr, to: SocketAddr) {
    let result = async {
        let mut member = TcpStream::connect(to).await?;
        member.set_nodelay(true)?;
        client.set_nodelay(true)?;
        member.write_all(&announcement(from, to)).await?;
        let relayed = copy_bidirectional(&mut client, &mut member).await;
        if relayed.is_err() {
            refuse(&member);
        }
        relayed
    }
    .await;
    if let Err(_broken) = result {
        refuse(&client);
    }
}

fn refuse(io: &TcpStream) {
    // A socket that is gone already needs no reset.
    let _: io::Result<()> = io.set_zero_linger();
}

fn announcement(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let (SocketAddr::V4(from), SocketAddr::V4(to)) = (from, to) else {
        unreachable!("everything here is bound to 127.0.0.1");
    };
    let mut header = PROXY_V2.to_vec();
    header.extend([0x21, 0x11, 0, 12]);
    header.extend(from.ip().octets());
    header.extend(to.ip().octets());
    header.extend(from.port().to_be_bytes());
    header.extend(to.port().to_be_bytes());
    header
}
