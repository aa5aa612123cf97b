//! The state of a run that a workload uses, and the figures that it returns.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::callers::Done;
use crate::engine::{Engine, Needs, Opener};
use crate::figures::{ratio, rounded};
use crate::interrupt::Stop;
use crate::latency::Latency;
use crate::payload::Pool;
use crate::plan::Plan;
use crate::proc;
use crate::report::{Moment, Second};

/// How long nothing more must have been written before background work counts as done.
pub(crate) const QUIET: Duration = Duration::from_millis(1_500);

/// The state of a run that a workload uses.
pub(crate) struct Run<'a> {
    pub(crate) opener: &'a dyn Opener,
    pub(crate) plan: Arc<Plan>,
    pub(crate) pool: Arc<Pool>,
    /// For files of the workload itself.
    pub(crate) dir: PathBuf,
    /// For files of the engine.
    pub(crate) engine_dir: PathBuf,
    pub(crate) stop: Stop,
    /// How long [`settle`](crate::set::settle) waits without a write: [`QUIET`], except in tests.
    pub(crate) quiet: Duration,
}

impl Run<'_> {
    /// Opens the engine with `needs`, passes it to `work`, and shuts it down even after an error.
    pub(crate) async fn with<T>(
        &self,
        needs: &Needs,
        work: impl AsyncFnOnce(&Arc<Engine>) -> Result<T>,
    ) -> Result<T> {
        self.with_in(&self.engine_dir, needs, work).await
    }

    /// The same as [`with`](Self::with), with the engine in `dir`, which is created.
    pub(crate) async fn with_in<T>(
        &self,
        dir: &Path,
        needs: &Needs,
        work: impl AsyncFnOnce(&Arc<Engine>) -> Result<T>,
    ) -> Result<T> {
        std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let engine = self.open_in(dir, needs).await?;
        let result = work(&engine).await;
        let closed = engine.shutdown().await;
        let result = result?;
        closed?;
        Ok(result)
    }

    pub(crate) async fn open(&self, needs: &Needs) -> Result<Arc<Engine>> {
        self.open_in(&self.engine_dir, needs).await
    }

    async fn open_in(&self, dir: &Path, needs: &Needs) -> Result<Arc<Engine>> {
        let name = self.opener.name();
        let opened = self.opener.open(dir, needs).await;
        opened.map(Arc::new).with_context(|| format!("opening {name}"))
    }
}

/// The figures that a workload returns.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) seconds: f64,
    pub(crate) ops: u64,
    /// Payload bytes of the operations.
    pub(crate) bytes: u64,
    pub(crate) latency: Latency,
    pub(crate) series: Option<Vec<Second>>,
    pub(crate) written: Written,
    pub(crate) extra: BTreeMap<String, f64>,
    pub(crate) moments: Vec<Moment>,
}

/// The bytes written to disk.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Written {
    /// Written from this kernel count until after the shutdown.
    Since(u64),
    /// This number of bytes.
    Bytes(u64),
}

impl From<Done> for Measured {
    fn from(done: Done) -> Self {
        Self {
            seconds: done.seconds,
            ops: done.latency.count(),
            bytes: done.bytes,
            latency: done.latency,
            series: Some(done.series),
            written: Written::Since(done.disk_write_bytes_before),
            extra: BTreeMap::new(),
            moments: Vec::new(),
        }
    }
}

impl Measured {
    pub(crate) fn extra(&mut self, name: impl Into<String>, value: f64) {
        self.extra.insert(name.into(), rounded(value));
    }

    /// Adds a number of bytes or a count to `extra`.
    pub(crate) fn extra_count(&mut self, name: impl Into<String>, value: u64) {
        self.extra(name, ratio(value, 1));
    }

    /// Adds the bytes written for each operation. The engine must be shut down.
    pub(crate) fn extra_bytes_per_message(&mut self) -> Result<()> {
        let written = self.disk_write_bytes()?;
        self.extra("bytes_per_message", ratio(written, self.ops));
        Ok(())
    }

    /// Adds the figures of a later part of the same work.
    pub(crate) fn append(&mut self, next: Self) -> Result<()> {
        self.seconds += next.seconds;
        self.ops += next.ops;
        self.bytes += next.bytes;
        self.latency.add(&next.latency)?;
        if let (Some(series), Some(next)) = (&mut self.series, next.series) {
            let begins = series.last().map_or(0, |last| last.second + 1);
            series.extend(next.into_iter().map(|at| Second { second: begins + at.second, ..at }));
        }
        Ok(())
    }

    /// Returns the bytes written to disk so far. The engine must be shut down.
    pub(crate) fn disk_write_bytes(&self) -> Result<u64> {
        match self.written {
            Written::Since(before) => Ok(proc::disk_write_bytes()?.saturating_sub(before)),
            Written::Bytes(bytes) => Ok(bytes),
        }
    }
}
