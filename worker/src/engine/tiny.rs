//! A model for tests, small enough to know every answer beforehand, and steps
//! only as it is allowed to. Its next token depends on everything its slot holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use candle_core::{Device, Tensor};

use super::{
    Backend, Budget, Decode, Decoder, EngineHandle, EngineMetrics, EngineOptions, Rows,
    VisionCache, start,
};
use crate::input::{ImageFeatures, Piece};
use crate::model::{ForwardError, Part};
use crate::pixels::PixelValues;

/// Tokens of its vocabulary.
pub(crate) const VOCAB: usize = 64;
/// Ends an answer.
pub(crate) const EOS: u32 = 2;
/// The model panics when it reads this token.
pub(crate) const PANIC: u32 = 3;
/// The model fails when it reads this token.
pub(crate) const FAULT: u32 = 4;

struct Tiny {
    slots: Vec<Vec<u64>>,
    /// Positions of each slot whose memory is taken.
    taken: Vec<usize>,
    /// Positions that the slots may take together.
    most: usize,
    pace: Arc<Pace>,
}

impl Tiny {
    /// Memory is taken as slots fill, and stays until it is given back.
    fn take(&mut self) {
        for (taken, held) in self.taken.iter_mut().zip(&self.slots) {
            *taken = (*taken).max(held.len());
        }
        let in_use = self.taken.iter().filter(|taken| **taken > 0).count();
        let all: usize = self.taken.iter().sum();
        // A sequence that is too long for the budget runs alone.
        assert!(all <= self.most || in_use == 1, "{all} positions are taken");
    }
}

/// How often the model may still be called; it waits when that is used up.
pub(crate) struct Pace {
    left: AtomicUsize,
    begun: AtomicUsize,
    broken: AtomicBool,
}

impl Pace {
    const FREE: usize = usize::MAX;

    pub(crate) fn hold(&self) {
        self.left.store(0, Ordering::Release);
    }

    pub(crate) fn let_go(&self) {
        self.left.store(Self::FREE, Ordering::Release);
    }

    pub(crate) fn allow(&self, calls: usize) {
        self.left.fetch_add(calls, Ordering::AcqRel);
    }

    /// From now on every call fails, as on a device after a fault.
    pub(crate) fn break_down(&self) {
        self.broken.store(true, Ordering::Release);
    }

    /// Calls so far, one that waits included.
    pub(crate) fn begun(&self) -> usize {
        self.begun.load(Ordering::Acquire)
    }

    fn wait(&self) {
        self.begun.fetch_add(1, Ordering::AcqRel);
        let take = |left: usize| match left {
            0 => None,
            Self::FREE => Some(Self::FREE),
            left => Some(left - 1),
        };
        while self
            .left
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, take)
            .is_err()
        {
            std::thread::yield_now();
        }
    }
}

/// The next token after this history.
pub(crate) fn follow(history: &[u64]) -> u32 {
    let mix = |hash: u64, value: &u64| {
        (hash ^ value)
            .wrapping_mul(0x0100_0000_01b3)
            .rotate_left(17)
    };
    let hash = history.iter().fold(0xcbf2_9ce4_8422_2325, mix);
    // Ends now and then; never the tokens that hurt.
    match (hash >> 20) % 40 {
        0 => EOS,
        _ => 5 + (hash % (VOCAB as u64 - 5)) as u32,
    }
}

impl Backend for Tiny {
    fn slots(&self) -> usize {
        self.slots.len()
    }

    fn encode(&mut self, images: &[&PixelValues]) -> Result<Vec<ImageFeatures>, ForwardError> {
        self.pace.wait();
        images
            .iter()
            .map(|image| {
                if image.values[0] < 0.0 {
                    return Err(ForwardError::Image {
                        image: 0,
                        problem: "is bad".to_owned(),
                    });
                }
                let rows: Vec<f32> = (0..4).map(|row| image.values[0] + row as f32).collect();
                Ok(ImageFeatures::new(Tensor::from_vec(
                    rows,
                    (4, 1),
                    &Device::Cpu,
                )?))
            })
            .collect()
    }

    fn forward(&mut self, batch: &[Part]) -> Result<Rows, ForwardError> {
        self.pace.wait();
        if self.pace.broken.load(Ordering::Acquire) {
            let problem = "the device is broken".to_owned();
            return Err(ForwardError::Part { part: 0, problem });
        }
        let mut rows = Vec::new();
        for (index, part) in batch.iter().enumerate() {
            assert_eq!(
                part.start,
                self.slots[part.slot].len(),
                "a part begins where its slot ends"
            );
            for piece in &part.input {
                match piece {
                    Piece::Tokens(ids) => {
                        assert!(!ids.contains(&PANIC), "as asked");
                        if ids.contains(&FAULT) {
                            return Err(ForwardError::Part {
                                part: index,
                                problem: "is at fault".to_owned(),
                            });
                        }
                        self.slots[part.slot].extend(ids.iter().map(|&id| u64::from(id)));
                    }
                    Piece::Image { features, rows } => {
                        let all: Vec<f32> = features.rows().flatten_all()?.to_vec1()?;
                        let values = all[rows.clone()]
                            .iter()
                            .map(|value| 1_000_000 + *value as u64);
                        self.slots[part.slot].extend(values);
                    }
                }
            }
            self.take();
            rows.push(part.logits.then(|| {
                let mut logits = vec![0.0; VOCAB];
                logits[follow(&self.slots[part.slot]) as usize] = 9.0;
                logits
            }));
        }
        Ok(rows)
    }

    fn truncate(&mut self, slot: usize, tokens: usize) {
        self.slots[slot].truncate(tokens);
    }

    fn give_back(&mut self, slot: usize, tokens: usize) {
        self.taken[slot] = self.taken[slot].min(tokens.max(self.slots[slot].len()));
    }

    fn copy_prefix(&mut self, from: usize, to: usize, tokens: usize) -> Result<(), ForwardError> {
        let prefix = self.slots[from][..tokens].to_vec();
        self.slots[to] = prefix;
        Ok(())
    }
}

/// An engine with that model, and what it shows.
pub(crate) struct Setup {
    pub(crate) engine: EngineHandle,
    pub(crate) pace: Arc<Pace>,
    pub(crate) metrics: EngineMetrics,
}

/// An engine of so many slots, which hold so many tokens together.
pub(crate) fn engine(slots: usize, kv_tokens: usize) -> Setup {
    let pace = Arc::new(Pace {
        left: AtomicUsize::new(Pace::FREE),
        begun: AtomicUsize::new(0),
        broken: AtomicBool::new(false),
    });
    let metrics = EngineMetrics::default();
    let backend = Tiny {
        slots: vec![Vec::new(); slots],
        taken: vec![0; slots],
        most: kv_tokens,
        pace: Arc::clone(&pace),
    };
    let options = EngineOptions {
        budget: Budget {
            kv_tokens,
            chunk_tokens: 7,
            tiles: 2,
        },
        eos: vec![EOS],
        images: VisionCache::new(64),
        metrics: metrics.clone(),
    };
    Setup {
        engine: start(backend, options).unwrap(),
        pace,
        metrics,
    }
}

/// One letter a token.
pub(crate) fn letters() -> Decode {
    Arc::new(Decoder::new(VOCAB, |tokens| {
        tokens
            .iter()
            .map(|&token| char::from(b'0' + token as u8))
            .collect()
    }))
}
