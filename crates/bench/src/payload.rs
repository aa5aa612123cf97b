//! The messages: incompressible random bytes, in sizes that the seed determines.

use std::sync::Arc;

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

/// Random bytes, generated before the clock starts. Every payload is a copy of a part of them.
#[derive(Debug)]
pub(crate) struct Pool {
    bytes: Vec<u8>,
    size: Size,
}

impl Pool {
    pub(crate) fn new(size: Size, seed: u64) -> Arc<Self> {
        let bytes = Random::new(seed).bytes(POOL_STARTS + size.largest());
        Arc::new(Self { bytes, size })
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
        Self { pool, random: Random::new(seed) }
    }

    /// Returns a new message.
    pub(crate) fn next(&mut self) -> (SpoolId, Payload) {
        (SpoolId::new(), self.payload(self.pool.size))
    }

    /// Returns bytes in a buffer of their own, as in a server. Shared bytes would make the memory
    /// of any spool look small.
    pub(crate) fn payload(&mut self, size: Size) -> Payload {
        let len = self.random.size(size).min(self.pool.bytes.len());
        let starts = (self.pool.bytes.len() - len).min(POOL_STARTS) as u64;
        let start = usize::try_from(self.random.below(starts + 1)).unwrap_or(0);
        Arc::new(Box::from(self.pool.bytes.get(start..start + len).unwrap_or_default()))
    }
}

/// xorshift64*: cheap, and random enough to defeat compression and to spread load.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        // splitmix64 spreads similar seeds. A state of zero would stay zero.
        let mut state = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((state ^ (state >> 31)) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Returns a number from 0 to `bound` − 1, or 0 if `bound` is 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        u64::try_from((u128::from(self.next()) * u128::from(bound)) >> 64).unwrap_or(0)
    }

    pub(crate) fn choose<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        items.get(usize::try_from(self.below(items.len() as u64)).unwrap_or(0))
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = usize::try_from(self.below(last as u64 + 1)).unwrap_or(0);
            items.swap(last, other);
        }
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }

    /// Returns a number above 0 and at most 1.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are left, which is what it holds")]
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped before")]
    #[expect(clippy::cast_precision_loss, reason = "1 MiB")]
    fn size(&mut self, size: Size) -> usize {
        match size {
            Size::Bytes(bytes) => bytes,
            Size::Metadata => 512 + usize::try_from(self.below(2_048 - 512 + 1)).unwrap_or(0),
            Size::Mix => {
                // The Box–Muller transform makes a normal variate of two uniform ones.
                let radius = (-2.0 * self.unit().ln()).sqrt();
                let normal = radius * (std::f64::consts::TAU * self.unit()).cos();
                let len = (MIX_MU + MIX_SIGMA * normal).exp();
                len.clamp(MIX_SMALLEST, size.largest() as f64) as usize
            }
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
            let mut random = Random::new(seed);
            (0..100_000).map(|_| random.size(Size::Mix)).collect::<Vec<usize>>()
        };
        let mut drawn = sizes(1);
        assert!(drawn == sizes(1) && drawn != sizes(2));
        let mean = drawn.iter().sum::<usize>() / drawn.len();
        assert!((49_000..51_000).contains(&mean), "{mean}");
        drawn.sort_unstable();
        assert!((22_500..24_000).contains(&drawn[50_000]), "{}", drawn[50_000]);
        assert!(drawn[0] >= 256 && drawn[99_999] == 1 << 20, "{} {}", drawn[0], drawn[99_999]);
    }

    #[test]
    fn every_item_can_be_chosen() {
        let mut random = Random::new(1);
        let chosen: HashSet<_> = (0..1_000).filter_map(|_| random.choose(&[1, 2, 3]).copied()).collect();
        assert_eq!(chosen.len(), 3);
        assert_eq!(random.choose::<u8>(&[]), None);
        let mut items: Vec<u32> = (0..100).collect();
        random.shuffle(&mut items);
        assert!(!items.is_sorted());
        items.sort_unstable();
        assert!(items.into_iter().eq(0..100));
    }
}
