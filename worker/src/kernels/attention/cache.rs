//! Keys and values of one head, in the panels that the products read.

use super::super::PANEL;
use super::super::pages::give_back;
use super::super::pointwise::round_to_words;

/// Keys and values of one head: keys as panels of 32 positions
/// `[positions / 32][channels / 2][32][2]`, values as panels of 32 channels
/// `[channels / 32][positions / 2][32][2]`: what is added up stands in pairs. Each position's
/// key, and each value, is kept in whole numbers of 16 bits with one scale, so that its largest
/// number is the largest of these. That is read in half the time of f32, and is off by a 65,534th
/// of the largest at most, where half precision is off by up to a 4,096th of every number.
#[derive(Debug)]
pub(crate) struct HeadCache<'a> {
    pub(super) keys: &'a mut [i16],
    pub(super) values: &'a mut [i16],
    /// By position.
    pub(super) key_scales: &'a mut [f32],
    pub(super) value_scales: &'a mut [f32],
    pub(super) positions: usize,
    pub(super) channels: usize,
}

/// Room that heads of one kind take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    positions: usize,
    channels: usize,
}

impl Room {
    /// For `positions` positions of `channels` channels.
    pub(super) fn new(positions: usize, channels: usize) -> Self {
        Self {
            positions: positions.next_multiple_of(PANEL),
            channels,
        }
    }

    /// Whole numbers that one head takes.
    pub(super) fn numbers(self) -> usize {
        self.positions * (even(self.channels) + self.channels.next_multiple_of(PANEL))
    }

    /// Scales that one head takes.
    pub(super) fn scales(self) -> usize {
        2 * self.positions
    }
}

impl<'a> HeadCache<'a> {
    /// A head in `numbers` and `scales`, of which there are as many as `room` says.
    pub(super) fn of(numbers: &'a mut [i16], scales: &'a mut [f32], room: Room) -> Self {
        assert_eq!(
            (numbers.len(), scales.len()),
            (room.numbers(), room.scales()),
            "a head fills its memory"
        );
        let (keys, values) = numbers.split_at_mut(room.positions * even(room.channels));
        let (key_scales, value_scales) = scales.split_at_mut(room.positions);
        Self {
            keys,
            values,
            key_scales,
            value_scales,
            positions: room.positions,
            channels: room.channels,
        }
    }

    /// Bytes that one position of one head takes.
    pub(crate) fn bytes_per_position(channels: usize) -> usize {
        let numbers = even(channels) + channels.next_multiple_of(PANEL);
        numbers * size_of::<i16>() + 2 * size_of::<f32>()
    }

    /// Stores the key and value of `position`. `room` is any.
    pub(crate) fn set(&mut self, position: usize, key: &[f32], value: &[f32], room: &mut Vec<i16>) {
        let inner = even(self.channels);
        room.clear();
        room.resize(inner, 0);
        self.key_scales[position] = round_to_words(key, room);
        let (panel, column) = (position / PANEL, position % PANEL);
        let keys = &mut self.keys[panel * PANEL * inner..][..PANEL * inner];
        let pairs = room.as_chunks::<2>().0;
        let panels = keys.as_chunks_mut::<{ 2 * PANEL }>().0;
        for (keys, pair) in panels.iter_mut().zip(pairs) {
            [keys[2 * column], keys[2 * column + 1]] = *pair;
        }
        self.value_scales[position] = round_to_words(value, room);
        for (panel, part) in room[..self.channels].chunks(PANEL).enumerate() {
            let at = (panel * self.positions + position / 2 * 2) * PANEL + position % 2;
            for (to, x) in self.values[at..].iter_mut().step_by(2).zip(part) {
                *to = *x;
            }
        }
    }

    /// Copies the first `count` positions from `other`.
    pub(super) fn copy_prefix(&mut self, other: &HeadCache<'_>, count: usize) {
        self.key_scales[..count].copy_from_slice(&other.key_scales[..count]);
        self.value_scales[..count].copy_from_slice(&other.value_scales[..count]);
        let keys = count.next_multiple_of(PANEL) * even(self.channels);
        self.keys[..keys].copy_from_slice(&other.keys[..keys]);
        for panel in 0..self.channels.div_ceil(PANEL) {
            let (to, from) = (
                panel * self.positions * PANEL,
                panel * other.positions * PANEL,
            );
            let values = even(count) * PANEL;
            self.values[to..to + values].copy_from_slice(&other.values[from..from + values]);
        }
    }

    /// Gives the memory of all but the first `kept` positions back to the system.
    pub(super) fn give_back(&mut self, kept: usize) {
        let kept = kept.next_multiple_of(PANEL).min(self.positions);
        give_back(&mut self.key_scales[kept..]);
        give_back(&mut self.value_scales[kept..]);
        give_back(&mut self.keys[kept * even(self.channels)..]);
        for panel in 0..self.channels.div_ceil(PANEL) {
            let all = panel * self.positions..(panel + 1) * self.positions;
            give_back(&mut self.values[(all.start + kept) * PANEL..all.end * PANEL]);
        }
    }
}

/// What is added up in pairs is an even number.
pub(super) fn even(count: usize) -> usize {
    count.next_multiple_of(2)
}
