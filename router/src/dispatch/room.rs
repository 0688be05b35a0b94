//! The waiting room of one pool: first come, first served, bounded, with retries
//! in front. A short queue here beats long ones at the workers, because a place
//! is chosen when a slot is free.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::dispatch::member::Worker;
use crate::dispatch::reservation::{Claim, Reservation};

/// Names a place in the room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

/// A request that waits.
#[derive(Debug)]
pub(crate) struct Waiter {
    /// Its place.
    pub(crate) ticket: Ticket,
    /// What it takes.
    pub(crate) claim: Claim,
    /// Workers that it must not go to.
    pub(crate) tried: Vec<Arc<Worker>>,
    /// Where its reservation goes.
    pub(crate) reply: oneshot::Sender<Reservation>,
}

/// The room.
#[derive(Debug, Default)]
pub(crate) struct Room {
    waiters: VecDeque<Waiter>,
    next: u64,
}

impl Room {
    /// Requests that wait.
    pub(crate) fn len(&self) -> usize {
        self.waiters.len()
    }

    /// Takes a place, in front if `first`.
    pub(crate) fn enter(
        &mut self,
        claim: Claim,
        tried: Vec<Arc<Worker>>,
        first: bool,
    ) -> (Ticket, oneshot::Receiver<Reservation>) {
        let (reply, receiver) = oneshot::channel();
        let ticket = Ticket(self.next);
        self.next += 1;
        let waiter = Waiter {
            ticket,
            claim,
            tried,
            reply,
        };
        if first {
            self.waiters.push_front(waiter);
        } else {
            self.waiters.push_back(waiter);
        }
        (ticket, receiver)
    }

    /// Gives a place up.
    pub(crate) fn leave(&mut self, ticket: Ticket) {
        self.waiters.retain(|waiter| waiter.ticket != ticket);
    }

    /// Sends all away.
    pub(crate) fn clear(&mut self) {
        self.waiters.clear();
    }

    /// Lets `place` try each waiter in turn until it says that all is full, and
    /// returns those that got a place with what they got.
    pub(crate) fn place<T>(
        &mut self,
        mut place: impl FnMut(&Waiter) -> Placing<T>,
    ) -> Vec<(Waiter, T)> {
        let mut placed = Vec::new();
        let mut at = 0;
        while let Some(waiter) = self.waiters.get(at) {
            match place(waiter) {
                Placing::Placed(what) => placed.extend(self.waiters.remove(at).map(|w| (w, what))),
                Placing::NotThisOne => at += 1,
                Placing::AllFull => break,
            }
        }
        placed
    }
}

/// What became of a waiter.
#[derive(Debug)]
pub(crate) enum Placing<T> {
    /// It goes.
    Placed(T),
    /// Where there is room, it has been already.
    NotThisOne,
    /// There is no room for anyone.
    AllFull,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A room of requests that came in this order, told apart by their weights.
    fn room(weights: [u64; 4]) -> (Room, [Ticket; 4]) {
        let mut room = Room::default();
        let tickets = weights.map(|weight| room.enter(claim(weight), Vec::new(), false).0);
        (room, tickets)
    }

    fn claim(weight: u64) -> Claim {
        Claim {
            weight,
            streams: false,
        }
    }

    fn placed(room: &mut Room, place: impl FnMut(&Waiter) -> Placing<()>) -> Vec<u64> {
        let placed = room.place(place).into_iter();
        placed.map(|(waiter, ())| waiter.claim.weight).collect()
    }

    #[test]
    fn who_came_first_goes_first_and_a_retry_before_all() {
        let (mut room, tickets) = room([1, 2, 3, 4]);
        room.enter(claim(5), Vec::new(), true);
        room.leave(tickets[1]);
        assert_eq!(placed(&mut room, |_| Placing::Placed(())), [5, 1, 3, 4]);
        assert_eq!(room.len(), 0);
    }

    #[test]
    fn one_that_no_free_worker_suits_keeps_its_place_and_holds_up_nobody() {
        let (mut room, _) = room([1, 2, 3, 4]);
        let mut free = 2;
        let gone = placed(&mut room, |waiter| match waiter.claim.weight {
            1 => Placing::NotThisOne,
            _ if free == 0 => Placing::AllFull,
            _ => {
                free -= 1;
                Placing::Placed(())
            }
        });
        assert_eq!(gone, [2, 3]);
        assert_eq!(placed(&mut room, |_| Placing::Placed(())), [1, 4]);
    }
}
