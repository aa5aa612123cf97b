//! The tables in `docs/` that repeat code: settings, metrics, command line. Each is generated from
//! the code, and a test fails if the page differs.
//!
//! ```sh
//! TIDESPOOL_BLESS=1 cargo test --test docs    # writes the generated parts of the pages
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use tidespool::{HealthSignal, PressureSource, SpoolCounts, StatsSnapshot};

fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Compares the text between the markers of `name` in a page with `expected`. With
/// `TIDESPOOL_BLESS`, replaces it.
#[track_caller]
fn check(page: &str, name: &str, expected: &str) {
    let path = in_repository(page);
    let text = std::fs::read_to_string(&path).unwrap();
    let (begin, end) = (format!("<!-- generated: {name} -->\n\n"), format!("\n<!-- end: {name} -->\n"));
    let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("{page} has no {begin}"));
    let (found, after) = rest.split_once(&end).unwrap_or_else(|| panic!("{page} has no {end}"));
    if found == expected {
        return;
    }
    if std::env::var_os("TIDESPOOL_BLESS").is_some() {
        std::fs::write(&path, format!("{before}{begin}{expected}{end}{after}")).unwrap();
        return;
    }
    let differs = found.lines().zip(expected.lines()).find(|(found, expected)| found != expected);
    let (found, expected) = differs.unwrap_or(("(another number of lines)", ""));
    panic!(
        "{page} differs from the code: run TIDESPOOL_BLESS=1 cargo test --test docs\n\
         the page: {found}\nthe code: {expected}"
    );
}

/// The table of the settings in a struct of a source file, from the comments of its fields: what a
/// setting is, then `Default = X. Bounds: Y.`
fn settings(file: &str, name: &str) -> String {
    let source = std::fs::read_to_string(in_repository(file)).unwrap();
    let (_, fields) = source.split_once(&format!("pub struct {name} {{\n")).unwrap();
    let (fields, _) = fields.split_once("\n}\n").unwrap();
    let mut table = "| setting | default | bounds | meaning |\n|---|---|---|---|\n".to_owned();
    let mut doc = String::new();
    for line in fields.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            doc.push_str(text.trim());
            doc.push(if text.is_empty() { '\n' } else { ' ' });
        } else if let Some(field) = line.strip_prefix("pub ") {
            let (field, _) = field.split_once(':').unwrap();
            // The structs of other tables.
            if !["pressure", "health", "spools"].contains(&field) {
                table.push_str(&setting(field, &without_links(&doc)));
            }
            doc.clear();
        }
    }
    table
}

fn setting(field: &str, doc: &str) -> String {
    let (mut meaning, mut default, mut bounds) = (Vec::new(), "required", "");
    for paragraph in doc.lines().map(str::trim) {
        match paragraph.strip_prefix("Default = ") {
            Some(rest) => {
                (default, bounds) = rest.split_once(". Bounds: ").unwrap_or((rest, ""));
                (default, bounds) = (default.trim_end_matches('.'), bounds.trim_end_matches('.'));
            }
            None if paragraph == "Required." => {}
            None => meaning.push(paragraph),
        }
    }
    assert!(default != "required" || field == "path", "{field} has no paragraph \"Default = \"");
    format!("| `{field}` | {default} | {bounds} | {} |\n", meaning.join(" "))
}

/// Replaces each link of rustdoc by its text.
fn without_links(doc: &str) -> String {
    let mut text = String::new();
    let mut rest = doc;
    while let Some((before, link)) = rest.split_once('[') {
        let (name, after) = link.split_once(']').expect("a whole link");
        text.push_str(before);
        text.push_str(name);
        rest = match after.strip_prefix('(') {
            Some(target) => target.split_once(')').expect("a whole link").1,
            None => after,
        };
    }
    text + rest
}

#[test]
fn the_settings_are_those_of_the_code() {
    let page = "docs/settings.md";
    check(page, "Config", &settings("crates/tidespool/src/config/mod.rs", "Config"));
    check(page, "PressureConfig", &settings("crates/pressure/src/config.rs", "PressureConfig"));
    check(page, "HealthConfig", &settings("crates/tidespool/src/config/health.rs", "HealthConfig"));
    check(page, "SpoolConfig", &settings("crates/tidespool/src/config/spool.rs", "SpoolConfig"));
}

const SOURCES: [PressureSource; 4] =
    [PressureSource::CgroupV2, PressureSource::CgroupV1, PressureSource::System, PressureSource::Process];

/// A metric in the exposition.
#[derive(Default)]
struct Metric {
    kind: String,
    help: String,
    /// Its labels, and the values of each.
    labels: BTreeMap<String, Vec<String>>,
}

/// Adds the metrics in the text of an exposition, in its order.
fn add_metrics(text: &str, metrics: &mut Vec<(String, Metric)>) {
    for line in text.lines() {
        let mut words = line.splitn(4, ' ');
        let (first, keyword) = (words.next().unwrap(), words.next());
        if first == "#" {
            let (Some(name), rest) = (words.next(), words.next().unwrap_or_default()) else { continue };
            if keyword == Some("HELP") && !metrics.iter().any(|(known, _)| known == name) {
                let metric = Metric { help: rest.trim_end_matches('.').to_owned(), ..Metric::default() };
                metrics.push((name.to_owned(), metric));
            } else if keyword == Some("TYPE") {
                let (_, metric) = metrics.iter_mut().find(|(known, _)| known == name).unwrap();
                rest.clone_into(&mut metric.kind);
            }
        } else if let Some((name, labels)) = first.split_once('{') {
            let name = ["_total", "_bucket", "_sum", "_count"]
                .into_iter()
                .find_map(|suffix| name.strip_suffix(suffix))
                .unwrap_or(name);
            let (_, metric) = metrics.iter_mut().find(|(known, _)| known == name).unwrap();
            for label in labels.trim_end_matches('}').split(',') {
                let (label, value) = label.trim_end_matches('"').split_once("=\"").unwrap();
                let values = metric.labels.entry(label.to_owned()).or_default();
                if label != "le" && !values.iter().any(|known| known == value) {
                    values.push(value.to_owned());
                }
            }
        }
    }
}

/// The name of the spool in the exposition.
const SPOOL: &str = "name-of-a-spool";

#[test]
fn the_metrics_are_those_of_the_code() {
    let mut stats = StatsSnapshot::default();
    stats.spools.insert(SPOOL.to_owned(), SpoolCounts::default());
    stats.gauges.memory_stall_ratio = Some(0.0);
    (stats.gauges.index_rebuild_indexed, stats.gauges.index_rebuild_messages) = (Some(0), Some(0));
    let mut metrics = Vec::new();
    let signals = HealthSignal::ALL.map(Some);
    for (number, unhealthy) in signals.into_iter().chain([None]).enumerate() {
        (stats.gauges.unhealthy, stats.gauges.shut_down) = (unhealthy, unhealthy.is_none());
        stats.gauges.pressure_source = Some(SOURCES[number % SOURCES.len()]);
        add_metrics(&stats.prometheus_text(), &mut metrics);
    }
    let mut table = "| name | type | meaning |\n|---|---|---|\n".to_owned();
    for (name, Metric { kind, help, labels }) in metrics {
        let (mut name, mut help) = (name, help);
        if kind == "counter" {
            name.push_str("_total");
        }
        let labels: Vec<_> = labels.into_iter().filter(|(_, values)| !values.is_empty()).collect();
        if !labels.is_empty() {
            let names: Vec<&str> = labels.iter().map(|(label, _)| &**label).collect();
            write!(name, "{{{}}}", names.join(",")).unwrap();
        }
        // The values of the label `spool` are names, and those of the others are fixed.
        for (_, values) in labels.iter().filter(|(_, values)| *values != [SPOOL]) {
            write!(help, " (`{}`)", values.join("`, `")).unwrap();
        }
        writeln!(table, "| `{name}` | {kind} | {help} |").unwrap();
    }
    check("docs/operating.md", "metrics", &table);
}

#[test]
fn the_commands_are_those_of_the_code() {
    let mut command = tidespool_cli::command();
    command.build();
    for command in command.get_subcommands_mut().filter(|command| command.get_name() != "help") {
        let help = command.render_long_help().to_string();
        let lines: Vec<&str> = help.trim_end().lines().map(str::trim_end).collect();
        let name = command.get_name();
        check("docs/command-line.md", name, &format!("```text\n{}\n```\n", lines.join("\n")));
    }
}
