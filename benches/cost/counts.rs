//! Counts that the program takes itself: allocations and calls of the storage.

use std::alloc::System;
use std::fs;
use std::ops::Sub;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use stats_alloc::{INSTRUMENTED_SYSTEM, Stats, StatsAlloc};

use super::storage::CountingStorage;

/// Counts the allocations of every thread.
#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Counts at a moment, or between two moments.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// Allocations and reallocations.
    pub(crate) allocations: u64,
    /// Allocated bytes; for a reallocation, the added bytes.
    pub(crate) allocated_bytes: u64,
    /// Syncs of the journal's and the manifest's files and directories.
    pub(crate) syncs: u64,
    /// Bytes written into the journal and the manifest.
    pub(crate) written_bytes: u64,
    /// Reads of the journal.
    pub(crate) reads: u64,
    /// Bytes read from the journal.
    pub(crate) read_bytes: u64,
    /// Bytes that the process wrote elsewhere: sled's files, and 8 bytes for each wakeup of a
    /// sleeping runtime.
    pub(crate) other_written_bytes: u64,
}

impl Counts {
    /// The totals since the start of the program, at the start of a section.
    ///
    /// # Errors
    ///
    /// If `/proc/self/io` cannot be read.
    pub(crate) fn at_begin(storage: &CountingStorage) -> Result<Self> {
        let written = bytes_written_by_process()?;
        // Last, so that the allocations of this function are not counted.
        Ok(Self::new(storage, written, ALLOCATOR.stats()))
    }

    /// The totals at the end of a section.
    ///
    /// # Errors
    ///
    /// If `/proc/self/io` cannot be read.
    pub(crate) fn at_end(storage: &CountingStorage) -> Result<Self> {
        // First, so that the allocations of this function are not counted.
        let memory = ALLOCATOR.stats();
        Ok(Self::new(storage, bytes_written_by_process()?, memory))
    }

    fn new(storage: &CountingStorage, written: u64, memory: Stats) -> Self {
        let traffic = storage.traffic();
        Self {
            allocations: (memory.allocations + memory.reallocations) as u64,
            allocated_bytes: memory.bytes_allocated as u64,
            syncs: traffic.syncs,
            written_bytes: traffic.written,
            reads: traffic.reads,
            read_bytes: traffic.read,
            other_written_bytes: written.saturating_sub(traffic.written),
        }
    }
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            allocations: self.allocations - before.allocations,
            allocated_bytes: self.allocated_bytes - before.allocated_bytes,
            syncs: self.syncs - before.syncs,
            written_bytes: self.written_bytes - before.written_bytes,
            reads: self.reads - before.reads,
            read_bytes: self.read_bytes - before.read_bytes,
            other_written_bytes: self.other_written_bytes.saturating_sub(before.other_written_bytes),
        }
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, more: Self) {
        self.allocations += more.allocations;
        self.allocated_bytes += more.allocated_bytes;
        self.syncs += more.syncs;
        self.written_bytes += more.written_bytes;
        self.reads += more.reads;
        self.read_bytes += more.read_bytes;
        self.other_written_bytes += more.other_written_bytes;
    }
}

fn bytes_written_by_process() -> Result<u64> {
    const PATH: &str = "/proc/self/io";
    let text = fs::read_to_string(PATH).with_context(|| format!("reading {PATH}"))?;
    let bytes = text.lines().find_map(|line| line.strip_prefix("wchar: "));
    bytes.and_then(|bytes| bytes.parse().ok()).with_context(|| format!("{PATH} has no wchar"))
}
