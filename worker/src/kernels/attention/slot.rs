//! Keys and values of one sequence: the heads of all layers, one after another in
//! two pieces of memory. They are taken from the system only as they fill, and can be
//! given back.

use super::super::pages::Pages;
use super::HeadCache;
use super::cache::Room;
use std::ops::Range;

/// Room for one sequence.
#[derive(Debug)]
pub(crate) struct SlotCache {
    numbers: Pages<i16>,
    scales: Pages<f32>,
    heads: usize,
    room: Room,
}

impl SlotCache {
    /// Room for `positions` positions of `heads` heads of `channels` channels.
    pub(crate) fn new(heads: usize, positions: usize, channels: usize) -> Self {
        let room = Room::new(positions, channels);
        Self {
            numbers: Pages::small(heads * room.numbers()),
            scales: Pages::small(heads * room.scales()),
            heads,
            room,
        }
    }

    /// The heads with these numbers.
    pub(crate) fn heads(&mut self, which: Range<usize>) -> Vec<HeadCache<'_>> {
        let room = self.room;
        let part = |each: usize| which.start * each..which.end * each;
        let numbers = self.numbers[part(room.numbers())].chunks_mut(room.numbers());
        let scales = self.scales[part(room.scales())].chunks_mut(room.scales());
        numbers
            .zip(scales)
            .map(|(numbers, scales)| HeadCache::of(numbers, scales, room))
            .collect()
    }

    fn all(&mut self) -> Vec<HeadCache<'_>> {
        self.heads(0..self.heads)
    }

    /// Copies the first `count` positions of a slot of the same kind.
    pub(crate) fn copy_prefix(&mut self, from: &mut Self, count: usize) {
        for (to, from) in self.all().iter_mut().zip(from.all()) {
            to.copy_prefix(&from, count);
        }
    }

    /// Gives the memory of all but the first `kept` positions back to the system.
    pub(crate) fn give_back(&mut self, kept: usize) {
        for head in &mut self.all() {
            head.give_back(kept);
        }
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    /// The flags of the mapping that holds this address.
    fn flags(address: usize) -> String {
        let maps = fs::read_to_string("/proc/self/smaps").expect("smaps");
        let mut inside = false;
        for line in maps.lines() {
            let range = line.split(' ').next().and_then(|word| word.split_once('-'));
            let number = |text: &str| usize::from_str_radix(text, 16).ok();
            if let Some((Some(start), Some(end))) =
                range.map(|(start, end)| (number(start), number(end)))
            {
                inside = (start..end).contains(&address);
            }
            if inside && line.starts_with("VmFlags:") {
                return line.to_owned();
            }
        }
        panic!("no mapping holds {address:x}");
    }

    #[test]
    fn a_slot_takes_small_pages_whatever_the_system_prefers() {
        let slot = SlotCache::new(8, 4096, 64);
        let flags = flags(slot.numbers.as_ptr().addr());
        // A system that has no huge pages knows no such flag.
        if Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            assert!(flags.split(' ').any(|flag| flag == "nh"), "{flags}");
        }
    }
}
