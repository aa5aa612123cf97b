//! Scans segments on threads of their own, and hands over what they find in order.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use super::scan::{FoundRecord, scan};
use super::segment::Segment;

/// Threads that scan. What is found is taken in order on the caller's.
const SCANNING: usize = 2;

/// Records that are handed over at once.
const BATCH: usize = 8 * 1024;

/// Batches that may wait to be taken, for each thread: a thread is at most that far ahead.
const WAITING: usize = 4;

/// Some of a segment's records.
struct ScannedBatch {
    found: Vec<FoundRecord>,
    /// Set in the last batch of a segment: how its reading ended.
    end: Option<io::Result<u64>>,
}

/// Calls `take` for each record of each of `segments`, in order, with the number of the segment among them. Reads ahead beside it. Memory is bounded
/// whatever the segments hold. Says how many headers are broken, as [`scan`] does.
///
/// The error is that of the first segment that could not be read, which is named.
pub(super) fn scan_in_order<S: AsRef<Segment> + Sync>(
    segments: &[S],
    salt: u32,
    take: &mut dyn FnMut(usize, FoundRecord),
) -> Result<u64, (usize, io::Error)> {
    let stopped = AtomicBool::new(false);
    thread::scope(|scope| {
        let stopped = &stopped;
        let lanes: Vec<Option<Receiver<ScannedBatch>>> = (0..SCANNING.min(segments.len()))
            .map(|lane| {
                let (sender, receiver) = sync_channel(WAITING);
                let its_own = segments.iter().skip(lane).step_by(SCANNING);
                let thread = thread::Builder::new().name("tide-open".to_owned());
                let started = thread.spawn_scoped(scope, move || {
                    for segment in its_own {
                        if stopped.load(Ordering::Relaxed) || !send_all(segment.as_ref(), salt, &sender) {
                            return;
                        }
                    }
                });
                started.is_ok().then_some(receiver)
            })
            .collect();
        let mut broken = 0;
        for (number, segment) in segments.iter().enumerate() {
            let end = match lanes.get(number % SCANNING).and_then(Option::as_ref) {
                Some(lane) => take_segment(lane, &mut |found| take(number, found)),
                // No thread could be had for it.
                None => scan_segment(segment.as_ref(), salt, &mut |found| take(number, found)),
            };
            match end {
                Ok(here) => broken += here,
                Err(error) => {
                    stopped.store(true, Ordering::Relaxed);
                    return Err((number, error));
                }
            }
        }
        Ok(broken)
    })
}

/// Takes the batches of one segment.
fn take_segment(lane: &Receiver<ScannedBatch>, take: &mut dyn FnMut(FoundRecord)) -> io::Result<u64> {
    loop {
        let batch = lane.recv().map_err(|_| io::Error::other("the thread that read it panicked"))?;
        batch.found.into_iter().for_each(&mut *take);
        if let Some(end) = batch.end {
            return end;
        }
    }
}

/// Scans a segment for the one who takes. `false`: there is nobody any more.
fn send_all(segment: &Segment, salt: u32, sender: &SyncSender<ScannedBatch>) -> bool {
    let mut found = Vec::with_capacity(BATCH);
    let mut is_heard = true;
    let end = scan_segment(segment, salt, &mut |record| {
        found.push(record);
        if found.len() == BATCH {
            let found = std::mem::replace(&mut found, Vec::with_capacity(BATCH));
            is_heard = is_heard && sender.send(ScannedBatch { found, end: None }).is_ok();
        }
    });
    is_heard && sender.send(ScannedBatch { found, end: Some(end) }).is_ok()
}

fn scan_segment(segment: &Segment, salt: u32, visit: &mut dyn FnMut(FoundRecord)) -> io::Result<u64> {
    scan(&*segment.file, salt, segment.generation, visit)
}
