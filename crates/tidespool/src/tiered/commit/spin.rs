//! Waits for the next store without sleeping, while that pays.
//!
//! A caller that stores one message after the other sends the next one a few microseconds after it
//! got its result. A committer that sleeps meanwhile has to be woken by the kernel, which takes as
//! long again as the write. So after a small batch it looks for the next store for a moment. After
//! each look that finds none it rests, twice as long each time: an idle spool costs nothing.

use std::hint::spin_loop;
use std::time::{Duration, Instant};

/// The longest look. Longer than a caller on the same machine needs from its result to its next
/// store, and about as long as a sleep and a wake-up.
const LONGEST: Duration = Duration::from_micros(50);

/// A batch of more records has callers that need the processor.
const FEW: usize = 2;

/// The most batches without a look after one that found no store, as a power of two.
const MOST_MISSES: u32 = 10;

/// Decides when to look, and looks.
#[derive(Debug, Default)]
pub(super) struct Spin {
    /// Looks that found no store since the last one that did.
    misses: u32,
    /// Batches without a look that are left.
    rest: u32,
}

impl Spin {
    /// Looks for a store after a batch of `records` records, if that is likely to pay.
    pub(super) fn after_batch(&mut self, records: usize, has_store: impl Fn() -> bool) {
        if self.is_worth(records) {
            let paid = look(&has_store);
            self.note(paid);
        }
    }

    fn is_worth(&mut self, records: usize) -> bool {
        if records == 0 || records > FEW {
            return false;
        }
        let rests = self.rest > 0;
        self.rest = self.rest.saturating_sub(1);
        !rests
    }

    fn note(&mut self, paid: bool) {
        self.misses = if paid { 0 } else { (self.misses + 1).min(MOST_MISSES) };
        self.rest = if paid { 0 } else { 1 << self.misses };
    }
}

/// Returns true when there is a store, or false after [`LONGEST`].
// Not inlined: `benches/cost` excludes it by name, because it runs by the clock.
#[inline(never)]
fn look(has_store: &dyn Fn() -> bool) -> bool {
    let began = Instant::now();
    loop {
        // The clock is read once for some looks.
        for _ in 0..16 {
            if has_store() {
                return true;
            }
            spin_loop();
        }
        if began.elapsed() >= LONGEST {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_that_find_nothing_become_rare_and_one_that_pays_brings_them_back() {
        let mut spin = Spin::default();
        let mut looks = 0;
        for _ in 0..10_000 {
            if spin.is_worth(1) {
                looks += 1;
                spin.note(false);
            }
        }
        assert!((10..30).contains(&looks), "{looks} looks for 10 000 batches");
        while !spin.is_worth(1) {}
        spin.note(true);
        for _ in 0..100 {
            assert!(spin.is_worth(2));
            spin.note(true);
        }
    }

    #[test]
    fn only_a_small_batch_is_followed_by_a_look() {
        let mut spin = Spin::default();
        assert_eq!([0, 3, 64].map(|records| spin.is_worth(records)), [false; 3]);
        assert!(spin.is_worth(1));
    }
}
