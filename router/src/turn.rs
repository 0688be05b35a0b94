//! Lets a request's body come in by several pieces at a time. hyper reads one piece each
//! time a connection is polled and then lets all others have their turn: of eight large
//! bodies that come at once, none finds its memory in the cache when its turn comes again.

use std::cell::Cell;
use std::task::{Context, Poll};

/// Pieces that come in before others have their turn.
const PIECES: usize = 8;

thread_local! {
    /// Whether a piece came in. Set and read within one call of a connection's poll.
    static CAME: Cell<bool> = const { Cell::new(false) };
}

/// Notes that a piece of the body came in, and that there may be more.
pub(crate) fn came() {
    CAME.set(true);
}

/// Polls again as long as pieces come in, up to [`PIECES`] times.
pub(crate) fn of_pieces<T>(
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> impl FnMut(&mut Context<'_>) -> Poll<T> {
    move |cx| {
        for _ in 1..PIECES {
            CAME.set(false);
            let polled = poll(cx);
            if polled.is_ready() || !CAME.get() {
                return polled;
            }
        }
        // Whoever took the last piece has woken this task for the next.
        poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// How often a connection is polled in one turn, at which so many pieces come in.
    fn polls(mut pieces: usize) -> usize {
        let mut polls = 0;
        let mut turn = of_pieces(|_| {
            polls += 1;
            if pieces > 0 {
                pieces -= 1;
                came();
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
        assert_eq!(polls(0), 1);
        assert_eq!(polls(3), 4);
        assert_eq!(polls(100), PIECES);
    }
}
