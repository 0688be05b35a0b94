//! Takes in a request's body: counted against the limit of one body and the
//! limit of all, read by the fact reader as it arrives, kept as it came so that
//! a retry can send the same bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body as _, Frame};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use crate::request::facts::{FactReader, Facts};
use crate::request::scan::Malformed;

/// Smaller pieces are copied together, so that a body sent byte by byte does not
/// cost a piece of bookkeeping each.
const SMALL: usize = 4096;
/// How much of a body that is too large is read and thrown away, so that the
/// client, still sending, comes to read the refusal.
const DISCARD: u64 = 64 << 20;

/// The bytes of all bodies held at once, and their limit.
#[derive(Debug)]
pub(crate) struct Budget {
    used: AtomicU64,
    max: u64,
}

/// A share of the [`Budget`]; given back on drop.
#[derive(Debug)]
struct Share {
    budget: Arc<Budget>,
    bytes: u64,
}

/// How long a body may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Between two pieces.
    pub(crate) stall: Duration,
    /// For all of it: pieces that keep coming, one byte each, are no excuse.
    pub(crate) total: Duration,
    /// From when the total counts.
    pub(crate) since: Instant,
}

/// A whole request body. Clones share the bytes, and the last one frees them.
#[derive(Clone, Debug)]
pub(crate) struct Payload(Arc<Kept>);

#[derive(Debug)]
struct Kept {
    pieces: Vec<Bytes>,
    /// Kept for its drop.
    _share: Option<Share>,
}

/// Why a body was not taken in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IntakeError {
    /// Larger than one body may be.
    #[error("the body is larger than {max} bytes")]
    TooLarge {
        /// The limit.
        max: u64,
    },
    /// All bodies together would be larger than they may be.
    #[error("the router holds as many request bytes as it may")]
    BuffersFull,
    /// Nothing came for too long.
    #[error("no part of the body arrived for {} s", .after.as_secs_f32())]
    Stalled {
        /// The limit.
        after: Duration,
    },
    /// It was not there whole in time.
    #[error("the body was not there whole after {} s", .after.as_secs_f32())]
    Slow {
        /// The limit.
        after: Duration,
    },
    /// The client broke off.
    #[error("the body broke off")]
    Aborted,
    /// Not JSON.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

impl Budget {
    /// A budget of `max` bytes.
    pub(crate) fn new(max: u64) -> Arc<Self> {
        Arc::new(Self {
            used: AtomicU64::new(0),
            max,
        })
    }

    /// Bytes held now.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

impl Share {
    fn grow(&mut self, bytes: u64) -> Result<(), IntakeError> {
        let before = self.budget.used.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        if before + bytes > self.budget.max {
            return Err(IntakeError::BuffersFull);
        }
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Patience {
    /// The next frame of `body`, in time; `None` at its end.
    async fn frame(&self, body: &mut Incoming) -> Result<Option<Frame<Bytes>>, IntakeError> {
        let end = self.since + self.total;
        let due = end.min(shell::clock::now() + self.stall);
        match tokio::time::timeout_at(due.into(), body.frame()).await {
            Ok(frame) => frame.transpose().map_err(|_| IntakeError::Aborted),
            Err(_) if due == end => Err(IntakeError::Slow { after: self.total }),
            Err(_) => Err(IntakeError::Stalled { after: self.stall }),
        }
    }
}

/// Takes `body` in, whole.
pub(crate) async fn take_in(
    headers: &HeaderMap,
    mut body: Incoming,
    budget: &Arc<Budget>,
    max: u64,
    patience: Patience,
) -> Result<(Payload, Facts), IntakeError> {
    if body.size_hint().lower() > max {
        if !headers.contains_key(http::header::EXPECT) {
            discard(&mut body, patience).await;
        }
        return Err(IntakeError::TooLarge { max });
    }
    let read = read(&mut body, budget, max, patience).await;
    if let Err(IntakeError::TooLarge { .. } | IntakeError::Malformed(_)) = &read {
        discard(&mut body, patience).await;
    }
    let (payload, reader) = read?;
    Ok((payload, reader.finish()?))
}

/// Reads as long as there is hope; after an error nothing of the body is held any more.
async fn read(
    body: &mut Incoming,
    budget: &Arc<Budget>,
    max: u64,
    patience: Patience,
) -> Result<(Payload, FactReader), IntakeError> {
    let mut share = Share {
        budget: Arc::clone(budget),
        bytes: 0,
    };
    let mut pieces = Vec::new();
    let mut tail = BytesMut::new();
    let mut reader = FactReader::default();
    while let Some(frame) = patience.frame(body).await? {
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if share.bytes + data.len() as u64 > max {
            return Err(IntakeError::TooLarge { max });
        }
        share.grow(data.len() as u64)?;
        reader.push(&data)?;
        if data.len() >= SMALL || body.is_end_stream() && tail.is_empty() {
            flush(&mut tail, &mut pieces);
            pieces.push(data);
        } else {
            tail.extend_from_slice(&data);
            if tail.len() >= 4 * SMALL {
                flush(&mut tail, &mut pieces);
            }
        }
    }
    flush(&mut tail, &mut pieces);
    let kept = Kept {
        pieces,
        _share: Some(share),
    };
    Ok((Payload(Arc::new(kept)), reader))
}

fn flush(tail: &mut BytesMut, pieces: &mut Vec<Bytes>) {
    if !tail.is_empty() {
        pieces.push(tail.split().freeze());
    }
}

async fn discard(body: &mut Incoming, patience: Patience) {
    let mut left = DISCARD;
    while let Ok(Some(frame)) = patience.frame(body).await {
        let size = frame.data_ref().map_or(0, Bytes::len) as u64;
        match left.checked_sub(size) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

impl Payload {
    /// No body at all.
    pub(crate) fn empty() -> Self {
        Self::of(Vec::new())
    }

    /// A body that counts against no budget.
    pub(crate) fn of(pieces: Vec<Bytes>) -> Self {
        Self(Arc::new(Kept {
            pieces,
            _share: None,
        }))
    }

    /// As it came, piece by piece.
    pub(crate) fn pieces(&self) -> &[Bytes] {
        &self.0.pieces
    }

    /// Bytes in all.
    pub(crate) fn len(&self) -> u64 {
        self.0.pieces.iter().map(|piece| piece.len() as u64).sum()
    }
}
