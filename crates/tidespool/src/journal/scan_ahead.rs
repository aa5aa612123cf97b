//! Scans segments on separate threads, and passes their records on in order.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use super::scan::{FoundRecord, scan};
use super::segment::Segment;

/// Threads that scan. The caller's thread takes the records, in order.
const SCANNING: usize = 2;

/// Records in a full batch.
const BATCH: usize = 8 * 1024;

/// Batches that may be queued for each thread: the bound on how far it reads ahead.
const WAITING: usize = 4;

/// Some of a segment's records.
struct ScannedBatch {
    found: Vec<FoundRecord>,
    /// Set in the last batch of a segment: the result of its scan.
    end: Option<io::Result<u64>>,
}

/// Calls `take` for each record of each of `segments`, in order, with the index of the segment.
/// Scans ahead on other threads. Memory is bounded whatever the segments hold. Returns the number
/// of broken headers, as [`scan`] does.
///
/// Returns the error of the first segment that could not be read, with its index.
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
                // The segment's thread could not be started.
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

/// Scans a segment and sends its records. False if the receiver is gone.
fn send_all(segment: &Segment, salt: u32, sender: &SyncSender<ScannedBatch>) -> bool {
    let mut found = Vec::with_capacity(BATCH);
    let mut is_connected = true;
    let end = scan_segment(segment, salt, &mut |record| {
        found.push(record);
        if found.len() == BATCH {
            let found = std::mem::replace(&mut found, Vec::with_capacity(BATCH));
            is_connected = is_connected && sender.send(ScannedBatch { found, end: None }).is_ok();
        }
    });
    is_connected && sender.send(ScannedBatch { found, end: Some(end) }).is_ok()
}

fn scan_segment(segment: &Segment, salt: u32, visit: &mut dyn FnMut(FoundRecord)) -> io::Result<u64> {
    scan(&*segment.file, salt, segment.generation, visit)
}
