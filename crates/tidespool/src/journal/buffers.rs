//! The memory that the writer's tables and buffers take. The messages in them are not counted here:
//! their permits count them.

use std::sync::atomic::{AtomicU64, Ordering};

/// A table of at most this many bytes is not shrunk: it would grow again at once.
const KEPT: usize = 1 << 20;

/// Bytes of memory. Set by the only writer, read by any thread.
#[derive(Debug, Default)]
pub(super) struct Buffers(AtomicU64);

impl Buffers {
    pub(super) fn note(&self, bytes: usize) {
        self.0.store(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Shrinks a table after a burst: an emptied table keeps its capacity.
pub(super) fn shrink<T>(table: &mut Vec<T>) {
    let size = size_of::<T>().max(1);
    if table.capacity() * size > KEPT && table.len() < table.capacity() / 4 {
        table.shrink_to((table.len() * 2).max(KEPT / size));
    }
}

/// Bytes that a table's capacity takes.
pub(super) const fn bytes_of<T>(table: &Vec<T>) -> usize {
    table.capacity() * size_of::<T>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_a_burst_is_freed_and_a_small_table_is_kept() {
        let mut table: Vec<u64> = (0..1 << 20).collect();
        shrink(&mut table);
        assert!(bytes_of(&table) >= 8 << 20, "it is full");
        table.truncate(1_000);
        shrink(&mut table);
        assert!((8_000..=KEPT).contains(&bytes_of(&table)), "{}", bytes_of(&table));
        let kept = table.capacity();
        table.clear();
        shrink(&mut table);
        assert_eq!(table.capacity(), kept);
        let mut half: Vec<u64> = Vec::with_capacity(1 << 20);
        half.resize(1 << 19, 0);
        shrink(&mut half);
        assert_eq!(half.capacity(), 1 << 20, "it would grow again at once");
    }
}
