//! The result, as a table or as one line of JSON.

use std::fmt::Write as _;

use bytesize::ByteSize;
use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;

use crate::progress::per_second;
use crate::resume::Recovery;
use crate::server::Server;
use crate::spools::DIRTY_EXPIRE;
use crate::verify::Arrived;

/// The result of the check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    AllArrived,
    /// All messages arrived, except unsynced ones acknowledged shortly before a kill.
    LostUnsynced,
    Wrong,
}

/// The final report.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    verdict: Verdict,
    input: String,
    input_messages: usize,
    /// Total of the whole run, including the time before a restart.
    /// `accepted = delivered + bounced + lost` in a correct run.
    accepted: u64,
    delivered: u64,
    bounced: u64,
    lost: u64,
    bytes_compared: u64,
    /// The fields from here on describe this process only.
    accepted_here: u64,
    delivered_here: u64,
    retried: u64,
    refused: u64,
    duplicates: u64,
    accept_p50_us: Option<u64>,
    accept_p99_us: Option<u64>,
    delivery_p50_us: Option<u64>,
    delivery_p99_us: Option<u64>,
    data_hit_ratio: Option<f64>,
    meta_hit_ratio: Option<f64>,
    elided_writes: u64,
    accepted_bytes: u64,
    delivered_bytes: u64,
    seconds: f64,
    msg_per_s: f64,
    force_sync: bool,
    recovery: Option<Recovery>,
    problems: u64,
    first_problems: Vec<String>,
}

impl Summary {
    /// `accepted` and `lost` are totals of the whole run.
    pub(crate) fn new(
        server: &Server,
        (accepted, lost): (u64, u64),
        arrived: Arrived,
        recovery: Option<Recovery>,
        seconds: f64,
    ) -> Self {
        let counters = &server.counters;
        let figures = server.spools.figures();
        let problems = counters.problems.count();
        let verdict = match (problems, lost) {
            (0, 0) => Verdict::AllArrived,
            (0, _) => Verdict::LostUnsynced,
            _ => Verdict::Wrong,
        };
        let done = counters.delivered.get() + counters.bounced.get();
        Self {
            verdict,
            input: server.input.origin.clone(),
            input_messages: server.input.templates.len(),
            accepted,
            delivered: arrived.delivered,
            bounced: arrived.bounced,
            lost,
            bytes_compared: arrived.bytes,
            accepted_here: counters.accepted.get(),
            delivered_here: counters.delivered.get(),
            retried: counters.retried.get(),
            refused: counters.refused.get(),
            duplicates: counters.duplicates.get(),
            accept_p50_us: counters.accept_time.percentile(50.0),
            accept_p99_us: counters.accept_time.percentile(99.0),
            delivery_p50_us: counters.delivery_time.percentile(50.0),
            delivery_p99_us: counters.delivery_time.percentile(99.0),
            data_hit_ratio: figures.data_hit_ratio,
            meta_hit_ratio: figures.meta_hit_ratio,
            elided_writes: figures.elided_writes,
            accepted_bytes: counters.accepted_bytes.get(),
            delivered_bytes: counters.delivered_bytes.get(),
            seconds,
            msg_per_s: per_second(done, seconds),
            force_sync: server.sync,
            recovery,
            problems,
            first_problems: counters.problems.first(),
        }
    }

    pub(crate) fn verdict(&self) -> Verdict {
        self.verdict
    }

    pub(crate) fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }

    pub(crate) fn text(&self) -> String {
        let mut text = format!("{}\n", self.table());
        for problem in &self.first_problems {
            let _ = writeln!(text, "  ! {problem}");
        }
        text + &self.conclusion()
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        let mut row = |name: &str, value: String| {
            table.add_row([Cell::new(name), Cell::new(value).set_alignment(CellAlignment::Right)]);
        };
        row("messages of the input", self.input_messages.to_string());
        row("accepted", self.accepted.to_string());
        row("delivered", self.delivered.to_string());
        row("bounced", self.bounced.to_string());
        row("lost in the kill, not yet on disk", self.lost.to_string());
        if let Some(recovery) = &self.recovery {
            row("· accepted before the restart", (self.accepted - self.accepted_here).to_string());
            row("· found in the spools, resumed", recovery.resumed.to_string());
            row("· of those, not yet acknowledged", recovery.unacknowledged.to_string());
            let orphans = format!("{} / {}", recovery.orphan_datas, recovery.orphan_metas);
            row("· data / metadata alone, removed", orphans);
        }
        row("retries", self.retried.to_string());
        row("refused, came again", self.refused.to_string());
        row("duplicates", self.duplicates.to_string());
        row("accept p50 / p99", times(self.accept_p50_us, self.accept_p99_us));
        row("accepted → delivered p50 / p99", times(self.delivery_p50_us, self.delivery_p99_us));
        row(
            "hits, data / metadata",
            format!("{} / {}", percent(self.data_hit_ratio), percent(self.meta_hit_ratio)),
        );
        row("writes elided", self.elided_writes.to_string());
        row("bytes accepted", ByteSize(self.accepted_bytes).to_string());
        row("bytes delivered", ByteSize(self.delivered_bytes).to_string());
        row("time", format!("{:.1} s", self.seconds));
        row("messages per second", format!("{:.0}", self.msg_per_s));
        table
    }

    fn conclusion(&self) -> String {
        let compared = format!("{} compared byte for byte", ByteSize(self.bytes_compared));
        match self.verdict {
            Verdict::AllArrived => {
                format!("OK: what arrived equals what was sent ({} messages, {compared}).", self.accepted)
            }
            Verdict::LostUnsynced => format!(
                "All that was on disk arrived ({compared}). {} messages were acknowledged in the last moments\n\
                 before the kill and not yet on disk: the documented risk without --sync (dirty_expire, {} ms).",
                self.lost,
                DIRTY_EXPIRE.as_millis()
            ),
            Verdict::Wrong => format!("WRONG: {} problems, the first are above.", self.problems),
        }
    }
}

/// Summarizes the recovery in one line.
pub(crate) fn recovery_line(recovery: &Recovery) -> String {
    let Recovery {
        resumed,
        unacknowledged,
        orphan_metas,
        orphan_datas,
        lost_in_window,
        lost_against_promise,
    } = recovery;
    let lost = lost_in_window + lost_against_promise;
    format!(
        "Recovered: {resumed} messages to deliver ({unacknowledged} of them not yet acknowledged), {orphan_datas} data and \
         {orphan_metas} metadata alone removed, {lost} acknowledged but not yet on disk when killed."
    )
}

/// Formats a ratio; `None` is "–".
pub(crate) fn percent(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "–".to_owned(), |ratio| format!("{:.1} %", ratio * 100.0))
}

fn times(p50_us: Option<u64>, p99_us: Option<u64>) -> String {
    format!("{} / {}", time(p50_us), time(p99_us))
}

#[expect(clippy::cast_precision_loss, reason = "for people to read")]
fn time(micros: Option<u64>) -> String {
    match micros {
        None => "–".to_owned(),
        Some(us) if us < 1_000 => format!("{us} µs"),
        Some(us) => format!("{:.1} ms", us as f64 / 1_000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!([percent(None), percent(Some(0.9987))], ["–", "99.9 %"]);
        assert_eq!(times(Some(999), Some(1_500)), "999 µs / 1.5 ms");
        assert_eq!(times(None, None), "– / –");
    }

    #[test]
    fn the_recovery_line_has_all_counts() {
        let recovery = Recovery {
            resumed: 9,
            unacknowledged: 1,
            orphan_metas: 2,
            orphan_datas: 3,
            lost_in_window: 4,
            lost_against_promise: 0,
        };
        let line = recovery_line(&recovery);
        assert!(line.contains("9 messages to deliver (1 of them"), "{line}");
        assert!(line.contains("3 data and 2 metadata alone") && line.contains("4 acknowledged"), "{line}");
    }
}
