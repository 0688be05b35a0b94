//! Takes in a request's body: counted against the limit of one body and the
//! limit of all, read by the fact reader as it arrives, kept as it came so that
//! a retry can send the same bytes.

use std::error::Error as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::Body as _;
use hyper::body::Incoming;

use crate::request::facts::{FactReader, Facts};
use crate::request::patience::{Late, Patience, Waiting};
use crate::request::scan::Malformed;
use crate::server::MAX_READ;
use crate::turn;

/// A piece that is smaller is copied, together with its neighbours: as long as it is kept,
/// so is all of the block that it was read into, and the budget counts the piece.
const SMALL: usize = MAX_READ / 2;
/// How much is read and thrown away of a body that is not kept, too large as it is or as
/// the router is full.
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
    /// Too slow.
    #[error(transparent)]
    Late(#[from] Late),
    /// The client broke off.
    #[error("the body broke off")]
    Aborted,
    /// What came is no part of a body.
    #[error("the chunks of the body are malformed")]
    Misframed,
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

/// Takes `body` in, whole.
pub(crate) async fn take_in(
    headers: &HeaderMap,
    mut body: Incoming,
    budget: &Arc<Budget>,
    max: u64,
    patience: Patience,
) -> Result<(Payload, Facts), IntakeError> {
    let mut waiting = patience.begin(shell::clock::now());
    if body.size_hint().lower() > max {
        if !headers.contains_key(http::header::EXPECT) {
            discard(&mut body, DISCARD, &mut waiting).await;
        }
        return Err(IntakeError::TooLarge { max });
    }
    let read = read(&mut body, budget, max, &mut waiting).await;
    if let Err(
        IntakeError::TooLarge { .. } | IntakeError::BuffersFull | IntakeError::Malformed(_),
    ) = &read
    {
        discard(&mut body, DISCARD, &mut waiting).await;
    }
    let (payload, reader) = read?;
    Ok((payload, reader.finish()?))
}

/// Reads a body that nobody wants and throws it away, if it is not longer than `max`.
pub(crate) async fn throw_away(
    headers: &HeaderMap,
    mut body: Incoming,
    max: u64,
    patience: Patience,
) {
    if body.size_hint().lower() <= max && !headers.contains_key(http::header::EXPECT) {
        let mut waiting = patience.begin(shell::clock::now());
        discard(&mut body, max, &mut waiting).await;
    }
}

/// Reads as long as there is hope; after an error nothing of the body is held any more.
async fn read(
    body: &mut Incoming,
    budget: &Arc<Budget>,
    max: u64,
    waiting: &mut Waiting,
) -> Result<(Payload, FactReader), IntakeError> {
    let mut share = Share {
        budget: Arc::clone(budget),
        bytes: 0,
    };
    let mut pieces = Pieces::default();
    let mut reader = FactReader::default();
    while let Some(data) = data(body, waiting).await? {
        if share.bytes + data.len() as u64 > max {
            return Err(IntakeError::TooLarge { max });
        }
        share.grow(data.len() as u64)?;
        reader.push(&data)?;
        if body.is_end_stream() && pieces.is_empty() {
            // The headers keep its block anyway.
            pieces.whole.push(data);
        } else {
            pieces.push(data);
        }
    }
    let kept = Kept {
        pieces: pieces.finish(),
        _share: Some(share),
    };
    Ok((Payload(Arc::new(kept)), reader))
}

/// A body as it comes in.
#[derive(Debug, Default)]
struct Pieces {
    whole: Vec<Bytes>,
    /// Of small ones, which belongs behind the whole ones.
    together: BytesMut,
}

impl Pieces {
    fn is_empty(&self) -> bool {
        self.whole.is_empty() && self.together.is_empty()
    }

    fn push(&mut self, piece: Bytes) {
        let is_small = piece.len() < SMALL;
        if !is_small || self.together.len() + piece.len() > MAX_READ {
            self.end_together();
        }
        match is_small {
            true => self.together.extend_from_slice(&piece),
            false => self.whole.push(piece),
        }
    }

    fn end_together(&mut self) {
        if !self.together.is_empty() {
            self.whole.push(self.together.split().freeze());
        }
    }

    fn finish(mut self) -> Vec<Bytes> {
        self.end_together();
        self.whole
    }
}

/// The next piece of `body`, in time; `None` at its end.
async fn data(body: &mut Incoming, waiting: &mut Waiting) -> Result<Option<Bytes>, IntakeError> {
    let next = waiting.next(|cx| Pin::new(&mut *body).poll_frame(cx));
    let Some(frame) = next.await? else {
        return Ok(None);
    };
    let frame = frame.map_err(|error| match is_misframed(&error) {
        true => IntakeError::Misframed,
        false => IntakeError::Aborted,
    })?;
    let data = frame.into_data().unwrap_or_default();
    waiting.came(data.len() as u64);
    if !body.is_end_stream() {
        turn::came(data.len());
    }
    Ok(Some(data))
}

fn is_misframed(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref());
    cause.is_some_and(|cause: &io::Error| {
        matches!(
            cause.kind(),
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData
        )
    })
}

/// A connection that is closed with bytes unread is reset, and its caller, still sending,
/// would not come to read the answer.
async fn discard(body: &mut Incoming, max: u64, waiting: &mut Waiting) {
    let mut left = max;
    while let Ok(Some(data)) = data(body, waiting).await {
        match left.checked_sub(data.len() as u64) {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However a body is cut, its pieces hold no block that they do not fill by half,
        /// but for the last and those between whole ones.
        #[test]
        fn small_pieces_let_go_of_the_blocks_they_were_read_into(
            lengths in prop::collection::vec(prop_oneof![1..200_usize, 1..SMALL, SMALL..MAX_READ], 0..40)
        ) {
            let mut pieces = Pieces::default();
            let mut sent = Vec::new();
            let mut small = 0;
            for (at, length) in lengths.iter().enumerate() {
                let mut block = BytesMut::zeroed(MAX_READ);
                block.fill(u8::try_from(at).unwrap());
                let read = block.split_to(*length).freeze();
                pieces.push(read.clone());
                sent.extend_from_slice(&read);
                drop(block);
                prop_assert_eq!(read.is_unique(), *length < SMALL);
                small += usize::from(*length < SMALL);
            }
            let kept = pieces.finish();
            prop_assert_eq!(kept.concat(), sent);
            if small == lengths.len() {
                prop_assert!(kept.iter().rev().skip(1).all(|piece| piece.len() > SMALL));
            }
        }
    }
}
