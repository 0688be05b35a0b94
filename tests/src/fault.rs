//! Faults between a controller and its API server, keyed to calls rather than to
//! time: random chaos does not hit the half millisecond between two writes, a
//! fault on the n-th write does. The layer also counts, so that a run with faults
//! can be compared with a clean one, write for write. And it holds watches back,
//! so that a cache falls behind for as long as a test likes.
//!
//! Death is told by [`Faults::killed`]: the call at which the process dies never
//! returns, so whoever runs the controller as a task aborts it then, and to the
//! API server that is the same as a killed process.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use http::{Method, Request, Response, StatusCode};
use http_body::{Body as HttpBody, Frame};
use http_body_util::{BodyExt, Either, Full, StreamBody};
use tokio::sync::watch;
use tower::{BoxError, Layer, Service};

/// A call to the API server, as it is about to go out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// How many calls went before it.
    pub number: usize,
    /// If it writes, how many writes went before it.
    pub write: Option<usize>,
    /// Its method; PATCH, POST, PUT and DELETE write.
    pub method: Method,
    /// Its path, without the query.
    pub path: String,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nothing special.
    Pass,
    /// It goes out late.
    Delay(Duration),
    /// The API server answers with this status, and nothing is done.
    Fail(StatusCode),
    /// The connection breaks before it arrives: nothing is done.
    Drop,
    /// The connection breaks after it arrived: it is done, and the caller does not know.
    Lose,
    /// The caller dies before it goes out.
    KillBefore,
    /// The caller dies after it is done and before the answer comes.
    KillAfter,
}

/// Why a call failed that was dropped or lost.
#[derive(Debug, thiserror::Error)]
#[error("the connection broke at {} {}, as planned", call.method, call.path)]
pub struct Broken {
    call: Call,
}

type Plan = dyn Fn(&Call) -> Fate + Send + Sync;

/// A plan of faults, and a record of the calls that met it. Clones share both.
#[derive(Clone)]
pub struct Faults {
    plan: Arc<Plan>,
    calls: Arc<Mutex<Vec<Call>>>,
    killed: Arc<watch::Sender<bool>>,
    sight: Arc<watch::Sender<Sight>>,
}

/// Kinds of which watches do not tell.
#[derive(Clone, Debug, Default)]
struct Sight {
    /// They tell later.
    held: Vec<String>,
    /// They never will: whoever watches has to list anew.
    lost: Vec<String>,
}

impl Sight {
    fn holds(&self, kind: &str) -> bool {
        self.held.iter().any(|held| held == kind)
    }

    fn lacks(&self, kind: &str) -> bool {
        self.lost.iter().any(|lost| lost == kind)
    }
}

impl Faults {
    /// The fate of each call is what `plan` says.
    pub fn new(plan: impl Fn(&Call) -> Fate + Send + Sync + 'static) -> Self {
        Self {
            plan: Arc::new(plan),
            calls: Arc::default(),
            killed: Arc::new(watch::Sender::new(false)),
            sight: Arc::new(watch::Sender::new(Sight::default())),
        }
    }

    /// No fault, only the record.
    #[must_use]
    pub fn none() -> Self {
        Self::new(|_| Fate::Pass)
    }

    /// One fault, at the write that has `number` writes before it.
    #[must_use]
    pub fn at_write(number: usize, fate: Fate) -> Self {
        Self::new(move |call| match call.write {
            Some(write) if write == number => fate,
            _ => Fate::Pass,
        })
    }

    /// The calls so far.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.clone()
    }

    /// The writes so far.
    #[must_use]
    pub fn writes(&self) -> Vec<Call> {
        let mut calls = self.calls();
        calls.retain(|call| call.write.is_some());
        calls
    }

    /// From now on nothing is heard of what watches of these kinds say; paths spell
    /// them so, such as `pods`.
    pub fn hold(&self, kinds: &[&str]) {
        let held = kinds.iter().map(|kind| (*kind).to_owned()).collect();
        self.sight.send_modify(|sight| sight.held = held);
    }

    /// The watches of these kinds break, and until the release the API server says to
    /// each new one that it is too late for it.
    pub fn lose(&self, kinds: &[&str]) {
        let lost = kinds.iter().map(|kind| (*kind).to_owned()).collect();
        self.sight.send_modify(|sight| sight.lost = lost);
    }

    /// What was held is heard now, and what was lost can be listed.
    pub fn release(&self) {
        self.sight.send_replace(Sight::default());
    }

    /// Waits for the death of the caller.
    pub async fn killed(&self) {
        // The sender lives as long as this value.
        let _ = self.killed.subscribe().wait_for(|killed| *killed).await;
    }

    fn meet<B>(&self, request: &Request<B>) -> (Call, Fate) {
        let method = request.method().clone();
        let writes = [Method::POST, Method::PUT, Method::PATCH, Method::DELETE].contains(&method);
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let before = calls.iter().filter(|call| call.write.is_some()).count();
        let call = Call {
            number: calls.len(),
            write: writes.then_some(before),
            method,
            path: request.uri().path().to_owned(),
        };
        calls.push(call.clone());
        drop(calls);
        let fate = if *self.killed.borrow() {
            // The dead do not call.
            Fate::KillBefore
        } else {
            (self.plan)(&call)
        };
        (call, fate)
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults")
            .field("calls", &self.calls())
            .finish()
    }
}

impl<S> Layer<S> for Faults {
    type Service = Faulty<S>;

    fn layer(&self, inner: S) -> Faulty<S> {
        Faulty {
            inner,
            faults: self.clone(),
        }
    }
}

/// A service whose calls meet their fate.
#[derive(Debug)]
pub struct Faulty<S> {
    inner: S,
    faults: Faults,
}

impl<S, B, R> Service<Request<B>> for Faulty<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    R: HttpBody<Data = Bytes> + Send + 'static,
    R::Error: Send + 'static,
{
    type Response = Response<Either<Frames<R::Error>, Full<Bytes>>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (call, fate) = self.faults.meet(&request);
        let killed = self.faults.killed.clone();
        let query = request.uri().query().unwrap_or_default();
        let watched = query.contains("watch=true");
        let watched = watched.then(|| kind(&call.path).to_owned());
        let sight = self.faults.sight.subscribe();
        let lacks = |kind: &String| sight.borrow().lacks(kind);
        if watched.as_ref().is_some_and(lacks) {
            return Box::pin(async { Ok(failure(StatusCode::GONE)) });
        }
        match fate {
            Fate::Fail(status) => return Box::pin(async move { Ok(failure(status)) }),
            Fate::Drop => return Box::pin(async move { Err(Broken { call }.into()) }),
            Fate::KillBefore => return Box::pin(die(killed)),
            Fate::Pass | Fate::Delay(_) | Fate::Lose | Fate::KillAfter => {}
        }
        // Nothing is sent before the first poll.
        let answer = self.inner.call(request);
        Box::pin(async move {
            if let Fate::Delay(time) = fate {
                tokio::time::sleep(time).await;
            }
            let answer = answer.await.map_err(Into::into)?;
            match fate {
                Fate::Lose => Err(Broken { call }.into()),
                Fate::KillAfter => die(killed).await,
                _ => Ok(answer.map(|body| Either::Left(frames(body, watched, sight)))),
            }
        })
    }
}

/// An answer's body, frame by frame.
type Frames<E> = StreamBody<BoxStream<'static, Result<Frame<Bytes>, E>>>;

/// Lets the frames of a body through, those of a watch not while its kind is held and
/// none of them once it is lost.
fn frames<R>(body: R, watched: Option<String>, sight: watch::Receiver<Sight>) -> Frames<R::Error>
where
    R: HttpBody<Data = Bytes> + Send + 'static,
    R::Error: Send + 'static,
{
    let start = (Box::pin(body), watched, sight);
    let frames = stream::unfold(start, async |(mut body, watched, mut sight)| {
        let Some(kind) = &watched else {
            let frame = body.frame().await?;
            return Some((frame, (body, watched, sight)));
        };
        let mut eyes = sight.clone();
        let lost = async {
            if eyes.wait_for(|sight| sight.lacks(kind)).await.is_err() {
                // Nobody can lose it any more.
                std::future::pending::<()>().await;
            }
        };
        let heard = async {
            let frame = body.frame().await;
            // When nobody can hold it any more, nothing is held.
            let _ = sight.wait_for(|sight| !sight.holds(kind)).await;
            frame
        };
        let frame = tokio::select! {
            frame = heard => frame?,
            () = lost => return None,
        };
        Some((frame, (body, watched, sight)))
    });
    StreamBody::new(frames.boxed())
}

/// The kind that a watch's path names.
fn kind(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

async fn die<T>(killed: Arc<watch::Sender<bool>>) -> T {
    killed.send_replace(true);
    std::future::pending().await
}

/// What an API server says with a status, in the form that clients parse.
fn failure<R>(status: StatusCode) -> Response<Either<R, Full<Bytes>>> {
    let reason = match status {
        StatusCode::CONFLICT => "Conflict",
        StatusCode::NOT_FOUND => "NotFound",
        StatusCode::FORBIDDEN => "Forbidden",
        StatusCode::GONE => "Expired",
        StatusCode::TOO_MANY_REQUESTS => "TooManyRequests",
        StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailable",
        _ => "InternalError",
    };
    let text = serde_json::json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": "failed as planned",
        "reason": reason,
        "code": status.as_u16(),
    });
    let mut response = Response::new(Either::Right(Full::from(text.to_string())));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use kube::{Api, Client, api::PostParams, client::Body};
    use tower::ServiceExt;

    use super::*;

    use k8s_openapi::api::core::v1::ConfigMap;

    /// An API server that knows one answer and counts what reaches it.
    fn client(faults: &Faults) -> (Client, Arc<AtomicUsize>) {
        let reached = Arc::new(AtomicUsize::new(0));
        let count = reached.clone();
        let server = tower::service_fn(move |_: Request<Body>| {
            let count = count.clone();
            async move {
                count.fetch_add(1, Ordering::SeqCst);
                let map = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"}}"#;
                Ok::<_, BoxError>(Response::new(Body::from(map.as_bytes().to_vec())))
            }
        });
        (Client::new(faults.layer(server), "default"), reached)
    }

    fn maps(client: &Client) -> Api<ConfigMap> {
        Api::default_namespaced(client.clone())
    }

    async fn write(client: &Client) -> Result<ConfigMap, kube::Error> {
        maps(client)
            .create(&PostParams::default(), &ConfigMap::default())
            .await
    }

    #[tokio::test]
    async fn reads_and_writes_are_counted_apart() {
        let faults = Faults::none();
        let (client, _) = client(&faults);
        maps(&client).get("a").await.expect("a read");
        write(&client).await.expect("a write");
        let calls = faults.calls();
        assert_eq!((calls[0].number, calls[0].write), (0, None));
        assert_eq!((calls[1].number, calls[1].write), (1, Some(0)));
        assert_eq!(calls[0].path, "/api/v1/namespaces/default/configmaps/a");
        assert_eq!(faults.writes(), calls[1..]);
    }

    #[tokio::test]
    async fn only_the_planned_write_fails_and_with_a_status_that_clients_understand() {
        let faults = Faults::at_write(1, Fate::Fail(StatusCode::CONFLICT));
        let (client, reached) = client(&faults);
        write(&client).await.expect("the first");
        let refused = write(&client).await.expect_err("the second");
        assert!(
            matches!(refused, kube::Error::Api(status) if status.code == 409 && status.reason == "Conflict")
        );
        write(&client).await.expect("the third");
        assert_eq!(reached.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_dropped_write_does_not_arrive_and_a_lost_one_does() {
        for (fate, arrived) in [(Fate::Drop, 0), (Fate::Lose, 1)] {
            let (client, reached) = client(&Faults::at_write(0, fate));
            write(&client).await.expect_err("a broken connection");
            assert_eq!(reached.load(Ordering::SeqCst), arrived, "{fate:?}");
        }
    }

    #[tokio::test]
    async fn death_is_told_and_nothing_is_called_after_it() {
        for (fate, arrived) in [(Fate::KillBefore, 0), (Fate::KillAfter, 1)] {
            let faults = Faults::at_write(0, fate);
            let (client, reached) = client(&faults);
            tokio::select! {
                _ = write(&client) => panic!("the dead do not return"),
                () = faults.killed() => {}
            }
            tokio::select! {
                biased;
                _ = write(&client) => panic!("the dead do not call"),
                () = tokio::task::yield_now() => {}
            }
            assert_eq!(reached.load(Ordering::SeqCst), arrived, "{fate:?}");
        }
    }

    #[tokio::test]
    async fn what_a_held_watch_says_is_heard_once_it_is_released() {
        let faults = Faults::none();
        let server = tower::service_fn(async |_: Request<Body>| {
            Ok::<_, BoxError>(Response::new(Body::from(b"news".to_vec())))
        });
        let ask = Request::get("/api/v1/namespaces/default/pods?watch=true");
        let ask = ask.body(Body::empty()).expect("a request");
        let answer = faults.layer(server).oneshot(ask).await.expect("an answer");
        faults.hold(&["pods"]);
        let mut body = answer.into_body();
        let mut frame = std::pin::pin!(body.frame());
        tokio::select! {
            biased;
            _ = &mut frame => panic!("it is held"),
            () = tokio::task::yield_now() => {}
        }
        faults.release();
        assert!(frame.await.is_some_and(|frame| frame.is_ok()));
    }

    #[tokio::test]
    async fn a_lost_watch_ends_and_another_is_too_late_until_the_release() {
        let faults = Faults::none();
        let server = tower::service_fn(async |_: Request<Body>| {
            let forever = stream::pending::<Result<Frame<Bytes>, BoxError>>();
            Ok::<_, BoxError>(Response::new(StreamBody::new(forever)))
        });
        let ask = async || {
            let ask = Request::get("/api/v1/namespaces/default/pods?watch=true");
            let ask = ask.body(Body::empty()).expect("a request");
            faults.layer(server).oneshot(ask).await.expect("an answer")
        };
        let mut body = ask().await.into_body();
        faults.lose(&["pods"]);
        assert!(body.frame().await.is_none());
        assert_eq!(ask().await.status(), StatusCode::GONE);
        faults.release();
        assert_eq!(ask().await.status(), StatusCode::OK);
    }

    #[tokio::test(start_paused = true)]
    async fn a_delayed_write_arrives_late() {
        let (client, reached) = client(&Faults::at_write(0, Fate::Delay(Duration::from_secs(3))));
        let early = tokio::time::timeout(Duration::from_secs(2), write(&client)).await;
        assert!(early.is_err());
        assert_eq!(reached.load(Ordering::SeqCst), 0);
    }
}
