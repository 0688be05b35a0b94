//! Runs reconciliations: one at a time for each object, in the order in which
//! they were asked for, and as many objects at once as there are. What is bounded
//! is the calls that they make ([`crate::turns`]). The runner that comes with
//! kube keeps waiting objects in no order and polls everything that is under way
//! at each step; with a thousand objects both tell.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::future::{Future, pending};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::channel::mpsc;
use futures::stream::FuturesUnordered;
use shell::clock;

use crate::key::Key;

/// A reconciliation that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Of which object.
    pub key: Key,
    /// How long it waits for further events that it can answer too.
    pub gather: Duration,
}

/// Reconciles what is asked for until nobody can ask any more. `step` returns
/// after how long it wants to look at the object again.
pub async fn drive<F>(mut asked: mpsc::UnboundedReceiver<Ask>, step: impl Fn(Key) -> F)
where
    F: Future<Output = Option<Duration>>,
{
    let mut agenda = Agenda::default();
    let mut work = FuturesUnordered::new();
    loop {
        while let Some(key) = agenda.begin(clock::now()) {
            let done = step(key.clone());
            work.push(async move { (key, done.await) });
        }
        let due = agenda.next();
        let alarm = async {
            match due {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => pending().await,
            }
        };
        tokio::select! {
            ask = asked.next() => match ask {
                Some(Ask { key, gather }) => agenda.ask(key, clock::now() + gather),
                None => return,
            },
            Some((key, again)) = work.next(), if !work.is_empty() => {
                agenda.end(&key);
                if let Some(wait) = again {
                    agenda.ask(key, clock::now() + wait);
                }
            }
            () = alarm => {}
        }
    }
}

/// What is to be done when, and what is under way.
#[derive(Debug, Default)]
struct Agenda {
    /// What may begin, by its time.
    due: BTreeSet<(Instant, Key)>,
    /// The time of each object that is asked for. Those that are under way wait
    /// for their end whatever the time is.
    times: HashMap<Key, Instant>,
    running: HashSet<Key>,
}

impl Agenda {
    /// Asks for an object at a time; the earliest of several counts.
    fn ask(&mut self, key: Key, at: Instant) {
        let at = match self.times.get(&key) {
            Some(earlier) if *earlier <= at => return,
            Some(later) => {
                self.due.remove(&(*later, key.clone()));
                at
            }
            None => at,
        };
        if !self.running.contains(&key) {
            self.due.insert((at, key.clone()));
        }
        self.times.insert(key, at);
    }

    /// The next object whose time has come; it is under way from here on.
    fn begin(&mut self, now: Instant) -> Option<Key> {
        if self.next()? > now {
            return None;
        }
        let (_, key) = self.due.pop_first()?;
        self.times.remove(&key);
        self.running.insert(key.clone());
        Some(key)
    }

    /// It is no longer under way; what was asked meanwhile is due.
    fn end(&mut self, key: &Key) {
        self.running.remove(key);
        if let Some(at) = self.times.get(key) {
            self.due.insert((*at, key.clone()));
        }
    }

    /// When the next object may begin.
    fn next(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn key(name: &str) -> Key {
        Key::new("ns", name)
    }

    #[test]
    fn objects_begin_in_the_order_of_their_times_and_not_before() {
        let mut agenda = Agenda::default();
        let start = clock::now();
        agenda.ask(key("a"), start + 2 * SECOND);
        agenda.ask(key("b"), start + SECOND);
        assert_eq!(agenda.begin(start), None);
        let late = start + 3 * SECOND;
        assert_eq!(agenda.begin(late), Some(key("b")));
        assert_eq!(agenda.begin(late), Some(key("a")));
        assert_eq!(agenda.begin(late), None);
    }

    #[test]
    fn the_earliest_of_several_times_counts_and_once() {
        let mut agenda = Agenda::default();
        let start = clock::now();
        agenda.ask(key("a"), start + 5 * SECOND);
        agenda.ask(key("a"), start + SECOND);
        agenda.ask(key("a"), start + 9 * SECOND);
        assert_eq!(agenda.next(), Some(start + SECOND));
        assert_eq!(agenda.begin(start + SECOND), Some(key("a")));
        agenda.end(&key("a"));
        assert_eq!(agenda.next(), None);
    }

    #[test]
    fn an_object_under_way_waits_for_its_end_and_holds_up_no_other() {
        let mut agenda = Agenda::default();
        let start = clock::now();
        agenda.ask(key("a"), start);
        assert_eq!(agenda.begin(start), Some(key("a")));
        agenda.ask(key("a"), start);
        agenda.ask(key("b"), start + SECOND);
        assert_eq!(agenda.begin(start), None);
        assert_eq!(agenda.begin(start + SECOND), Some(key("b")));
        agenda.end(&key("a"));
        assert_eq!(agenda.begin(start + SECOND), Some(key("a")));
    }

    #[tokio::test]
    async fn events_that_gather_are_answered_once_and_a_wish_to_look_again_is_kept() {
        let (sender, receiver) = mpsc::unbounded();
        let gather = Duration::from_millis(5);
        for name in ["a", "b", "a"] {
            let key = key(name);
            sender.unbounded_send(Ask { key, gather }).unwrap();
        }
        let sender = Cell::new(Some(sender));
        let steps = RefCell::new(Vec::new());
        drive(receiver, async |key: Key| {
            steps.borrow_mut().push(key.name.clone());
            let again = steps.borrow().len() == 2;
            // Nobody asks any more after the third step.
            if steps.borrow().len() == 3 {
                drop(sender.take());
            }
            again.then_some(gather)
        })
        .await;
        assert_eq!(*steps.borrow(), ["a", "b", "b"]);
    }
}
