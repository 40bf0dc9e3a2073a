//! A gRPC service with all four kinds of calls, written by hand on tonic, so that the tests need no protoc.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{Stream, StreamExt};
use http::uri::PathAndQuery;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::{ClientStreamingService, Grpc, ServerStreamingService, StreamingService, UnaryService};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

/// A message.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Note {
    /// What it says.
    #[prost(string, tag = "1")]
    pub text: String,
    /// A number.
    #[prost(uint32, tag = "2")]
    pub number: u32,
}

impl Note {
    /// A note.
    pub fn new(text: &str, number: u32) -> Self {
        Self {
            text: text.to_owned(),
            number,
        }
    }
}

type Notes = Pin<Box<dyn Stream<Item = Result<Note, Status>> + Send>>;
type Codec = ProstCodec<Note, Note>;

/// Echoes; `text` "fail" asks for a status of its own, "sleep" for no answer at all, "endless" for
/// a stream of notes that does not end after the last one.
#[derive(Debug, Clone, Copy)]
struct Echo;

fn answer(note: Note) -> Result<Response<Note>, Status> {
    if note.text == "fail" {
        let mut status = Status::failed_precondition("asked to fail");
        status
            .metadata_mut()
            .insert("x-detail", "in the trailers".parse().expect("plain ASCII"));
        return Err(status);
    }
    let mut response = Response::new(note);
    response
        .metadata_mut()
        .insert("x-served-by", "echo".parse().expect("plain ASCII"));
    Ok(response)
}

#[derive(Clone, Copy)]
struct Unary;

impl UnaryService<Note> for Unary {
    type Response = Note;
    type Future = BoxFuture<'static, Result<Response<Note>, Status>>;

    fn call(&mut self, request: Request<Note>) -> Self::Future {
        let deadline = request.metadata().get("grpc-timeout").cloned();
        Box::pin(async move {
            let mut note = request.into_inner();
            match note.text.as_str() {
                "sleep" => std::future::pending().await,
                "deadline" => {
                    note.text = deadline
                        .and_then(|d| d.to_str().map(str::to_owned).ok())
                        .unwrap_or_default();
                    answer(note)
                }
                _ => answer(note),
            }
        })
    }
}

#[derive(Clone, Copy)]
struct Count;

impl ServerStreamingService<Note> for Count {
    type Response = Note;
    type ResponseStream = Notes;
    type Future = BoxFuture<'static, Result<Response<Notes>, Status>>;

    fn call(&mut self, request: Request<Note>) -> Self::Future {
        let Note { text, number } = request.into_inner();
        let endless = text == "endless";
        let notes = (0..number).map(move |n| Ok(Note::new(&text, n)));
        let notes = tokio_stream::iter(notes);
        Box::pin(async move {
            let notes: Notes = if endless {
                Box::pin(notes.chain(futures_util::stream::pending()))
            } else {
                Box::pin(notes)
            };
            Ok(Response::new(notes))
        })
    }
}

#[derive(Clone, Copy)]
struct Sum;

impl ClientStreamingService<Note> for Sum {
    type Response = Note;
    type Future = BoxFuture<'static, Result<Response<Note>, Status>>;

    fn call(&mut self, request: Request<Streaming<Note>>) -> Self::Future {
        Box::pin(async move {
            let mut notes = request.into_inner();
            let mut sum = Note::new("sum", 0);
            while let Some(note) = notes.message().await? {
                sum.number += note.number;
            }
            answer(sum)
        })
    }
}

#[derive(Clone, Copy)]
struct Chat;

impl StreamingService<Note> for Chat {
    type Response = Note;
    type ResponseStream = Notes;
    type Future = BoxFuture<'static, Result<Response<Notes>, Status>>;

    fn call(&mut self, request: Request<Streaming<Note>>) -> Self::Future {
        let replies = request
            .into_inner()
            .map(|note| note.map(|n| Note::new(&format!("re: {}", n.text), n.number)));
        Box::pin(async move { Ok(Response::new(Box::pin(replies) as Notes)) })
    }
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = Grpc::new(Codec::default());
            Ok(match request.uri().path() {
                "/test.Echo/Unary" => grpc.unary(Unary, request).await,
                "/test.Echo/Count" => grpc.server_streaming(Count, request).await,
                "/test.Echo/Sum" => grpc.client_streaming(Sum, request).await,
                "/test.Echo/Chat" => grpc.streaming(Chat, request).await,
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}

/// Serves one call as [`EchoServer`] does, on a connection of another server.
pub async fn respond(request: http::Request<hyper::body::Incoming>) -> http::Response<Body> {
    let answered = Echo.call(request.map(Body::new)).await;
    answered.unwrap_or_else(|never| match never {})
}

/// A running tonic server; dropping it ends it.
#[derive(Debug)]
pub struct EchoServer {
    addr: SocketAddr,
    task: JoinHandle<()>,
}

impl EchoServer {
    /// Starts it.
    ///
    /// # Panics
    /// When nothing can be bound.
    pub async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let addr = listener.local_addr().expect("a bound socket");
        let incoming = futures_util::stream::unfold(listener, |listener| async move {
            let accepted: std::io::Result<TcpStream> = listener.accept().await.map(|(io, _)| io);
            let accepted = accepted.and_then(|io| io.set_nodelay(true).map(|()| io));
            Some((accepted, listener))
        });
        let task = tokio::spawn(async move {
            Server::builder()
                .serve_with_incoming(Echo, incoming)
                .await
                .expect("tonic serves");
        });
        Self { addr, task }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A tonic client.
#[derive(Debug)]
pub struct EchoClient {
    grpc: tonic::client::Grpc<Channel>,
}

impl EchoClient {
    /// Connects to `addr` and asks for `host`.
    ///
    /// # Panics
    /// When the connection is refused.
    pub async fn connect(addr: SocketAddr, host: &str) -> Self {
        let channel = Endpoint::from_shared(format!("http://{addr}"))
            .expect("an address is a URI")
            .origin(format!("http://{host}").parse().expect("a host is a URI"))
            .connect()
            .await
            .expect("the gateway accepts");
        Self {
            grpc: tonic::client::Grpc::new(channel),
        }
    }

    /// One note there, one back.
    ///
    /// # Errors
    /// The status.
    pub async fn unary(&mut self, note: Note, timeout: Option<Duration>) -> Result<Response<Note>, Status> {
        let mut request = Request::new(note);
        if let Some(timeout) = timeout {
            request.set_timeout(timeout);
        }
        self.ready().await?;
        self.grpc.unary(request, path("Unary"), Codec::default()).await
    }

    /// One note there, `number` back.
    ///
    /// # Errors
    /// The status.
    pub async fn count(&mut self, note: Note) -> Result<Vec<Note>, Status> {
        self.ready().await?;
        let response = self
            .grpc
            .server_streaming(Request::new(note), path("Count"), Codec::default())
            .await?;
        response
            .into_inner()
            .collect::<Vec<_>>()
            .await
            .into_iter()
            .collect()
    }

    /// One note there, some back as they come.
    ///
    /// # Errors
    /// The status.
    pub async fn watch(&mut self, note: Note) -> Result<Streaming<Note>, Status> {
        self.ready().await?;
        let response = self
            .grpc
            .server_streaming(Request::new(note), path("Count"), Codec::default())
            .await?;
        Ok(response.into_inner())
    }

    /// Many notes there, their sum back.
    ///
    /// # Errors
    /// The status.
    pub async fn sum(&mut self, notes: Vec<Note>) -> Result<Note, Status> {
        self.ready().await?;
        let request = Request::new(tokio_stream::iter(notes));
        let response = self
            .grpc
            .client_streaming(request, path("Sum"), Codec::default())
            .await?;
        Ok(response.into_inner())
    }

    /// Notes both ways, as they come.
    ///
    /// # Errors
    /// The status.
    pub async fn chat(
        &mut self,
        notes: tokio::sync::mpsc::Receiver<Note>,
    ) -> Result<Streaming<Note>, Status> {
        self.ready().await?;
        let request = Request::new(ReceiverStream::new(notes));
        let response = self
            .grpc
            .streaming(request, path("Chat"), Codec::default())
            .await?;
        Ok(response.into_inner())
    }

    async fn ready(&mut self) -> Result<(), Status> {
        self.grpc
            .ready()
            .await
            .map_err(|e| Status::unavailable(e.to_string()))
    }
}

fn path(method: &str) -> PathAndQuery {
    format!("/test.Echo/{method}").parse().expect("a path")
}
