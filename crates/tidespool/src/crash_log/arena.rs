//! Allocates the slots of an arena's chunks. Pure.
//!
//! The last freed slot is allocated first. So a spool whose messages leave soon writes to the same
//! few pages again and again, and the kernel writes few pages back.

use super::layout::{CLASSES, SizeClass};

/// The chunks of one arena. The lock of the arena guards them.
#[derive(Debug)]
pub(super) struct Arena {
    /// By chunk number. `None`: the chunk belongs to another arena, or to none.
    chunks: Vec<Option<Box<Chunk>>>,
    /// By class, the chunks with a free slot.
    open: [Vec<u32>; CLASSES],
    /// The number of empty chunks that the arena keeps.
    empty: usize,
}

#[derive(Debug)]
struct Chunk {
    class: SizeClass,
    /// The number of slots that were allocated at least once since the chunk has this class.
    used: u16,
    /// Those of them that are free, in the order in which they were freed.
    freed: Vec<u16>,
    /// The index of the chunk in [`Arena::open`], in the list of its class.
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

/// An allocated slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Allocated {
    pub(super) chunk: u32,
    pub(super) slot: u16,
    /// The slot was not used before, so that the chunk's number of used slots is now `slot + 1`.
    pub(super) is_new: bool,
}

impl Arena {
    /// Makes an arena without chunks, for a file of `chunks` chunks.
    pub(super) fn new(chunks: usize) -> Self {
        Self { chunks: (0..chunks).map(|_| None).collect(), open: [const { Vec::new() }; CLASSES], empty: 0 }
    }

    /// Allocates a slot in a chunk of the arena. `None`: the arena needs another chunk.
    pub(super) fn allocate(&mut self, class: SizeClass) -> Option<Allocated> {
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
        Some(Allocated { chunk: number, slot, is_new })
    }

    /// Adds an empty chunk.
    pub(super) fn add(&mut self, number: u32, class: SizeClass) {
        let open = &mut self.open[class.index()];
        let chunk = Chunk { class, used: 0, freed: Vec::new(), open_at: Some(open.len()) };
        open.push(number);
        self.chunks[number as usize] = Some(Box::new(chunk));
        self.empty += 1;
    }

    /// Frees a slot. Returns whether its chunk is empty now.
    pub(super) fn free(&mut self, number: u32, slot: u16) -> bool {
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

    /// Removes a chunk from the arena if it is empty. Returns whether it did.
    pub(super) fn release(&mut self, number: u32) -> bool {
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

    /// Removes all empty chunks from the arena, and returns them.
    pub(super) fn release_empty(&mut self) -> Vec<u32> {
        if self.empty == 0 {
            return Vec::new();
        }
        let all = 0..u32::try_from(self.chunks.len()).unwrap_or(u32::MAX);
        all.filter(|number| self.release(*number)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A slot is allocated once at a time, and a chunk is released only when none of its slots
        /// is allocated.
        #[test]
        fn no_slot_is_allocated_twice(steps in prop::collection::vec((0..4usize, any::<prop::sample::Index>()), 1..400)) {
            let lens = [0, 8_000, 30_000, 60_000];
            let mut arena = Arena::new(64);
            let mut spare: Vec<u32> = (0..64).collect();
            let mut out: Vec<(u32, u16)> = Vec::new();
            for (what, which) in steps {
                if which.index(3) == 0 && !out.is_empty() {
                    let (chunk, slot) = out.swap_remove(which.index(out.len()));
                    let is_empty = arena.free(chunk, slot);
                    prop_assert_eq!(is_empty, out.iter().all(|(other, _)| *other != chunk));
                    if is_empty && what > 1 {
                        prop_assert!(arena.release(chunk));
                        spare.push(chunk);
                    }
                    continue;
                }
                let class = SizeClass::of(lens[what]).unwrap();
                let allocated = arena.allocate(class).or_else(|| {
                    arena.add(spare.pop()?, class);
                    arena.allocate(class)
                });
                let Some(allocated) = allocated else { continue };
                prop_assert!(usize::from(allocated.slot) < class.slots());
                out.push((allocated.chunk, allocated.slot));
                prop_assert_eq!(out.iter().collect::<BTreeSet<_>>().len(), out.len());
            }
            let used: BTreeSet<u32> = out.iter().map(|(chunk, _)| *chunk).collect();
            spare.extend(arena.release_empty());
            prop_assert_eq!(spare.len() + used.len(), 64);
            prop_assert_eq!(arena.empty, 0);
        }
    }
}
