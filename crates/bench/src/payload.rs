//! The messages: incompressible random bytes, in sizes that the seed determines.

use std::sync::Arc;

use rand::{Rng as _, RngExt as _, SeedableRng as _};
use rand_distr::StandardNormal;
use tidespool_core::SpoolId;

use crate::plan::Size;

/// The payload of a message, as `store` takes it.
pub(crate) type Payload = Arc<Box<[u8]>>;

/// Number of positions in the pool at which a payload can begin. The pool fits into a cache. It is
/// large enough that messages in one block of a database rarely share bytes.
const POOL_STARTS: usize = 1 << 20;

/// Logarithm of the median (23 175 bytes) and deviation of the lognormal sizes of mail. With the
/// cap at 1 MiB the mean is 50 000 bytes.
const MIX_MU: f64 = 10.050_831_648_579_287;
const MIX_SIGMA: f64 = 1.25;

/// The smallest size of `mix`.
const MIX_SMALLEST: f64 = 256.0;

/// A generator whose numbers follow from the seed, on every machine. It is fast, and random enough
/// to defeat compression and to spread load.
pub(crate) type Random = rand::rngs::Xoshiro256PlusPlus;

/// Returns `count` incompressible bytes.
pub(crate) fn random_bytes(count: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; count];
    Random::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// Random bytes, generated before the clock starts. Every payload is a copy of a part of them.
#[derive(Debug)]
pub(crate) struct Pool {
    bytes: Vec<u8>,
    size: Size,
}

impl Pool {
    pub(crate) fn new(size: Size, seed: u64) -> Arc<Self> {
        Arc::new(Self { bytes: random_bytes(POOL_STARTS + size.largest(), seed), size })
    }
}

/// The source of the messages of one caller.
#[derive(Debug)]
pub(crate) struct Messages {
    pool: Arc<Pool>,
    pub(crate) random: Random,
}

impl Messages {
    /// The same `seed` gives the same sizes and bytes, but not the same ids.
    pub(crate) fn new(pool: Arc<Pool>, seed: u64) -> Self {
        Self { pool, random: Random::seed_from_u64(seed) }
    }

    /// Returns a new message.
    pub(crate) fn next(&mut self) -> (SpoolId, Payload) {
        (SpoolId::new(), self.payload(self.pool.size))
    }

    /// Returns bytes in a buffer of their own, as in a server. Shared bytes would make the memory
    /// of any spool look small.
    pub(crate) fn payload(&mut self, size: Size) -> Payload {
        let len = draw(size, &mut self.random).min(self.pool.bytes.len());
        let start = self.random.random_range(0..=(self.pool.bytes.len() - len).min(POOL_STARTS));
        Arc::new(Box::from(self.pool.bytes.get(start..start + len).unwrap_or_default()))
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped before")]
#[expect(clippy::cast_precision_loss, reason = "1 MiB")]
fn draw(size: Size, random: &mut Random) -> usize {
    match size {
        Size::Bytes(bytes) => bytes,
        Size::Metadata => random.random_range(512..=size.largest()),
        Size::Mix => {
            let normal: f64 = random.sample(StandardNormal);
            let len = (MIX_MU + MIX_SIGMA * normal).exp();
            len.clamp(MIX_SMALLEST, size.largest() as f64) as usize
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn messages(size: Size, seed: u64) -> Messages {
        Messages::new(Pool::new(size, 1), seed)
    }

    #[test]
    fn payloads_differ_and_do_not_compress() {
        let mut messages = messages(Size::Bytes(4_096), 1);
        let payloads: HashSet<Payload> = (0..100).map(|_| messages.next().1).collect();
        assert_eq!(payloads.len(), 100);
        for payload in payloads {
            let mut counts = [0_u32; 256];
            payload.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
            assert!(counts.iter().all(|count| *count < 64), "bytes are not spread evenly");
        }
    }

    #[test]
    fn payloads_have_the_size_of_the_plan() {
        for len in [1, 3, 4 << 20] {
            assert_eq!(messages(Size::Bytes(len), 1).next().1.len(), len);
        }
        let mut metadata = messages(Size::Metadata, 1);
        let lens: Vec<usize> = (0..10_000).map(|_| metadata.next().1.len()).collect();
        assert_eq!((lens.iter().min(), lens.iter().max()), (Some(&512), Some(&2_048)));
    }

    #[test]
    fn the_mix_is_like_mail_and_repeats() {
        let sizes = |seed| {
            let mut random = Random::seed_from_u64(seed);
            (0..100_000).map(|_| draw(Size::Mix, &mut random)).collect::<Vec<usize>>()
        };
        let mut drawn = sizes(1);
        assert!(drawn == sizes(1) && drawn != sizes(2));
        let mean = drawn.iter().sum::<usize>() / drawn.len();
        assert!((49_000..51_000).contains(&mean), "{mean}");
        drawn.sort_unstable();
        assert!((22_500..24_000).contains(&drawn[50_000]), "{}", drawn[50_000]);
        assert!(drawn[0] >= 256 && drawn[99_999] == 1 << 20, "{} {}", drawn[0], drawn[99_999]);
    }
}
