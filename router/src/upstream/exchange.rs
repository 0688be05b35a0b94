//! One request to a worker and its answer. The body of the answer owns the
//! connection: reading it to the end gives the connection back, dropping it
//! closes the connection, which tells the worker at once that nobody listens.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use http::{Request, Response};

use crate::request::intake::Payload;
use crate::upstream::decode::{BadChunk, Decoder};
use crate::upstream::head::{self, BadHead, Head};
use crate::upstream::link::{Link, Links};

/// Pieces of a request that one call writes.
const SLICES: usize = 32;

/// The body of an answer, still at its worker.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Absent when the body has ended, or broke off.
    link: Option<Link>,
    /// What came with the head.
    first: Bytes,
    decoder: Decoder,
    keeps: bool,
    home: Arc<Links>,
}

/// A request got no answer.
#[derive(Debug, thiserror::Error)]
#[error("no answer: {source}")]
pub(crate) struct SendError {
    /// The worker closed a kept connection just as it was used: nothing was
    /// wrong, and the request goes out again on another connection.
    pub(crate) stale: bool,
    source: Broken,
}

/// Why an answer broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// The worker closed the connection in the middle.
    #[error("the connection was closed")]
    Closed,
    /// The connection failed.
    #[error(transparent)]
    Failed(#[from] io::Error),
    /// The head is none.
    #[error(transparent)]
    Head(#[from] BadHead),
    /// The body is none.
    #[error(transparent)]
    Body(#[from] BadChunk),
}

/// Sends `request` on `link` and waits for the head of the answer. An answer that
/// comes before the request is out whole is taken as it is: the rest is not sent,
/// and the connection not used again.
pub(crate) async fn send(
    mut link: Link,
    home: &Arc<Links>,
    request: Request<Payload>,
) -> Result<Response<Answer>, SendError> {
    let mut unsent = Unsent::new(request);
    let mut read = BytesMut::new();
    let head = std::future::poll_fn(|cx| poll_head(&mut link, &mut unsent, &mut read, cx))
        .await
        .map_err(|source| SendError {
            stale: link.used_before
                && read.is_empty()
                && matches!(source, Broken::Closed | Broken::Failed(_)),
            source,
        })?;
    let answer = Answer {
        decoder: Decoder::new(head.extent),
        keeps: head.keeps && unsent.is_empty(),
        link: Some(link),
        first: read.freeze(),
        home: Arc::clone(home),
    };
    Ok(Response::from_parts(head.parts, answer))
}

fn poll_head(
    link: &mut Link,
    unsent: &mut Unsent,
    read: &mut BytesMut,
    cx: &mut Context<'_>,
) -> Poll<Result<Head, Broken>> {
    // A worker that refuses a body half way may have closed its side already; what
    // it said before that is still to be read.
    let failed = match unsent.poll_send(link, cx) {
        Poll::Ready(sent) => sent.err(),
        Poll::Pending => None,
    };
    loop {
        let came = link.poll_read(cx, |bytes| {
            read.extend_from_slice(bytes);
            bytes.len()
        });
        match came? {
            Poll::Ready(0) => return Poll::Ready(Err(Broken::Closed)),
            Poll::Ready(_) => {}
            Poll::Pending => {
                return failed.map_or(Poll::Pending, |error| Poll::Ready(Err(error.into())));
            }
        }
        if let Some(head) = head::read(read)? {
            return Poll::Ready(Ok(head));
        }
    }
}

impl Answer {
    /// The next data; `None` at the end that the worker meant. Nothing follows an
    /// error.
    pub(crate) fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Broken>>> {
        if !self.first.is_empty() {
            let first = std::mem::take(&mut self.first);
            let mut rest = &first[..];
            let data = self.decoder.take(&mut rest)?;
            self.keeps &= rest.is_empty();
            if !data.is_empty() {
                self.end_if_done();
                return Poll::Ready(Some(Ok(data)));
            }
        }
        while !self.decoder.is_done() {
            let Some(link) = &mut self.link else {
                return Poll::Ready(None);
            };
            let decoder = &mut self.decoder;
            let (came, rest, data) = ready!(link.poll_read(cx, |bytes| {
                let mut rest = bytes;
                let data = decoder.take(&mut rest);
                (bytes.len(), rest.len(), data)
            }))?;
            let data = data?;
            self.keeps &= rest == 0;
            if came == 0 {
                self.link = None;
                let meant = self.decoder.ends_with_connection();
                return Poll::Ready((!meant).then_some(Err(Broken::Closed)));
            }
            if !data.is_empty() {
                self.end_if_done();
                return Poll::Ready(Some(Ok(data)));
            }
        }
        self.end_if_done();
        Poll::Ready(None)
    }

    /// Gives the connection back with the last data: whoever knows the length of an
    /// answer does not ask for what comes after it.
    fn end_if_done(&mut self) {
        if self.is_done()
            && let Some(link) = self.link.take()
            && self.keeps
        {
            self.home.give_back(link, shell::clock::now());
        }
    }

    /// Whether all data was read.
    pub(crate) fn is_done(&self) -> bool {
        self.first.is_empty() && self.decoder.is_done()
    }

    /// The length of what is left, if the worker told it, bytes.
    pub(crate) fn exact_len(&self) -> Option<u64> {
        self.decoder.left()
    }

    /// Reads to the end.
    pub(crate) async fn collect(mut self) -> Result<Bytes, Broken> {
        let mut pieces = Vec::new();
        while let Some(data) = std::future::poll_fn(|cx| self.poll_data(cx)).await {
            pieces.push(data?);
        }
        Ok(match pieces.len() {
            1 => pieces.remove(0),
            _ => pieces.concat().into(),
        })
    }
}

/// What is left of a request to be written.
struct Unsent {
    head: Bytes,
    payload: Payload,
    /// The piece of the payload that comes next, and how much of it is out.
    piece: usize,
    offset: usize,
}

impl Unsent {
    fn new(request: Request<Payload>) -> Self {
        Self {
            head: head::write(&request).into(),
            payload: request.into_body(),
            piece: 0,
            offset: 0,
        }
    }

    fn is_empty(&self) -> bool {
        self.head.is_empty() && self.piece == self.payload.pieces().len()
    }

    fn poll_send(&mut self, link: &mut Link, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let filled = self.fill(&mut slices);
            let wrote = ready!(link.poll_write(cx, &slices[..filled]))?;
            if wrote == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(wrote);
        }
        Poll::Ready(Ok(()))
    }

    /// Shows as much as `slices` has room for, and tells how many it used.
    fn fill<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES]) -> usize {
        let pieces = self.payload.pieces()[self.piece..].iter().enumerate();
        let rest = pieces.map(|(index, piece)| match index {
            0 => &piece[self.offset..],
            _ => &piece[..],
        });
        let all = std::iter::once(&self.head[..]).chain(rest);
        let mut filled = 0;
        for (slice, bytes) in slices.iter_mut().zip(all.filter(|bytes| !bytes.is_empty())) {
            *slice = IoSlice::new(bytes);
            filled += 1;
        }
        filled
    }

    fn advance(&mut self, mut wrote: usize) {
        let of_head = wrote.min(self.head.len());
        self.head.advance(of_head);
        wrote -= of_head;
        while let Some(piece) = self.payload.pieces().get(self.piece) {
            let left = piece.len() - self.offset;
            if wrote < left {
                self.offset += wrote;
                return;
            }
            wrote -= left;
            self.piece += 1;
            self.offset = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{Method, StatusCode};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const HEAD: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

    /// A worker that answers the connections it accepts one after the other, each
    /// with its list of answers, and closes them.
    async fn worker(connections: Vec<Vec<String>>) -> Arc<Links> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            for answers in connections {
                let (mut stream, _) = listener.accept().await.unwrap();
                for answer in answers {
                    read_head(&mut stream).await;
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        });
        Arc::new(Links::new(&authority.parse().unwrap(), None))
    }

    async fn read_head(stream: &mut TcpStream) {
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n\r\n") {
            seen.push(stream.read_u8().await.unwrap());
        }
    }

    async fn ask(links: &Arc<Links>, pieces: Vec<Bytes>) -> Result<Response<Answer>, SendError> {
        let mut request = Request::new(Payload::of(pieces));
        *request.method_mut() = Method::POST;
        let link = match links.take_idle(shell::clock::now()) {
            Some(link) => link,
            None => links
                .connect(std::time::Duration::from_secs(5))
                .await
                .unwrap(),
        };
        send(link, links, request).await
    }

    async fn body(answer: Response<Answer>) -> Result<Bytes, Broken> {
        answer.into_body().collect().await
    }

    #[tokio::test]
    async fn a_connection_serves_one_request_after_the_other() {
        let chunked = format!("{HEAD}2\r\nab\r\n1\r\nc\r\n0\r\n\r\n");
        let known = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_owned();
        let links = worker(vec![vec![chunked, known]]).await;
        assert_eq!(
            body(ask(&links, vec![]).await.unwrap()).await.unwrap(),
            "abc"
        );
        let second = ask(&links, vec![]).await.unwrap();
        assert_eq!(second.body().exact_len(), Some(2));
        assert_eq!(body(second).await.unwrap(), "ok");
    }

    #[tokio::test]
    async fn a_connection_that_was_idle_for_long_is_not_used_again() {
        let known = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_owned();
        let links = worker(vec![vec![known.clone(), known]]).await;
        body(ask(&links, vec![]).await.unwrap()).await.unwrap();
        let now = shell::clock::now();
        let kept = links.take_idle(now).unwrap();
        links.give_back(kept, now);
        // Servers close theirs after 5 s.
        let later = now + std::time::Duration::from_secs(4);
        assert!(links.take_idle(later).is_none());
        assert!(links.take_idle(now).is_none(), "it was kept");
    }

    #[tokio::test]
    async fn a_connection_with_something_to_say_after_its_answer_is_closed() {
        for answer in [
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n".to_owned(),
            format!("{HEAD}2\r\nok\r\n0\r\n\r\nx"),
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok".to_owned(),
            "HTTP/1.1 200 OK\r\n\r\nok".to_owned(),
        ] {
            let links = worker(vec![vec![answer.clone()]]).await;
            let answered = ask(&links, vec![]).await.unwrap();
            assert_eq!(body(answered).await.unwrap(), "ok", "{answer}");
            assert!(links.take_idle(shell::clock::now()).is_none(), "{answer}");
        }
    }

    #[tokio::test]
    async fn an_answer_cut_in_the_middle_is_no_answer() {
        for answer in [
            format!("{HEAD}2\r\nab\r\n"),
            format!("{HEAD}5\r\nab"),
            format!("{HEAD}zz\r\n"),
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab".to_owned(),
        ] {
            let links = worker(vec![vec![answer.clone()]]).await;
            let answered = ask(&links, vec![]).await.unwrap();
            body(answered).await.expect_err(&answer);
            assert!(links.take_idle(shell::clock::now()).is_none());
        }
        let links = worker(vec![vec!["HTTP/1.1 200 OK\r\nx".to_owned()]]).await;
        let error = ask(&links, vec![]).await.unwrap_err();
        assert!(!error.stale, "{error}");
    }

    #[tokio::test]
    async fn only_a_connection_that_was_kept_can_be_stale() {
        let known = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_owned();
        // The second answer is nothing but the end of the connection.
        let links = worker(vec![vec![known, String::new()], vec![String::new()]]).await;
        body(ask(&links, vec![]).await.unwrap()).await.unwrap();
        assert!(ask(&links, vec![]).await.unwrap_err().stale);
        assert!(!ask(&links, vec![]).await.unwrap_err().stale);
    }

    #[tokio::test]
    async fn a_refusal_before_the_body_is_out_is_heard() {
        let refusal = "HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno".to_owned();
        let links = worker(vec![vec![refusal]]).await;
        let large = vec![Bytes::from(vec![b'x'; 1 << 20]); 40];
        let answered = ask(&links, large).await.unwrap();
        assert_eq!(answered.status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(body(answered).await.unwrap(), "no");
        assert!(links.take_idle(shell::clock::now()).is_none());
    }

    #[tokio::test]
    async fn a_body_in_many_pieces_goes_out_in_order() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let pieces: Vec<Bytes> = (0..500_u32)
            .map(|n| Bytes::from(vec![n.to_le_bytes()[0]; (n as usize * 37) % 5000]))
            .collect();
        let want = pieces.concat();
        let length = want.len();
        let got = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_head(&mut stream).await;
            let mut got = vec![0; length];
            stream.read_exact(&mut got).await.unwrap();
            stream
                .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
                .await
                .unwrap();
            got
        });
        let links = Arc::new(Links::new(&authority.parse().unwrap(), None));
        let answered = ask(&links, pieces).await.unwrap();
        assert_eq!(answered.status(), StatusCode::NO_CONTENT);
        assert!(got.await.unwrap() == want);
    }
}
