//! The waiting room of one pool: first come, first served, bounded, with retries
//! in front. A short queue here beats long ones at the workers, because a place
//! is chosen when a slot is free.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::dispatch::member::Worker;
use crate::dispatch::reservation::Reservation;

/// Names a place in the room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

/// A request that waits.
#[derive(Debug)]
pub(crate) struct Waiter {
    /// Its place.
    pub(crate) ticket: Ticket,
    /// Its size.
    pub(crate) weight: u64,
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
        weight: u64,
        tried: Vec<Arc<Worker>>,
        first: bool,
    ) -> (Ticket, oneshot::Receiver<Reservation>) {
        let (reply, receiver) = oneshot::channel();
        let ticket = Ticket(self.next);
        self.next += 1;
        let waiter = Waiter {
            ticket,
            weight,
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
