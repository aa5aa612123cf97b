//! A snapshot as OpenMetrics text.
//!
//! Names start with `tidespool_` and follow the conventions of Prometheus: base units (seconds,
//! bytes) in the name, `_total` on counters, one metric with a label for values that add up. What
//! is counted for each spool has the label `spool`.

use std::collections::BTreeMap;
use std::fmt::{Error, Write as _};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeCounterValue, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use tidespool_pressure::Level;

use super::histogram::Latency;
use super::{SpoolCounts, StatsSnapshot};
use crate::HealthSignal;

/// The upper bounds of the histograms' buckets, as powers of two of a microsecond: 16 µs to 67 s.
/// They are fixed, so that scrapes can be compared. They lie on edges of the finer buckets, so that
/// the counts are exact.
const BOUNDS: std::ops::RangeInclusive<u32> = 4..=26;

impl StatsSnapshot {
    /// Returns these statistics in the OpenMetrics 1.0 text format. The counters of a spool have
    /// the label `spool`, with its name. A store has one exposition, with all of its spools: that
    /// of [`Tidespool::stats`](crate::Tidespool::stats).
    #[must_use]
    pub fn prometheus_text(&self) -> String {
        encode(self)
    }
}

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
    let hits = |of: &SpoolCounts| {
        [
            ("pending", of.hits_pending),
            ("young", of.hits_young),
            ("cache", of.hits_cache),
            ("journal", of.hits_journal),
            ("sled", of.hits_sled),
        ]
    };
    let spools = &stats.spools;
    out.help("Loads by the tier that held the message; sled: a checkpointed one").spool_counters(
        "load_hits",
        "tier",
        spools,
        hits,
    )?;
    out.help("Loads of ids that do not exist").spool_counter("load_misses", spools, |of| of.misses)?;
    out.help(
        "Messages from before this opening that enumerations left out: their ids are newer than the start \
         time, as if the clock was ahead",
    )
    .spool_counter("enumerate_skipped_newer", spools, |of| of.enumerate_skipped_newer)
}

fn stores(out: &mut Encoder<'_>, stats: &StatsSnapshot) -> Result<(), Error> {
    let stores = |of: &SpoolCounts| {
        [("synced", of.stores_synced), ("deferred", of.stores.saturating_sub(of.stores_synced))]
    };
    let refusals = |of: &SpoolCounts| {
        [
            ("unhealthy", of.refused_unhealthy),
            ("caller_deadline", of.refused_caller_deadline),
            ("backpressure", of.refused_backpressure),
            ("too_large", of.refused_too_large),
            ("closed", of.refused_closed),
        ]
    };
    let spools = &stats.spools;
    out.help("Stores acknowledged: synced on stable storage by then, deferred not")
        .spool_counters("stores", "sync", spools, stores)?;
    out.help("Payload bytes of acknowledged stores")
        .spool_byte_counter("stored", spools, |of| of.stored_bytes)?;
    out.help("Stores refused").spool_counters("store_refusals", "reason", spools, refusals)?;
    out.help("Time that stores waited for room, of those that had to wait").spool_histogram(
        "store_wait",
        spools,
        |of| &of.store_wait,
    )?;
    out.help("Removals, also of messages that do not exist")
        .spool_counter("removes", spools, |of| of.removes)?;
    out.help("Records in the journal that were cancelled, because the caller had given up")
        .counter("aborts", stats.aborts)?;
    out.help("Writes avoided: removed or replaced before the commit")
        .counter("elided_writes", stats.elided_writes)?;
    out.help("Bytes of avoided writes, with 256 for each").byte_counter("elided", stats.elided_bytes)
}

fn commits(out: &mut Encoder<'_>, stats: &StatsSnapshot) -> Result<(), Error> {
    out.help("Duration of group commits, from the write to the end of the sync")
        .histogram("commit_duration", &stats.commit)?;
    out.help("Duration of the journal's fdatasync").histogram("sync_duration", &stats.sync)?;
    out.help("Messages and removals that commits made durable")
        .counter("committed_records", stats.committed_records)?;
    out.help("Bytes of committed records, with 256 for each").byte_counter("committed", stats.committed_bytes)
}

fn checkpoints(out: &mut Encoder<'_>, stats: &StatsSnapshot) -> Result<(), Error> {
    out.help("Checkpoints that succeeded").counter("checkpoints", stats.checkpoints)?;
    out.help("Messages and removals that checkpoints wrote to the index on disk")
        .counter("checkpointed_records", stats.checkpointed_records)?;
    out.help("Segments checkpointed").counter("checkpointed_segments", stats.checkpointed_segments)?;
    out.help("Total time of checkpoints").seconds_counter("checkpoint_time", stats.checkpoint_time)?;
    out.help("Segments made ready to be written again")
        .counter("segments_recycled", stats.segments_recycled)?;
    out.help("Rewrites of retained segments, of one or several at a time")
        .counter("segments_rewritten", stats.segments_rewritten)?;
    out.help("Payload bytes moved by rewrites").byte_counter("rewritten", stats.rewritten_bytes)
}

fn memory(out: &mut Encoder<'_>, stats: &StatsSnapshot) -> Result<(), Error> {
    out.help("Clean copies dropped to give memory back")
        .counter("cache_evictions", stats.cache_evicted_entries)?;
    out.help("Bytes of the clean copies dropped").byte_counter("cache_evicted", stats.cache_evicted_bytes)?;
    out.help("Runs of advise_low_memory, including those of the monitor")
        .counter("low_memory_calls", stats.low_memory_calls)?;
    out.help("Bytes freed by advise_low_memory")
        .byte_counter("low_memory_freed", stats.low_memory_freed_bytes)?;
    out.help("Changes of the memory-pressure level").counter("pressure_changes", stats.pressure_changes)
}

fn errors(out: &mut Encoder<'_>, stats: &StatsSnapshot) -> Result<(), Error> {
    let sites = [
        ("journal_write", stats.errors_journal_write),
        ("journal_sync", stats.errors_journal_sync),
        ("journal_read", stats.errors_journal_read),
        ("sled", stats.errors_sled),
        ("manifest", stats.errors_manifest),
    ];
    out.help("Disk errors").counters("disk_errors", "site", &sites)?;
    out.help("Findings of damage, at open and later").counter("corrupt_messages", stats.corrupt)?;
    out.help("Records found missing that had been durable, and messages in segments that are gone")
        .counter("lost_messages", stats.lost)?;
    out.help("Files of the spool found deleted, moved, replaced or cut short while it ran")
        .counter("lost_files", stats.lost_files)?;
    out.help("Records replayed from the journal at open")
        .counter("recovered_records", stats.recovered_records)?;
    out.help("Stores and removals replayed from the crash log at open")
        .counter("replayed_changes", stats.replayed_changes)?;
    out.help("Times that the crash log was deleted, replaced or cut short, or could not be written")
        .counter("crash_logs_lost", stats.crash_logs_lost)?;
    out.help("Stores and removals that were synced, because the crash log had no room or was missing")
        .counter("crash_log_bypassed", stats.crash_log_bypassed)?;
    out.help("Records cut from the end of the journal at open: they had not been acknowledged as durable")
        .counter("torn_records", stats.torn_records)?;
    out.help("Rebuilds of the index that ended").counter("index_rebuilds", stats.index_rebuilds)
}

fn memory_gauges(out: &mut Encoder<'_>, stats: &StatsSnapshot) -> Result<(), Error> {
    let now = &stats.gauges;
    out.help(
        "Messages and removals that are not on stable storage, including those of stores that wait for their \
         sync",
    )
    .byte_gauge("dirty", now.dirty_bytes)?;
    out.help("Messages that a power cut would lose now: acknowledged, and not on stable storage")
        .byte_gauge("at_risk", now.at_risk_bytes)?;
    out.help("Removals that a power cut would undo now").gauge("at_risk_removals", now.at_risk_removals)?;
    out.help(
        "Messages that the death of the process would lose now; 0 if no spool has the durability memory",
    )
    .byte_gauge("process_risk", now.process_risk_bytes)?;
    out.help(
        "Removals that the death of the process would undo now; 0 if no spool has the durability memory",
    )
    .gauge("process_risk_removals", now.process_risk_removals)?;
    out.help("The bound of dirty bytes now: lower than the setting while memory is short")
        .byte_gauge("dirty_limit", now.dirty_limit)?;
    out.help("The number of dirty messages and removals").gauge("dirty_entries", now.dirty_entries)?;
    let age = now.oldest_dirty_age.as_secs_f64();
    out.help("Age of the oldest dirty entry").float_gauge("oldest_dirty_age", &Unit::Seconds, age)?;
    out.help("Clean copies").byte_gauge("cache", now.cache_bytes)?;
    out.help("The number of clean copies").gauge("cache_entries", now.cache_entries)?;
    out.help("The bound of clean copies: what the other parts leave")
        .byte_gauge("cache_capacity", now.cache_capacity)?;
    out.help("Young copies: the clean copies that came last").byte_gauge("young", now.young_bytes)?;
    out.help("The number of young copies").gauge("young_entries", now.young_entries)?;
    out.help("The bound of young copies, a part of that of clean copies")
        .byte_gauge("young_capacity", now.young_capacity)?;
    out.help("Messages and removals in the index in memory").gauge("index_entries", now.index_entries)?;
    out.help("Memory of the index in memory").byte_gauge("index", now.index_bytes)?;
    out.help("Memory of sled, estimated").byte_gauge("sled_memory", now.sled_bytes)?;
    out.help("Memory of the crash log: what the process has used of its file")
        .byte_gauge("crash_log", now.crash_log_bytes)?;
    out.help(
        "Memory that counts against the budget: dirty, cache, index, sled, crash log, the journal's writer",
    )
    .byte_gauge("accounted", now.accounted_bytes)?;
    out.help("Memory of the journal's writer: queued records, without the messages")
        .byte_gauge("journal_buffer", now.journal_buffer_bytes)?;
    out.help("The setting memory_budget").byte_gauge("memory_budget", now.memory_budget)?;
    out.help("Memory that the spool may use now: less than the budget while memory is short")
        .byte_gauge("memory_allowed", now.memory_allowed)?;
    out.help("Resident memory of the process; 0 if the monitor is off or cannot read it")
        .byte_gauge("resident", now.resident_bytes)?;
    let level = match now.pressure_level {
        Level::Normal => 0,
        Level::Low => 1,
        Level::Critical => 2,
    };
    out.help("Memory in use that is compared with the limit; 0 if unknown")
        .byte_gauge("pressure_used", now.pressure_used)?;
    out.help("The memory limit that is nearest to being reached; 0 if unknown")
        .byte_gauge("pressure_limit", now.pressure_limit)?;
    if let Some(source) = now.pressure_source {
        let source = [(source.name(), 1)];
        out.help("1 for the source of use and limit").gauges("pressure_source", "source", &source)?;
    }
    out.help("Memory pressure: 0 normal, 1 low, 2 critical").gauge("pressure_level", level)?;
    if let Some(ratio) = now.memory_stall_ratio {
        let unit = Unit::Other("ratio".to_owned());
        out.help(
            "Share of the last 10 s in which a task waited for memory; only if the kernel reports it (PSI)",
        )
        .float_gauge("memory_stall", &unit, ratio)?;
    }
    Ok(())
}

fn disk_gauges(out: &mut Encoder<'_>, stats: &StatsSnapshot) -> Result<(), Error> {
    let now = &stats.gauges;
    out.help("The crash log's file; 0: there is none")
        .byte_gauge("crash_log_disk", now.crash_log_disk_bytes)?;
    out.help("Bytes of sled's files").byte_gauge("sled_disk", now.sled_disk_bytes)?;
    if let (Some(done), Some(total)) = (now.index_rebuild_indexed, now.index_rebuild_messages) {
        out.help("Messages that a rebuild of the index has done; absent otherwise")
            .gauge("index_rebuild_indexed", done)?;
        out.help("Messages that a rebuild of the index has in all; absent otherwise")
            .gauge("index_rebuild_messages", total)?;
    }
    out.help("Bytes of all segment files").byte_gauge("journal", now.journal_bytes)?;
    out.help("What the journal may use now: journal_capacity, or what fits on the disk if that is less")
        .byte_gauge("journal_capacity", now.journal_capacity)?;
    let segments = [
        ("free", now.journal_segments_free),
        ("in_use", now.journal_segments_in_use),
        ("retained", now.journal_segments_retained),
    ];
    out.help(
        "Segments: free; in use, not all checkpointed yet; retained, checkpointed and kept for the live \
         messages in them, or of a single message larger than segment_size",
    )
    .gauges("journal_segments", "state", &segments)?;
    out.help("1 while new messages are refused")
        .gauge("unhealthy", u64::from(now.unhealthy.is_some() || now.shut_down))?;
    let signal = if now.shut_down { Some("shut_down") } else { now.unhealthy.map(HealthSignal::name) };
    if let Some(signal) = signal {
        out.help("1 for the worst signal, while new messages are refused").gauges(
            "unhealthy_signal",
            "signal",
            &[(signal, 1)],
        )?;
    }
    Ok(())
}

/// Writes the metrics.
struct Encoder<'a>(DescriptorEncoder<'a>);

impl<'a> Encoder<'a> {
    /// Begins a metric with its help text. One call on the result names and writes it.
    fn help<'e>(&'e mut self, help: &'e str) -> Metric<'e, 'a> {
        Metric { encoder: &mut self.0, help }
    }
}

/// A metric that is not written yet.
struct Metric<'e, 'a> {
    encoder: &'e mut DescriptorEncoder<'a>,
    help: &'e str,
}

impl<'e> Metric<'e, '_> {
    fn begin(
        self,
        name: &'e str,
        unit: Option<&'e Unit>,
        kind: MetricType,
    ) -> Result<MetricEncoder<'e>, Error> {
        self.encoder.encode_descriptor(name, self.help, unit, kind)
    }

    fn counter(self, name: &'e str, value: u64) -> Result<(), Error> {
        encode_counter(&mut self.begin(name, None, MetricType::Counter)?, &value)
    }

    fn byte_counter(self, name: &'e str, value: u64) -> Result<(), Error> {
        encode_counter(&mut self.begin(name, Some(&Unit::Bytes), MetricType::Counter)?, &value)
    }

    fn seconds_counter(self, name: &'e str, value: Duration) -> Result<(), Error> {
        let mut metric = self.begin(name, Some(&Unit::Seconds), MetricType::Counter)?;
        encode_counter(&mut metric, &value.as_secs_f64())
    }

    fn counters(self, name: &'e str, label: &str, values: &[(&str, u64)]) -> Result<(), Error> {
        let mut metric = self.begin(name, None, MetricType::Counter)?;
        for &(value_of_label, value) in values {
            encode_counter(&mut metric.encode_family(&[(label, value_of_label)])?, &value)?;
        }
        Ok(())
    }

    fn gauge(self, name: &'e str, value: u64) -> Result<(), Error> {
        self.begin(name, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn byte_gauge(self, name: &'e str, value: u64) -> Result<(), Error> {
        self.begin(name, Some(&Unit::Bytes), MetricType::Gauge)?.encode_gauge(&value)
    }

    fn float_gauge(self, name: &'e str, unit: &'e Unit, value: f64) -> Result<(), Error> {
        self.begin(name, Some(unit), MetricType::Gauge)?.encode_gauge(&value)
    }

    fn gauges(self, name: &'e str, label: &str, values: &[(&str, u64)]) -> Result<(), Error> {
        let mut metric = self.begin(name, None, MetricType::Gauge)?;
        for &(value_of_label, value) in values {
            metric.encode_family(&[(label, value_of_label)])?.encode_gauge(&value)?;
        }
        Ok(())
    }

    fn histogram(self, name: &'e str, latency: &Latency) -> Result<(), Error> {
        encode_histogram(&mut self.begin(name, Some(&Unit::Seconds), MetricType::Histogram)?, latency)
    }

    /// A counter of each spool.
    fn spool_counter(
        self,
        name: &'e str,
        spools: &Spools,
        count: fn(&SpoolCounts) -> u64,
    ) -> Result<(), Error> {
        let metric = self.begin(name, None, MetricType::Counter)?;
        of_each(metric, spools, |metric, of| encode_counter(metric, &count(of)))
    }

    fn spool_byte_counter(
        self,
        name: &'e str,
        spools: &Spools,
        count: fn(&SpoolCounts) -> u64,
    ) -> Result<(), Error> {
        let metric = self.begin(name, Some(&Unit::Bytes), MetricType::Counter)?;
        of_each(metric, spools, |metric, of| encode_counter(metric, &count(of)))
    }

    /// Counters of each spool that add up, with a label for each of them.
    fn spool_counters<const N: usize>(
        self,
        name: &'e str,
        label: &str,
        spools: &Spools,
        counts: fn(&SpoolCounts) -> [(&'static str, u64); N],
    ) -> Result<(), Error> {
        let mut metric = self.begin(name, None, MetricType::Counter)?;
        for (spool, of) in spools {
            for (value_of_label, count) in counts(of) {
                let labels = [(SPOOL, &**spool), (label, value_of_label)];
                encode_counter(&mut metric.encode_family(&labels)?, &count)?;
            }
        }
        Ok(())
    }

    fn spool_histogram(
        self,
        name: &'e str,
        spools: &Spools,
        latency: fn(&SpoolCounts) -> &Latency,
    ) -> Result<(), Error> {
        let metric = self.begin(name, Some(&Unit::Seconds), MetricType::Histogram)?;
        of_each(metric, spools, |metric, of| encode_histogram(metric, latency(of)))
    }
}

/// The label with the name of a spool.
const SPOOL: &str = "spool";

type Spools = BTreeMap<String, SpoolCounts>;

/// Encodes one value for each spool.
fn of_each(
    mut metric: MetricEncoder<'_>,
    spools: &Spools,
    encode: impl Fn(&mut MetricEncoder<'_>, &SpoolCounts) -> Result<(), Error>,
) -> Result<(), Error> {
    for (spool, of) in spools {
        encode(&mut metric.encode_family(&[(SPOOL, &**spool)])?, of)?;
    }
    Ok(())
}

fn encode_histogram(metric: &mut MetricEncoder<'_>, latency: &Latency) -> Result<(), Error> {
    let seconds = |us: u64| Duration::from_micros(us).as_secs_f64();
    let mut buckets = Vec::new();
    let mut below = 0;
    for power in BOUNDS {
        let up_to = latency.below_power_us(power);
        buckets.push((seconds(1 << power), up_to - below));
        below = up_to;
    }
    buckets.push((f64::INFINITY, latency.count - below));
    metric.encode_histogram::<NoLabelSet>(seconds(latency.sum_us), latency.count, &buckets, None)
}

fn encode_counter(metric: &mut MetricEncoder<'_>, value: &impl EncodeCounterValue) -> Result<(), Error> {
    metric.encode_counter::<NoLabelSet, _, u64>(value, None)
}
