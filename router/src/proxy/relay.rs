//! An answer on its way from a worker to a caller. There is no task and no
//! buffer between them: a slow caller slows the worker down, and a caller that
//! leaves drops this, which closes the worker's connection and frees the slot.

use std::fmt;
use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use protocol::llava::Code;
use tokio::time::Sleep;

use crate::dispatch::health::Failure;
use crate::dispatch::reservation::Reservation;
use crate::end::Wait;
use crate::metrics::meter::Phase;
use crate::proxy::beat::Beat;
use crate::proxy::cut::{Cutter, Framing};
use crate::refusal::{DRAINING, Refusal};
use crate::trace::RequestSpan;
use crate::upstream::exchange::Answer;

/// An answer on its way.
pub(crate) struct Relay {
    answer: Option<Answer>,
    reservation: Reservation,
    cutter: Cutter,
    next: Option<Bytes>,
    pace: RelayPace,
    trail: Trail,
    heard: Instant,
    sent: Instant,
    beat: Beat,
    /// Whether the timer says when to look for the next piece, and nothing else.
    rests: bool,
    timer: Pin<Box<Sleep>>,
}

/// The time limits of a relay.
#[derive(Debug)]
pub(crate) struct RelayPace {
    /// Between two pieces.
    pub(crate) chunk_timeout: Duration,
    /// Of silence before a keep-alive.
    pub(crate) keep_alive: Duration,
    /// Of the whole request.
    pub(crate) deadline: Instant,
    /// Of the router.
    pub(crate) over: Wait,
}

/// What is noted of a request when its answer ends.
#[derive(Debug)]
pub(crate) struct Trail {
    /// When it came.
    pub(crate) started: Instant,
    /// Its span, if spans are sent.
    pub(crate) span: Option<RequestSpan>,
}

impl Relay {
    /// Relays what follows `first`.
    pub(crate) fn new(
        answer: Answer,
        reservation: Reservation,
        mut cutter: Cutter,
        first: Bytes,
        pace: RelayPace,
        trail: Trail,
    ) -> Self {
        let now = shell::clock::now();
        let next = cutter.pass(first);
        let mut relay = Self {
            answer: Some(answer),
            reservation,
            cutter,
            next,
            pace,
            trail,
            heard: now,
            sent: now,
            beat: Beat::new(now),
            rests: false,
            timer: Box::pin(tokio::time::sleep_until(now.into())),
        };
        relay.rearm();
        if relay.answer.as_ref().is_some_and(Answer::is_done) {
            relay.finish();
        }
        relay
    }

    /// The next bytes for the caller.
    pub(crate) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if let Some(next) = self.next.take() {
            return Poll::Ready(Some(Ok(next)));
        }
        if self.answer.is_some() && self.pace.over.is_over(cx) {
            return self.cut(DRAINING, "the router went down");
        }
        if self.rests {
            ready!(self.timer.as_mut().poll(cx));
            self.rests = false;
            self.rearm();
        }
        loop {
            let Some(answer) = &mut self.answer else {
                return Poll::Ready(self.cutter.rest().map(Ok));
            };
            match answer.poll_data(cx) {
                Poll::Ready(Some(Ok(data))) => {
                    let done = answer.is_done();
                    let now = self.note_arrival();
                    let next_look = self.beat.next_look(data.len(), now);
                    if done {
                        self.finish();
                    } else if now >= self.pace.deadline {
                        return self.out_of_time();
                    } else if let Some(at) = next_look {
                        self.rests = true;
                        self.timer.as_mut().reset(at.into());
                    }
                    if let Some(whole) = self.cutter.pass(data) {
                        return Poll::Ready(Some(Ok(whole)));
                    }
                    if self.rests {
                        return self.poll_data(cx);
                    }
                }
                // All is there that was to come: no matter how the connection ends.
                Poll::Ready(Some(Err(_))) if self.cutter.is_done() => self.finish(),
                Poll::Ready(Some(Err(error))) => {
                    self.reservation.pool().meter.upstream_aborts.up();
                    let now = shell::clock::now();
                    self.reservation
                        .failed(Failure::Broken, error.to_string(), now);
                    return self.cut("worker_lost", "the worker broke off");
                }
                Poll::Ready(None) => self.finish(),
                Poll::Pending => {
                    if self.timer.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    if let Some(polled) = self.timer_fired() {
                        return polled;
                    }
                }
            }
        }
    }

    /// When the request must be over, if it still runs.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.answer.as_ref().map(|_| self.pace.deadline)
    }

    /// Whether everything was relayed.
    pub(crate) fn is_end(&self) -> bool {
        self.answer.is_none() && self.next.is_none() && !self.cutter.holds_some()
    }

    /// The length of what is left, where the worker told it and nothing of ours, such
    /// as a comment, can come between.
    pub(crate) fn exact_len(&self) -> Option<u64> {
        if self.cutter.framing() != Framing::Opaque {
            return None;
        }
        let rest = match &self.answer {
            Some(answer) => answer.exact_len()?,
            None => 0,
        };
        Some(rest + self.next.as_ref().map_or(0, Bytes::len) as u64)
    }

    fn note_arrival(&mut self) -> Instant {
        let now = shell::clock::now();
        let gap = now.saturating_duration_since(self.heard);
        self.reservation.pool().meter.gap.observe(gap);
        self.reservation.worker().heard(now);
        self.heard = now;
        self.sent = now;
        now
    }

    /// The timer is not moved for each piece; when it fires, it is seen what is due.
    fn timer_fired(&mut self) -> Option<Poll<Option<io::Result<Bytes>>>> {
        let now = shell::clock::now();
        if now >= self.pace.deadline {
            return Some(self.out_of_time());
        }
        if now >= self.heard + self.pace.chunk_timeout {
            return Some(self.cut("chunk_timeout", "the worker fell silent"));
        }
        let keep_alive = self.cutter.framing().keep_alive();
        if let Some(comment) = keep_alive
            && now >= self.sent + self.pace.keep_alive
        {
            self.sent = now;
            self.rearm();
            if self.cutter.is_between_frames() {
                return Some(Poll::Ready(Some(Ok(comment))));
            }
        }
        self.rearm();
        None
    }

    fn out_of_time(&mut self) -> Poll<Option<io::Result<Bytes>>> {
        self.cut("request_timeout", "the request took longer than it may")
    }

    fn rearm(&mut self) {
        let mut due = (self.heard + self.pace.chunk_timeout).min(self.pace.deadline);
        if self.cutter.framing().keep_alive().is_some() {
            due = due.min(self.sent + self.pace.keep_alive);
        }
        self.timer.as_mut().reset(due.into());
    }

    /// Ends a stream that did not end by itself: with an error frame where the
    /// framing has one, by cutting the connection where it has none.
    fn cut(
        &mut self,
        code: &'static str,
        message: &'static str,
    ) -> Poll<Option<io::Result<Bytes>>> {
        if let Some(span) = &self.trail.span {
            span.broken(code);
        }
        self.end();
        let error = Refusal::stream_broken(code, message);
        let frame = self.cutter.broken(&error, Code::Unreachable);
        let opaque = self.cutter.framing().keep_alive().is_none();
        Poll::Ready(match frame {
            None if opaque => Some(Err(io::Error::other(message))),
            frame => frame.map(Ok),
        })
    }

    /// The worker ended the stream as it meant to.
    fn finish(&mut self) {
        self.reservation.finish();
        self.end();
    }

    /// Ends it for a caller that is told something else.
    pub(crate) fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.answer = None;
        let took = shell::clock::now().saturating_duration_since(self.trail.started);
        self.reservation.pool().meter.duration.observe(took);
        self.reservation.release();
        self.trail.span = None;
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if self.answer.is_some() {
            let meter = &self.reservation.pool().meter;
            meter.caller_aborts.up(Phase::Stream);
            if let Some(span) = &self.trail.span {
                span.broken("caller_left");
            }
        }
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").finish_non_exhaustive()
    }
}
