//! What the scheduler knows: who waits, who runs and how far, and what each KV
//! slot holds. Changed only through the few transitions here, so that a test
//! can play any history without a model.

use std::collections::VecDeque;
use std::time::Instant;

use super::key::Key;
use super::plan::Admission;

/// A sequence's number, unique for the life of the process.
pub type SequenceId = u64;

/// What the scheduler may spend.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Tokens that all slots may hold together.
    pub kv_tokens: usize,
    /// Prompt tokens computed between two decode steps.
    pub chunk_tokens: usize,
    /// Image tiles encoded between two decode steps; one image may exceed it.
    pub tiles: usize,
}

/// A sequence that has no slot.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// Which.
    pub id: SequenceId,
    /// Prompt, and the answer so far of one that was preempted.
    pub key: Key,
    /// Whether a token was sampled before it was preempted.
    pub started: bool,
    /// Tiles of each of its images that must be encoded first, in their order.
    pub tiles: Vec<usize>,
    /// When it is given up, if it cannot come in then; none once it ran.
    pub deadline: Option<Instant>,
}

/// A sequence that holds a slot.
#[derive(Clone, Debug)]
pub struct Running {
    /// Which.
    pub id: SequenceId,
    /// Its slot.
    pub slot: usize,
    /// Prompt and answer so far.
    pub key: Key,
    /// Positions whose keys and values the slot holds.
    pub computed: usize,
    /// Whether a token was sampled.
    pub started: bool,
    /// Tiles of each of its images that must be encoded first, in their order.
    pub tiles: Vec<usize>,
    /// Chunks that later sequences were given before it.
    pub passed_over: u32,
}

impl Running {
    /// Positions still to compute before a token can be sampled.
    #[must_use]
    pub fn missing(&self) -> usize {
        self.key.len() - self.computed
    }

    /// Whether one token follows from the last.
    #[must_use]
    pub fn decodes(&self) -> bool {
        self.started && self.missing() == 1
    }
}

/// What a KV slot holds.
#[derive(Clone, Debug, Default)]
pub enum Slot {
    /// Nothing.
    #[default]
    Empty,
    /// A running sequence.
    Owned,
    /// What a finished sequence left, for the next one that begins like it.
    Cached {
        /// What it holds.
        key: Key,
        /// When it was left, in admissions.
        left_at: u64,
    },
}

/// Everything a decision rests on.
#[derive(Clone, Debug)]
pub struct State {
    /// What may be spent.
    pub budget: Budget,
    /// First come, first served.
    pub waiting: VecDeque<Waiting>,
    /// In the order of admission.
    pub running: Vec<Running>,
    /// By slot number.
    pub slots: Vec<Slot>,
    clock: u64,
}

impl State {
    /// Nothing waits, nothing runs.
    #[must_use]
    pub fn new(budget: Budget, slots: usize) -> Self {
        Self {
            budget,
            waiting: VecDeque::new(),
            running: Vec::new(),
            slots: vec![Slot::Empty; slots],
            clock: 0,
        }
    }

    /// Tokens that running sequences hold or will have computed.
    #[must_use]
    pub fn committed(&self) -> usize {
        self.running.iter().map(|running| running.key.len()).sum()
    }

    /// Tokens kept for later sequences.
    #[must_use]
    pub fn cached(&self) -> usize {
        self.slots
            .iter()
            .map(|slot| match slot {
                Slot::Cached { key, .. } => key.len(),
                _ => 0,
            })
            .sum()
    }

    /// The running sequence with this number.
    pub fn running_mut(&mut self, id: SequenceId) -> Option<&mut Running> {
        self.running.iter_mut().find(|running| running.id == id)
    }

    /// Moves a waiting sequence into its slot.
    pub fn admit(&mut self, admission: &Admission) {
        let Some(at) = self
            .waiting
            .iter()
            .position(|waiting| waiting.id == admission.id)
        else {
            return;
        };
        let Some(waiting) = self.waiting.remove(at) else {
            return;
        };
        self.slots[admission.slot] = Slot::Owned;
        self.running.push(Running {
            id: waiting.id,
            slot: admission.slot,
            key: waiting.key,
            computed: admission.reused(),
            started: waiting.started,
            tiles: waiting.tiles,
            passed_over: 0,
        });
    }

    /// Puts a running sequence back in front of those that wait. Its slot is emptied.
    pub fn preempt(&mut self, id: SequenceId) -> Option<usize> {
        let running = self.take(id)?;
        self.slots[running.slot] = Slot::Empty;
        self.waiting.push_front(Waiting {
            id,
            key: running.key,
            started: running.started,
            tiles: running.tiles,
            deadline: None,
        });
        Some(running.slot)
    }

    /// Ends a running sequence; what its slot holds stays for others to begin with.
    pub fn finish(&mut self, id: SequenceId) -> Option<usize> {
        let Running {
            slot,
            mut key,
            computed,
            ..
        } = self.take(id)?;
        key.truncate(computed);
        self.clock += 1;
        self.slots[slot] = if key.is_empty() {
            Slot::Empty
        } else {
            Slot::Cached {
                key,
                left_at: self.clock,
            }
        };
        Some(slot)
    }

    /// Ends a running sequence whose slot can no longer be trusted.
    pub fn discard(&mut self, id: SequenceId) -> Option<usize> {
        let running = self.take(id)?;
        self.slots[running.slot] = Slot::Empty;
        Some(running.slot)
    }

    /// Forgets what a slot kept.
    pub fn evict(&mut self, slot: usize) {
        self.slots[slot] = Slot::Empty;
    }

    fn take(&mut self, id: SequenceId) -> Option<Running> {
        let at = self.running.iter().position(|running| running.id == id)?;
        Some(self.running.remove(at))
    }
}
