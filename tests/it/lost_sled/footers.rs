//! A sealed segment ends with a footer, a list of its records, from which sled is rebuilt. If the
//! footer is damaged too, the segment is scanned, and the same messages are found.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use super::images::{SEGMENT_SIZE, State};
use super::*;

/// Size of a page. The last page of the footer ends at the end of the segment.
const PAGE: usize = 4096;

/// Damage to the end of a segment.
#[derive(Debug, Clone, Copy)]
enum End {
    Zero(usize),
    Garbage(usize),
    /// Flips one bit, at this distance in bytes from the end.
    Flip(usize),
    /// Replaces it with the end of another segment.
    Exchange,
}

const ENDS: [End; 8] = [
    End::Zero(64),
    End::Zero(PAGE),
    End::Garbage(64),
    End::Garbage(PAGE),
    // In the trailer, and in the last entries.
    End::Flip(3),
    End::Flip(30),
    End::Flip(50),
    End::Exchange,
];

/// The segments that can have a footer. One that was created for a single large message has none.
fn segments(spool: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(spool.join("journal")).unwrap().map(|entry| entry.unwrap().path());
    let mut segments: Vec<_> =
        entries.filter(|path| fs::metadata(path).unwrap().len() == SEGMENT_SIZE).collect();
    segments.sort();
    assert!(segments.len() > 2);
    segments
}

fn last_page(path: &Path) -> Vec<u8> {
    let bytes = fs::read(path).unwrap();
    bytes[bytes.len() - PAGE..].to_vec()
}

fn damage(path: &Path, end: End, other: &[u8], rng: &mut SmallRng) {
    let mut page = last_page(path);
    match end {
        End::Zero(len) => page[PAGE - len..].fill(0),
        End::Garbage(len) => rng.fill(&mut page[PAGE - len..]),
        End::Flip(before_end) => page[PAGE - before_end] ^= 0x10,
        End::Exchange => page.copy_from_slice(other),
    }
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&page, SEGMENT_SIZE - PAGE as u64).unwrap();
}

/// Damages the end of each `n`-th segment, and loses sled.
async fn damaged_ends(state: State) {
    let images = Arc::new(Images::new().await);
    let cases = ENDS.into_iter().flat_map(|end| [(end, 1), (end, 3)]);
    each_case(cases, |(end, n)| {
        let images = images.clone();
        async move {
            let (_dir, config) = images.copy(state);
            let segments = segments(&config.path);
            let ends: Vec<_> = segments.iter().map(|path| last_page(path)).collect();
            for (place, path) in segments.iter().enumerate().step_by(n) {
                let other = &ends[(place + 1) % ends.len()];
                damage(path, end, other, &mut SmallRng::seed_from_u64(place as u64));
            }
            lose_all(&config.path, 0);
            assert_is_whole(&config, &images.expected).await;
        }
    })
    .await;
}

alone_tests! {
    damaged_after_a_shutdown: damaged_ends(State::Closed);
    damaged_after_a_kill: damaged_ends(State::Killed);
}
