//! The choice among candidates, free of state: the best preference first, then
//! the least score, ties at random; or the lottery.

use rand::Rng;

use crate::args::Dispatch;
use crate::dispatch::estimate::Queue;

/// A worker that may take the request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    /// Its place in the pool.
    pub(crate) index: usize,
    /// Smaller is better; see [`Preference`].
    pub(crate) preference: Preference,
    /// Whether a request rather goes here than waits for a better worker.
    pub(crate) beats_waiting: bool,
    /// Its estimated queue.
    pub(crate) queue: Queue,
    /// `(queue + 1) / slots`.
    pub(crate) score: f64,
    /// Its share in a lottery.
    pub(crate) share: f64,
    /// Whether it has room now.
    pub(crate) has_room: bool,
}

/// How much a worker is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Preference {
    /// Nothing speaks against it.
    Good,
    /// Its Lease is stale, but it may well be alive.
    Stale,
    /// It owes first bytes for longer than is usual.
    Suspect,
    /// It was ejected.
    Ejected,
    /// Nobody answers there.
    Down,
}

impl Preference {
    /// Whether nothing speaks against it but its Lease.
    pub(crate) fn is_trusted(self) -> bool {
        self <= Self::Stale
    }
}

/// Picks a candidate's place, and tells how far it is trusted; `None` when those are full that are better than to wait.
pub(crate) fn pick(
    candidates: &[Candidate],
    dispatch: Dispatch,
    rng: &mut impl Rng,
) -> Option<(usize, Preference)> {
    let best = candidates.iter().map(|c| c.preference).min()?;
    let mut level = best;
    loop {
        let at_level = candidates
            .iter()
            .filter(|c| c.preference == level && c.has_room && (level == best || c.beats_waiting));
        let picked = match dispatch {
            Dispatch::ShortestQueue => least(at_level, rng),
            Dispatch::Lottery => lottery(at_level, rng),
        };
        if let Some(index) = picked {
            return Some((index, level));
        }
        level = candidates
            .iter()
            .filter(|c| c.preference > level && c.beats_waiting)
            .map(|c| c.preference)
            .min()?;
    }
}

fn least<'a>(candidates: impl Iterator<Item = &'a Candidate>, rng: &mut impl Rng) -> Option<usize> {
    let mut best: Option<(&Candidate, u32)> = None;
    for candidate in candidates {
        best = Some(match best {
            Some((leader, ties)) if candidate.score == leader.score => {
                let ties = ties + 1;
                let wins = rng.random_range(0..ties) == 0;
                (if wins { candidate } else { leader }, ties)
            }
            Some((leader, ties)) if candidate.score > leader.score => (leader, ties),
            _ => (candidate, 1),
        });
    }
    best.map(|(candidate, _)| candidate.index)
}

fn lottery<'a>(
    candidates: impl Iterator<Item = &'a Candidate> + Clone,
    rng: &mut impl Rng,
) -> Option<usize> {
    let total: f64 = candidates.clone().map(|c| c.share).sum();
    let mut drawn = rng.random::<f64>() * total;
    let mut last = None;
    for candidate in candidates {
        last = Some(candidate.index);
        drawn -= candidate.share;
        if drawn < 0.0 {
            break;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::SmallRng;

    use super::*;

    fn candidate(index: usize, score: f64) -> Candidate {
        Candidate {
            index,
            preference: Preference::Good,
            beats_waiting: true,
            queue: Queue::default(),
            score,
            share: 1.0,
            has_room: true,
        }
    }

    fn tally(candidates: &[Candidate], dispatch: Dispatch) -> Vec<usize> {
        let mut rng = SmallRng::seed_from_u64(7);
        let mut tally = vec![0; candidates.len()];
        for _ in 0..3000 {
            tally[pick(candidates, dispatch, &mut rng).unwrap().0] += 1;
        }
        tally
    }

    #[test]
    fn the_least_score_wins_and_ties_are_shared() {
        let candidates = [
            candidate(0, 1.0),
            candidate(1, 0.5),
            candidate(2, 0.5),
            candidate(3, 0.5),
        ];
        let tally = tally(&candidates, Dispatch::ShortestQueue);
        assert_eq!(tally[0], 0);
        assert!(
            tally[1..].iter().all(|&n| (850..1150).contains(&n)),
            "{tally:?}"
        );
    }

    #[test]
    fn the_lottery_gives_each_its_share() {
        let mut candidates = [candidate(0, 9.0), candidate(1, 0.1)];
        candidates[1].share = 2.0;
        let tally = tally(&candidates, Dispatch::Lottery);
        assert!((900..1100).contains(&tally[0]), "{tally:?}");
    }

    #[test]
    fn a_stale_worker_is_used_when_the_fresh_are_full_and_a_suspect_if_it_beats_waiting() {
        let mut rng = SmallRng::seed_from_u64(7);
        let mut candidates = [candidate(0, 0.1), candidate(1, 0.2), candidate(2, 0.0)];
        candidates[1].preference = Preference::Stale;
        candidates[2].preference = Preference::Suspect;
        let mut go = |c: &[Candidate]| Some(pick(c, Dispatch::ShortestQueue, &mut rng)?.0);
        assert_eq!(go(&candidates), Some(0));
        candidates[0].has_room = false;
        assert_eq!(go(&candidates), Some(1));
        candidates[1].has_room = false;
        assert_eq!(go(&candidates), Some(2));
        candidates[2].beats_waiting = false;
        assert_eq!(go(&candidates), None);
        assert_eq!(go(&candidates[2..]), Some(2));
    }
}
