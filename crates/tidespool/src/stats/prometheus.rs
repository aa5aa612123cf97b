//! A snapshot as OpenMetrics text.
//!
//! Names start with `tidespool_` and follow the conventions of Prometheus: base units (seconds,
//! bytes) in the name, `_total` on counters, one metric with a label for values that add up.

use std::fmt::{Error, Write as _};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use tidespool_pressure::Level;

use super::StatsSnapshot;
use super::histogram::Latency;
use crate::HealthSignal;

/// The upper bounds of the histograms' buckets, as powers of two of a microsecond: 16 µs to 67 s.
/// They are fixed, so that scrapes can be compared. They lie on edges of the finer buckets, so that
/// the counts are exact.
const BOUNDS: std::ops::RangeInclusive<u32> = 4..=26;

impl StatsSnapshot {
    /// Returns these statistics in the OpenMetrics 1.0 text format.
    #[must_use]
    pub fn prometheus_text(&self) -> String {
        encode(self)
    }
}

const SEGMENTS_HELP: &str = "Segments: free; in use, not all checkpointed yet; retained, checkpointed and kept for the live \
     messages in them, or of a single message larger than segment_size";

/// Encodes the whole exposition, including `# EOF`.
fn encode(snapshot: &StatsSnapshot) -> String {
    let mut registry = Registry::with_prefix("tidespool");
    registry.register_collector(Box::new(Exposition(snapshot.clone())));
    let mut text = String::new();
    if text::encode(&mut text, &registry).is_err() {
        // Writing to a `String` does not fail. If it did, the scraper must get no partial text.
        text.clear();
        let _ = writeln!(text, "# the statistics could not be written\n# EOF");
    }
    text
}

#[derive(Debug)]
struct Exposition(StatsSnapshot);

impl Collector for Exposition {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let stats = &self.0;
        let mut out = Encoder(encoder);
        loads(&mut out, stats)?;
        stores(&mut out, stats)?;
        commits(&mut out, stats)?;
        checkpoints(&mut out, stats)?;
        memory(&mut out, stats)?;
        errors(&mut out, stats)?;
        memory_gauges(&mut out, stats)?;
        disk_gauges(&mut out, stats)
    }
}

fn loads(out: &mut Encoder<'_>, stats: &StatsSnapshot) -> Result<(), Error> {
    let hits = [
        ("pending", stats.hits_pending),
        ("cache", stats.hits_cache),
        ("journal", stats.hits_journal),
        ("sled", stats.hits_sled),
    ];
    out.counters(
        "load_hits",
        "Loads by the tier that held the message; sled: a checkpointed one",
        "tier",
        &hits,
    )?;
    out.counter("load_misses", "Loads of ids that do not exist", stats.misses)?;
    out.counter(
        "enumerate_skipped_newer",
        "Messages from before this opening that enumerations left out: their ids are newer than the start \
         time, as if the clock was ahead",
        stats.enumerate_skipped_newer,
    )
}

fn stores(out: &mut Encoder<'_>, stats: &StatsSnapshot) -> Result<(), Error> {
    let at_once = stats.stores_synced;
    let stores = [("synced", at_once), ("deferred", stats.stores.saturating_sub(at_once))];
    out.counters(
        "stores",
        "Stores acknowledged: synced on stable storage by then, deferred not",
        "sync",
        &stores,
    )?;
    out.byte_counter("stored", "Payload bytes of acknowledged stores", stats.stored_bytes)?;
    let refusals = [
        ("unhealthy", stats.refused_unhealthy),
        ("caller_deadline", stats.refused_caller_deadline),
        ("backpressure", stats.refused_backpressure),
        ("too_large", stats.refused_too_large),
        ("closed", stats.refused_closed),
    ];
    out.counters("store_refusals", "Stores refused", "reason", &refusals)?;
    out.histogram(
        "store_wait",
        "Time that stores waited for room, of those that had to wait",
        &stats.store_wait,
    )?;
    out.counter("removes", "Removals, also of messages that do not exist", stats.removes)?;
    out.counter(
        "aborts",
        "Records in the journal that were cancelled, because the caller had given up",
        stats.aborts,
    )?;
    out.counter(
        "elided_writes",
        "Writes avoided: removed or replaced before the commit",
        stats.elided_writes,
    )?;
    out.byte_counter("elided", "Bytes of avoided writes, with 256 for each", stats.elided_bytes)
}

fn commits(out: &mut Encoder<'_>, stats: &StatsSnapshot) -> Result<(), Error> {
    out.histogram(
        "commit_duration",
        "Duration of group commits, from the write to the end of the sync",
        &stats.commit,
    )?;
    out.histogram("sync_duration", "Duration of the journal's fdatasync", &stats.sync)?;
    out.counter(
        "committed_records",
        "Messages and removals that commits made durable",
        stats.committed_records,
    )?;
    out.byte_counter("committed", "Bytes of committed records, with 256 for each", stats.committed_bytes)
}

fn checkpoints(out: &mut Encoder<'_>, stats: &StatsSnapshot) -> Result<(), Error> {
    out.counter("checkpoints", "Checkpoints that succeeded", stats.checkpoints)?;
    out.counter(
        "checkpointed_records",
        "Messages and removals that checkpoints wrote to the index on disk",
        stats.checkpointed_records,
    )?;
    out.counter("checkpointed_segments", "Segments checkpointed", stats.checkpointed_segments)?;
    out.seconds_counter("checkpoint_time", "Total time of checkpoints", stats.checkpoint_time)?;
    out.counter("segments_recycled", "Segments made ready to be written again", stats.segments_recycled)?;
    out.counter(
        "segments_rewritten",
        "Rewrites of retained segments, of one or several at a time",
        stats.segments_rewritten,
    )?;
    out.byte_counter("rewritten", "Payload bytes moved by rewrites", stats.rewritten_bytes)
}

fn memory(out: &mut Encoder<'_>, stats: &StatsSnapshot) -> Result<(), Error> {
    out.counter("cache_evictions", "Clean copies dropped to give memory back", stats.cache_evicted_entries)?;
    out.byte_counter("cache_evicted", "Bytes of the clean copies dropped", stats.cache_evicted_bytes)?;
    out.counter(
        "low_memory_calls",
        "Runs of advise_low_memory, including those of the monitor",
        stats.low_memory_calls,
    )?;
    out.byte_counter("low_memory_freed", "Bytes freed by advise_low_memory", stats.low_memory_freed_bytes)?;
    out.counter("pressure_changes", "Changes of the memory-pressure level", stats.pressure_changes)
}

fn errors(out: &mut Encoder<'_>, stats: &StatsSnapshot) -> Result<(), Error> {
    let sites = [
        ("journal_write", stats.errors_journal_write),
        ("journal_sync", stats.errors_journal_sync),
        ("journal_read", stats.errors_journal_read),
        ("sled", stats.errors_sled),
        ("manifest", stats.errors_manifest),
    ];
    out.counters("disk_errors", "Disk errors", "site", &sites)?;
    out.counter("corrupt_messages", "Findings of damage, at open and later", stats.corrupt)?;
    out.counter(
        "lost_messages",
        "Records found missing that had been durable, and messages in segments that are gone",
        stats.lost,
    )?;
    out.counter(
        "lost_files",
        "Files of the spool found deleted, moved, replaced or cut short while it ran",
        stats.lost_files,
    )?;
    out.counter("recovered_records", "Records replayed from the journal at open", stats.recovered_records)?;
    out.counter(
        "replayed_changes",
        "Stores and removals replayed from the crash log at open",
        stats.replayed_changes,
    )?;
    out.counter(
        "crash_logs_lost",
        "Times that the crash log was deleted, replaced or cut short, or could not be written",
        stats.crash_logs_lost,
    )?;
    out.counter(
        "crash_log_bypassed",
        "Stores and removals that were synced, because the crash log had no room or was missing",
        stats.crash_log_bypassed,
    )?;
    out.counter(
        "torn_records",
        "Records cut from the end of the journal at open: they had not been acknowledged as durable",
        stats.torn_records,
    )?;
    out.counter("index_rebuilds", "Rebuilds of the index that ended", stats.index_rebuilds)
}

fn memory_gauges(out: &mut Encoder<'_>, stats: &StatsSnapshot) -> Result<(), Error> {
    let now = &stats.gauges;
    out.byte_gauge(
        "dirty",
        "Messages and removals that are not on stable storage, including those of stores that wait for their \
         sync",
        now.dirty_bytes,
    )?;
    out.byte_gauge(
        "at_risk",
        "Messages that a power cut would lose now: acknowledged, and not on stable storage",
        now.at_risk_bytes,
    )?;
    out.gauge("at_risk_removals", "Removals that a power cut would undo now", now.at_risk_removals)?;
    out.byte_gauge(
        "process_risk",
        "Messages that the death of the process would lose now; 0 above the durability memory",
        now.process_risk_bytes,
    )?;
    out.gauge(
        "process_risk_removals",
        "Removals that the death of the process would undo now; 0 above the durability memory",
        now.process_risk_removals,
    )?;
    out.byte_gauge(
        "dirty_limit",
        "The bound of dirty bytes now: lower than the setting while memory is short",
        now.dirty_limit,
    )?;
    out.gauge("dirty_entries", "The number of dirty messages and removals", now.dirty_entries)?;
    let age = now.oldest_dirty_age.as_secs_f64();
    out.float_gauge("oldest_dirty_age", "Age of the oldest dirty entry", &Unit::Seconds, age)?;
    out.byte_gauge("cache", "Clean copies", now.cache_bytes)?;
    out.gauge("cache_entries", "The number of clean copies", now.cache_entries)?;
    out.byte_gauge(
        "cache_capacity",
        "The bound of clean copies: what the other parts leave",
        now.cache_capacity,
    )?;
    out.gauge("index_entries", "Messages and removals in the index in memory", now.index_entries)?;
    out.byte_gauge("index", "Memory of the index in memory", now.index_bytes)?;
    out.byte_gauge("sled_memory", "Memory of sled, estimated", now.sled_bytes)?;
    out.byte_gauge(
        "crash_log",
        "Memory of the crash log: what the process has used of its file",
        now.crash_log_bytes,
    )?;
    out.byte_gauge(
        "accounted",
        "Memory that counts against the budget: dirty, cache, index, sled, crash log, the journal's writer",
        now.accounted_bytes,
    )?;
    out.byte_gauge(
        "journal_buffer",
        "Memory of the journal's writer: queued records, without the messages",
        now.journal_buffer_bytes,
    )?;
    out.byte_gauge("memory_budget", "The setting memory_budget", now.memory_budget)?;
    out.byte_gauge(
        "memory_allowed",
        "Memory that the spool may use now: less than the budget while memory is short",
        now.memory_allowed,
    )?;
    out.byte_gauge(
        "resident",
        "Resident memory of the process; 0 if the monitor is off or cannot read it",
        now.resident_bytes,
    )?;
    let level = match now.pressure_level {
        Level::Normal => 0,
        Level::Low => 1,
        Level::Critical => 2,
    };
    out.byte_gauge(
        "pressure_used",
        "Memory in use that is compared with the limit; 0 if unknown",
        now.pressure_used,
    )?;
    out.byte_gauge(
        "pressure_limit",
        "The memory limit that is nearest to being reached; 0 if unknown",
        now.pressure_limit,
    )?;
    if let Some(source) = now.pressure_source {
        out.gauges("pressure_source", "1 for the source of use and limit", "source", &[(source.name(), 1)])?;
    }
    out.gauge("pressure_level", "Memory pressure: 0 normal, 1 low, 2 critical", level)?;
    match now.memory_stall_ratio {
        Some(ratio) => {
            let unit = Unit::Other("ratio".to_owned());
            out.float_gauge(
                "memory_stall",
                "Share of the last 10 s in which a task waited for memory; only if the kernel reports it (PSI)",
                &unit,
                ratio,
            )
        }
        None => Ok(()),
    }
}

fn disk_gauges(out: &mut Encoder<'_>, stats: &StatsSnapshot) -> Result<(), Error> {
    let now = &stats.gauges;
    out.byte_gauge("crash_log_disk", "The crash log's file; 0: there is none", now.crash_log_disk_bytes)?;
    out.byte_gauge("sled_disk", "Bytes of sled's files", now.sled_disk_bytes)?;
    if let (Some(done), Some(total)) = (now.index_rebuild_indexed, now.index_rebuild_messages) {
        out.gauge(
            "index_rebuild_indexed",
            "Messages that a rebuild of the index has done; absent otherwise",
            done,
        )?;
        out.gauge(
            "index_rebuild_messages",
            "Messages that a rebuild of the index has in all; absent otherwise",
            total,
        )?;
    }
    out.byte_gauge("journal", "Bytes of all segment files", now.journal_bytes)?;
    out.byte_gauge(
        "journal_capacity",
        "What the journal may use now: journal_capacity, or what fits on the disk if that is less",
        now.journal_capacity,
    )?;
    let segments = [
        ("free", now.journal_segments_free),
        ("in_use", now.journal_segments_in_use),
        ("retained", now.journal_segments_retained),
    ];
    out.gauges("journal_segments", SEGMENTS_HELP, "state", &segments)?;
    out.gauge(
        "unhealthy",
        "1 while new messages are refused",
        u64::from(now.unhealthy.is_some() || now.shut_down),
    )?;
    let signal = if now.shut_down { Some("shut_down") } else { now.unhealthy.map(HealthSignal::name) };
    if let Some(signal) = signal {
        let help = "1 for the worst signal, while new messages are refused";
        out.gauges("unhealthy_signal", help, "signal", &[(signal, 1)])?;
    }
    Ok(())
}

/// Writes one metric per call.
struct Encoder<'a>(DescriptorEncoder<'a>);

impl Encoder<'_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> Result<(), Error> {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    fn byte_counter(&mut self, name: &str, help: &str, value: u64) -> Result<(), Error> {
        let mut metric = self.0.encode_descriptor(name, help, Some(&Unit::Bytes), MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    fn seconds_counter(&mut self, name: &str, help: &str, value: Duration) -> Result<(), Error> {
        let mut metric = self.0.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(&value.as_secs_f64(), None)
    }

    fn counters(&mut self, name: &str, help: &str, label: &str, values: &[(&str, u64)]) -> Result<(), Error> {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for &(value_of_label, value) in values {
            let labels = [(label, value_of_label)];
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        Ok(())
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> Result<(), Error> {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        metric.encode_gauge(&value)
    }

    fn byte_gauge(&mut self, name: &str, help: &str, value: u64) -> Result<(), Error> {
        let mut metric = self.0.encode_descriptor(name, help, Some(&Unit::Bytes), MetricType::Gauge)?;
        metric.encode_gauge(&value)
    }

    fn float_gauge(&mut self, name: &str, help: &str, unit: &Unit, value: f64) -> Result<(), Error> {
        let mut metric = self.0.encode_descriptor(name, help, Some(unit), MetricType::Gauge)?;
        metric.encode_gauge(&value)
    }

    fn gauges(&mut self, name: &str, help: &str, label: &str, values: &[(&str, u64)]) -> Result<(), Error> {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for &(value_of_label, value) in values {
            let labels = [(label, value_of_label)];
            metric.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    fn histogram(&mut self, name: &str, help: &str, latency: &Latency) -> Result<(), Error> {
        let seconds = |us: u64| Duration::from_micros(us).as_secs_f64();
        let mut buckets = Vec::new();
        let mut below = 0;
        for power in BOUNDS {
            let up_to = latency.below_power_us(power);
            buckets.push((seconds(1 << power), up_to - below));
            below = up_to;
        }
        buckets.push((f64::INFINITY, latency.count - below));
        let mut metric = self.0.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        metric.encode_histogram::<NoLabelSet>(seconds(latency.sum_us), latency.count, &buckets, None)
    }
}
