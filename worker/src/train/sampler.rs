//! Which records make up which step: a pure function of seed and step, so that a
//! resumed run, and every process of a parallel one, deals the same cards.

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

/// A record as far as grouping is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the data.
    pub index: usize,
    /// Its words.
    pub words: usize,
    /// Whether it shows an image.
    pub image: bool,
}

/// Deals records to steps.
#[derive(Debug)]
pub struct Sampler {
    entries: Vec<Entry>,
    batch: usize,
    group: bool,
    seed: u64,
    epoch: Option<(usize, Vec<Vec<usize>>)>,
}

impl Sampler {
    /// Batches of `batch` records, grouped by modality and length where `group`.
    pub fn new(entries: Vec<Entry>, batch: usize, group: bool, seed: u64) -> Self {
        Self {
            entries,
            batch,
            group,
            seed,
            epoch: None,
        }
    }

    /// Steps that see every record once.
    pub fn steps_per_epoch(&self) -> usize {
        self.entries.len().div_ceil(self.batch).max(1)
    }

    /// The records of `step`, counted from 0 over all epochs.
    pub fn records(&mut self, step: usize) -> &[usize] {
        let (epoch, at) = (step / self.steps_per_epoch(), step % self.steps_per_epoch());
        if self.epoch.as_ref().is_none_or(|(dealt, _)| *dealt != epoch) {
            self.epoch = Some((epoch, self.deal(epoch)));
        }
        match &self.epoch {
            Some((_, batches)) => batches.get(at).map_or(&[], Vec::as_slice),
            None => &[],
        }
    }

    /// One epoch's batches. With grouping, batches of one modality are cut from runs of
    /// similar length (50 batches sorted at a time keep the order random enough), and
    /// what is left over of both modalities makes the last ones.
    fn deal(&self, epoch: usize) -> Vec<Vec<usize>> {
        let mut rng = StdRng::seed_from_u64(
            self.seed
                .wrapping_add(epoch as u64)
                .wrapping_mul(0x9E37_79B9),
        );
        let mut entries = self.entries.clone();
        entries.shuffle(&mut rng);
        let cut = |entries: &[Entry]| -> Vec<Vec<usize>> {
            entries
                .chunks(self.batch)
                .map(|c| c.iter().map(|e| e.index).collect())
                .collect()
        };
        if !self.group {
            return cut(&entries);
        }
        let (mut batches, mut left) = (Vec::new(), Vec::new());
        let (with, without): (Vec<Entry>, Vec<Entry>) = entries.into_iter().partition(|e| e.image);
        for mut side in [with, without] {
            left.extend(side.split_off(side.len() - side.len() % self.batch));
            for run in side.chunks_mut(self.batch * 50) {
                run.sort_by_key(|e| (e.words, e.index));
                batches.extend(cut(run));
            }
        }
        batches.shuffle(&mut rng);
        batches.extend(cut(&left));
        batches
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entries(n: usize) -> Vec<Entry> {
        (0..n)
            .map(|index| Entry {
                index,
                words: index * 7 % 31,
                image: index % 3 != 0,
            })
            .collect()
    }

    proptest! {
        #[test]
        fn an_epoch_deals_every_record_once(n in 1usize..200, batch in 1usize..20, group: bool, seed: u64) {
            let mut sampler = Sampler::new(entries(n), batch, group, seed);
            for epoch in 0..2 {
                let steps = sampler.steps_per_epoch();
                let mut seen: Vec<usize> = (0..steps)
                    .flat_map(|s| sampler.records(epoch * steps + s).to_vec())
                    .collect();
                seen.sort_unstable();
                prop_assert_eq!(seen, (0..n).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn any_step_can_be_dealt_without_those_before_it() {
        let mut whole = Sampler::new(entries(100), 8, true, 5);
        let in_order: Vec<_> = (0..40).map(|s| whole.records(s).to_vec()).collect();
        let mut fresh = Sampler::new(entries(100), 8, true, 5);
        assert_eq!(fresh.records(33), in_order[33]);
        assert_eq!(fresh.records(2), in_order[2]);
    }

    #[test]
    fn grouped_batches_hold_one_modality() {
        let mut sampler = Sampler::new(entries(90), 10, true, 1);
        let mixed = (0..9).filter(|s| {
            let images = sampler.records(*s).iter().filter(|i| *i % 3 != 0).count();
            images != 0 && images != 10
        });
        assert!(mixed.count() <= 1, "only the leftovers mix");
    }
}
