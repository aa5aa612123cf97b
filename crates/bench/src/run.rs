//! One run: what a workload works with, and what it measures.

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

/// Where an engine cannot tell when everything is durable, or when its background work is done: nothing more has been
/// written for this long.
pub(crate) const QUIET: Duration = Duration::from_millis(1_500);

/// What a workload has to work with.
pub(crate) struct Run<'a> {
    pub(crate) opener: &'a dyn Opener,
    pub(crate) plan: Arc<Plan>,
    pub(crate) pool: Arc<Pool>,
    /// For what the workload itself writes.
    pub(crate) dir: PathBuf,
    /// The engine's own.
    pub(crate) engine_dir: PathBuf,
    pub(crate) stop: Stop,
    /// See `set::settle`.
    pub(crate) quiet: Duration,
}

impl Run<'_> {
    /// Opens the engine as `needs` says, lets `work` use it, and shuts it down whatever happened.
    pub(crate) async fn with<T>(
        &self,
        needs: &Needs,
        work: impl AsyncFnOnce(&Arc<Engine>) -> Result<T>,
    ) -> Result<T> {
        self.with_in(&self.engine_dir, needs, work).await
    }

    /// The same with the engine in `dir`, which is made.
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

/// What a workload found.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) seconds: f64,
    pub(crate) ops: u64,
    /// Payload bytes of these.
    pub(crate) bytes: u64,
    pub(crate) latency: Latency,
    pub(crate) series: Option<Vec<Second>>,
    pub(crate) written: Written,
    pub(crate) extra: BTreeMap<String, f64>,
    pub(crate) moments: Vec<Moment>,
}

/// Bytes written to disk.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Written {
    /// From when the kernel's count was this until after the shutdown.
    Since(u64),
    /// So many.
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

    /// The same for bytes and counts.
    pub(crate) fn extra_count(&mut self, name: impl Into<String>, value: u64) {
        self.extra(name, ratio(value, 1));
    }

    /// Once the engine is shut down: what the operations cost on disk.
    pub(crate) fn extra_bytes_per_message(&mut self) -> Result<()> {
        let written = self.disk_write_bytes()?;
        self.extra("bytes_per_message", ratio(written, self.ops));
        Ok(())
    }

    /// Another part of the same work, which came after this one.
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

    /// Bytes written to disk until now, which is after the shutdown.
    pub(crate) fn disk_write_bytes(&self) -> Result<u64> {
        match self.written {
            Written::Since(before) => Ok(proc::disk_write_bytes()?.saturating_sub(before)),
            Written::Bytes(bytes) => Ok(bytes),
        }
    }
}
