//! What a pass-through costs at least when it is made of hyper: the request goes
//! to the worker with the fewest in flight, bodies stream both ways, the count
//! falls when the answer's body ends. No limits, no retries, no timeouts, no
//! look into the body.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpListener;

struct Worker {
    authority: String,
    host: HeaderValue,
    in_flight: Arc<AtomicUsize>,
}

struct Counted {
    body: Incoming,
    in_flight: Arc<AtomicUsize>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Body for Counted {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

pub(crate) fn run(listen: SocketAddr, workers: &[SocketAddr]) {
    let workers: Arc<Vec<Worker>> = Arc::new(workers.iter().map(worker).collect());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client: Client<_, Incoming> = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .build(connector);
        let listener = TcpListener::bind(listen).await.unwrap();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let (client, workers) = (client.clone(), Arc::clone(&workers));
            let service =
                service_fn(move |request| pass(client.clone(), Arc::clone(&workers), request));
            tokio::spawn(
                http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
}

fn worker(address: &SocketAddr) -> Worker {
    Worker {
        authority: address.to_string(),
        host: HeaderValue::from_str(&address.to_string()).unwrap(),
        in_flight: Arc::default(),
    }
}

async fn pass(
    client: Client<HttpConnector, Incoming>,
    workers: Arc<Vec<Worker>>,
    mut request: Request<Incoming>,
) -> Result<Response<Counted>, hyper_util::client::legacy::Error> {
    let least = workers
        .iter()
        .min_by_key(|w| w.in_flight.load(Ordering::Relaxed))
        .unwrap();
    least.in_flight.fetch_add(1, Ordering::Relaxed);
    let in_flight = Arc::clone(&least.in_flight);
    let mut parts = request.uri().clone().into_parts();
    parts.scheme = Some(http::uri::Scheme::HTTP);
    parts.authority = Some(least.authority.parse().unwrap());
    *request.uri_mut() = Uri::from_parts(parts).unwrap();
    request
        .headers_mut()
        .insert(header::HOST, least.host.clone());
    request.headers_mut().remove(header::CONNECTION);
    let response = client.request(request).await.inspect_err(|_| {
        in_flight.fetch_sub(1, Ordering::Relaxed);
    })?;
    Ok(response.map(|body| Counted { body, in_flight }))
}
