//! Where one frame of a stream ends and the next begins. Only whole frames are
//! passed on: when a worker dies in the middle of one, what the client has is
//! well formed, and one error frame can follow. As workers write a frame at a
//! time, this almost never holds anything back.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use protocol::error::ApiError;
use protocol::llava::{self, Code};
use protocol::{nul, sse};

/// A frame larger than this is passed on in pieces.
const MAX_HELD: usize = 256 * 1024;
const LLAVA_PAUSE: Duration = Duration::from_secs(5);

/// How an answer is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Server-sent events.
    Sse,
    /// LLaVA's zero bytes.
    Nul,
    /// Nothing we know; bytes pass as they are.
    Opaque,
}

/// Cuts a stream at the ends of its frames.
#[derive(Debug)]
pub(crate) struct Cutter {
    framing: Framing,
    held: BytesMut,
    torn: bool,
    done: bool,
}

impl Framing {
    /// The framing of an answer with this content type, to a request on this path.
    pub(crate) fn of(content_type: Option<&[u8]>, is_llava: bool) -> Self {
        if is_llava {
            return Self::Nul;
        }
        match content_type {
            Some(kind) if kind.starts_with(sse::CONTENT_TYPE.as_bytes()) => Self::Sse,
            _ => Self::Opaque,
        }
    }

    /// What a client skips, and what keeps its connection open.
    pub(crate) fn keep_alive(self) -> Option<Bytes> {
        match self {
            Self::Sse => Some(Bytes::from_static(sse::KEEP_ALIVE)),
            Self::Nul => Some(Bytes::from_static(&[0])),
            Self::Opaque => None,
        }
    }

    /// How long a stream may be silent. LLaVA's clients give up after 10 s.
    pub(crate) fn pause(self, usual: Duration) -> Duration {
        match self {
            Self::Nul => usual.min(LLAVA_PAUSE),
            _ => usual,
        }
    }

    /// The frame that says what went wrong.
    pub(crate) fn error(self, error: &ApiError, code: Code) -> Option<Bytes> {
        match self {
            Self::Sse => Some(sse::event(&error.to_json())),
            Self::Nul => {
                let chunk = llava::Chunk {
                    text: format!("{} ({})", llava::SERVER_ERROR, error.message),
                    error_code: code as u8,
                };
                serde_json::to_string(&chunk)
                    .ok()
                    .map(|json| nul::frame(&json))
            }
            Self::Opaque => None,
        }
    }

    /// The end of the last whole frame in `bytes`.
    fn last_end(self, bytes: &[u8]) -> Option<usize> {
        match self {
            Self::Sse => memchr::memrchr_iter(b'\n', bytes)
                .find(|&at| {
                    let before = &bytes[..at];
                    before.ends_with(b"\n") || before.ends_with(b"\n\r")
                })
                .map(|at| at + 1),
            Self::Nul => memchr::memrchr(0, bytes).map(|at| at + 1),
            Self::Opaque => Some(bytes.len()),
        }
    }
}

impl Cutter {
    /// A cutter at the start of a stream.
    pub(crate) fn new(framing: Framing) -> Self {
        Self {
            framing,
            held: BytesMut::new(),
            torn: false,
            done: false,
        }
    }

    /// How the stream is framed.
    pub(crate) fn framing(&self) -> Framing {
        self.framing
    }

    /// Takes the next bytes and returns the whole frames there are, if any.
    pub(crate) fn pass(&mut self, mut data: Bytes) -> Option<Bytes> {
        if self.framing == Framing::Opaque {
            return Some(data);
        }
        if self.held.is_empty()
            && let Some(end) = self.framing.last_end(&data)
        {
            self.held.extend_from_slice(&data.split_off(end));
            self.torn = false;
            return Some(self.sent(data));
        }
        self.held.extend_from_slice(&data);
        let end = match self.framing.last_end(&self.held) {
            Some(end) => {
                self.torn = false;
                end
            }
            None if self.held.len() > MAX_HELD || self.torn => {
                self.torn = true;
                // Line breaks stay: they may be the first half of its end.
                self.held.trim_ascii_end().len()
            }
            None => return None,
        };
        let whole = self.held.split_to(end).freeze();
        (!whole.is_empty()).then(|| self.sent(whole))
    }

    /// What is left when the worker ended the stream as it meant to.
    pub(crate) fn rest(&mut self) -> Option<Bytes> {
        let rest = self.held.split().freeze();
        (!rest.is_empty()).then_some(rest)
    }

    /// Whether the worker said that nothing more comes.
    pub(crate) fn is_done(&self) -> bool {
        self.done
    }

    /// Whether part of a frame is held back.
    pub(crate) fn holds_some(&self) -> bool {
        !self.held.is_empty()
    }

    /// What ends the stream when the worker broke it off. Nothing, when its last
    /// frame had been sent.
    pub(crate) fn broken(&mut self, error: &ApiError, code: Code) -> Option<Bytes> {
        self.held.clear();
        if self.done {
            return None;
        }
        let frame = self.framing.error(error, code)?;
        if !self.torn {
            return Some(frame);
        }
        let end: &[u8] = match self.framing {
            Framing::Nul => &[0],
            _ => b"\n\n",
        };
        Some([end, &frame].concat().into())
    }

    /// Whether a comment may be put in here.
    pub(crate) fn is_between_frames(&self) -> bool {
        !self.torn
    }

    fn sent(&mut self, whole: Bytes) -> Bytes {
        if self.framing == Framing::Sse {
            let text = whole.trim_ascii_end();
            self.done = text.ends_with(sse::DONE.as_bytes());
        }
        whole
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use protocol::error::ErrorKind;

    use super::*;

    fn died() -> ApiError {
        ApiError::new(ErrorKind::StreamError, "worker_lost", "gone")
    }

    fn run(cutter: &mut Cutter, pieces: &[&[u8]]) -> Vec<u8> {
        let pass = |piece: &&[u8]| cutter.pass(Bytes::copy_from_slice(piece));
        pieces.iter().filter_map(pass).flatten().collect()
    }

    #[test]
    fn half_a_frame_is_never_followed_by_an_error() {
        let mut cutter = Cutter::new(Framing::Sse);
        let sent = run(&mut cutter, &[b"data: 1\n\nda", b"ta: 2\n\nda", b"ta: 3"]);
        assert_eq!(sent, b"data: 1\n\ndata: 2\n\n");
        let end = cutter.broken(&died(), Code::Unreachable).unwrap();
        assert!(end.starts_with(b"data: {\"error\":") && end.ends_with(b"}\n\n"));
    }

    #[test]
    fn a_stream_that_said_done_is_not_broken() {
        let mut cutter = Cutter::new(Framing::Sse);
        run(&mut cutter, &[b"data: 1\r\n\r\ndata: [DO", b"NE]\r\n\r\n"]);
        assert_eq!(cutter.broken(&died(), Code::Unreachable), None);
    }

    #[test]
    fn llava_frames_end_in_a_chunk_with_a_code() {
        let mut cutter = Cutter::new(Framing::Nul);
        assert_eq!(
            run(&mut cutter, &[b"{\"a\":1}\0{\"b", b"\":2}"]),
            b"{\"a\":1}\0"
        );
        let end = cutter.broken(&died(), Code::Unreachable).unwrap();
        let chunk: llava::Chunk = serde_json::from_slice(end.strip_suffix(&[0]).unwrap()).unwrap();
        assert_eq!(chunk.error_code, 3);
        assert!(chunk.text.starts_with(llava::SERVER_ERROR));
    }

    #[test]
    fn a_huge_frame_is_not_held_without_bound() {
        let mut cutter = Cutter::new(Framing::Sse);
        let big = vec![b'x'; MAX_HELD + 1];
        assert_eq!(run(&mut cutter, &[&big, b"yy"]).len(), big.len() + 2);
        assert!(!cutter.is_between_frames());
        assert_eq!(run(&mut cutter, &[b"\n", b"\n"]), b"\n\n");
        assert!(cutter.is_between_frames());
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_bytes(text in "[ab\\n\\r]{0,80}", size in 1usize..9, nul in any::<bool>()) {
            let text = if nul { text.replace('a', "\0") } else { text };
            let mut cutter = Cutter::new(if nul { Framing::Nul } else { Framing::Sse });
            let pieces: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
            let mut sent = run(&mut cutter, &pieces);
            sent.extend(cutter.rest().unwrap_or_default());
            prop_assert_eq!(sent, text.as_bytes());
        }
    }
}
