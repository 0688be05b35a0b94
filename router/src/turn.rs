//! Lets a request's body come in by many pieces at a time. hyper reads one piece each
//! time a connection is polled and then lets all others have their turn: of eight large
//! bodies that come at once, none finds its memory in the cache when its turn comes again.

use std::cell::Cell;
use std::task::{Context, Poll};

/// Bytes that come in before others have their turn: what a body with an image has.
const TURN: usize = 1 << 20;
/// A piece counts for so many bytes at least, for what it costs beside them.
const LEAST: usize = 16 * 1024;

thread_local! {
    /// What came in. Set and read within one call of a connection's poll.
    static CAME: Cell<usize> = const { Cell::new(0) };
}

/// Notes that a piece of the body came in, of so many bytes, and that there may be more.
pub(crate) fn came(bytes: usize) {
    CAME.set(CAME.get() + bytes.max(LEAST));
}

/// Polls again as long as pieces come in, until they are a [`TURN`].
pub(crate) fn of_pieces<T>(
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> impl FnMut(&mut Context<'_>) -> Poll<T> {
    move |cx| {
        let mut came = 0;
        loop {
            CAME.set(0);
            let polled = poll(cx);
            came += CAME.get();
            // Whoever took the last piece has woken this task for the next.
            if polled.is_ready() || CAME.get() == 0 || came >= TURN {
                return polled;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// How often a connection is polled in one turn, at which so many pieces come in.
    fn polls(mut pieces: usize, bytes: usize) -> usize {
        let mut polls = 0;
        let mut turn = of_pieces(|_| {
            polls += 1;
            if pieces > 0 {
                pieces -= 1;
                came(bytes);
            }
            Poll::<()>::Pending
        });
        let turned = turn(&mut Context::from_waker(Waker::noop()));
        drop(turn);
        assert!(turned.is_pending());
        polls
    }

    #[test]
    fn a_turn_goes_on_while_pieces_come_in_and_ends_for_others() {
        const READ: usize = 64 * 1024;
        assert_eq!(polls(0, READ), 1);
        assert_eq!(polls(3, READ), 4);
        assert_eq!(polls(100, READ), 16);
        assert_eq!(polls(100, 1), 64);
    }
}
