//! Which slots of an arena's chunks are free. Pure.
//!
//! The last freed slot is given out first: a spool whose messages leave soon writes to the same few
//! pages again and again, and the system writes back few of them.

use super::layout::{CLASSES, SizeClass};

/// The chunks of one arena. Each is guarded by the lock of its arena.
#[derive(Debug)]
pub(super) struct Arena {
    /// By number; `None`: it belongs to another arena, or to none.
    chunks: Vec<Option<Box<Chunk>>>,
    /// Of each class, the chunks with a free slot.
    open: [Vec<u32>; CLASSES],
    /// Chunks in which nothing is left, and which the arena keeps.
    empty: usize,
}

#[derive(Debug)]
struct Chunk {
    class: SizeClass,
    /// Slots given out since the chunk has this class, or more than once.
    used: u16,
    /// Of these, the ones that are free, last freed last.
    freed: Vec<u16>,
    /// Its place among the open ones of its class.
    open_at: Option<usize>,
}

impl Chunk {
    fn live(&self) -> usize {
        usize::from(self.used) - self.freed.len()
    }

    fn is_full(&self) -> bool {
        self.live() == self.class.slots()
    }
}

/// A slot that was given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) chunk: u32,
    pub(super) slot: u16,
    /// The slot was not used before: so many are in use now.
    pub(super) is_new: bool,
}

impl Arena {
    /// For a file of so many chunks.
    pub(super) fn new(chunks: usize) -> Self {
        Self { chunks: (0..chunks).map(|_| None).collect(), open: [const { Vec::new() }; CLASSES], empty: 0 }
    }

    /// A free slot of a chunk that the arena has. `None`: it needs another chunk.
    pub(super) fn give(&mut self, class: SizeClass) -> Option<Given> {
        let number = *self.open[class.index()].last()?;
        let chunk = self.chunks[number as usize].as_mut()?;
        if chunk.live() == 0 {
            self.empty -= 1;
        }
        let (slot, is_new) = match chunk.freed.pop() {
            Some(slot) => (slot, false),
            None => {
                chunk.used += 1;
                (chunk.used - 1, true)
            }
        };
        if chunk.is_full() {
            chunk.open_at = None;
            self.open[class.index()].pop();
        }
        Some(Given { chunk: number, slot, is_new })
    }

    /// Takes in a chunk that is empty.
    pub(super) fn add(&mut self, number: u32, class: SizeClass) {
        let open = &mut self.open[class.index()];
        let chunk = Chunk { class, used: 0, freed: Vec::new(), open_at: Some(open.len()) };
        open.push(number);
        self.chunks[number as usize] = Some(Box::new(chunk));
        self.empty += 1;
    }

    /// Takes a slot back. True if nothing is left in its chunk.
    pub(super) fn take_back(&mut self, number: u32, slot: u16) -> bool {
        let Some(chunk) = self.chunks[number as usize].as_mut() else { return false };
        chunk.freed.push(slot);
        let open = &mut self.open[chunk.class.index()];
        if chunk.open_at.is_none() {
            chunk.open_at = Some(open.len());
            open.push(number);
        }
        let is_empty = chunk.live() == 0;
        self.empty += usize::from(is_empty);
        is_empty
    }

    /// Gives up a chunk in which nothing is left. False if something is.
    pub(super) fn give_up(&mut self, number: u32) -> bool {
        let place = &mut self.chunks[number as usize];
        let Some(chunk) = place.take_if(|chunk| chunk.live() == 0) else { return false };
        self.empty -= 1;
        if let Some(at) = chunk.open_at {
            let open = &mut self.open[chunk.class.index()];
            open.swap_remove(at);
            if let Some(moved) = open.get(at).copied()
                && let Some(moved) = &mut self.chunks[moved as usize]
            {
                moved.open_at = Some(at);
            }
        }
        true
    }

    /// Gives up all chunks in which nothing is left.
    pub(super) fn give_up_empty(&mut self) -> Vec<u32> {
        if self.empty == 0 {
            return Vec::new();
        }
        let all = 0..u32::try_from(self.chunks.len()).unwrap_or(u32::MAX);
        all.filter(|number| self.give_up(*number)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Slots are given out once, and a chunk is given up only when none of its slots is out.
        #[test]
        fn no_slot_is_given_out_twice(steps in prop::collection::vec((0..4usize, any::<prop::sample::Index>()), 1..400)) {
            let lens = [0, 8_000, 30_000, 60_000];
            let mut arena = Arena::new(64);
            let mut spare: Vec<u32> = (0..64).collect();
            let mut out: Vec<(u32, u16)> = Vec::new();
            for (what, which) in steps {
                if which.index(3) == 0 && !out.is_empty() {
                    let (chunk, slot) = out.swap_remove(which.index(out.len()));
                    let is_empty = arena.take_back(chunk, slot);
                    prop_assert_eq!(is_empty, out.iter().all(|(other, _)| *other != chunk));
                    if is_empty && what > 1 {
                        prop_assert!(arena.give_up(chunk));
                        spare.push(chunk);
                    }
                    continue;
                }
                let class = SizeClass::of(lens[what]).unwrap();
                let given = arena.give(class).or_else(|| {
                    arena.add(spare.pop()?, class);
                    arena.give(class)
                });
                let Some(given) = given else { continue };
                prop_assert!(usize::from(given.slot) < class.slots());
                out.push((given.chunk, given.slot));
                prop_assert_eq!(out.iter().collect::<BTreeSet<_>>().len(), out.len());
            }
            let used: BTreeSet<u32> = out.iter().map(|(chunk, _)| *chunk).collect();
            spare.extend(arena.give_up_empty());
            prop_assert_eq!(spare.len() + used.len(), 64);
            prop_assert_eq!(arena.empty, 0);
        }
    }
}
