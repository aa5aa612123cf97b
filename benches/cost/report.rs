//! The table and the summary below it.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};

use super::limits::{Limits, Tools, Verdict};
use super::measure::Figures;
use super::operations::Operation;

/// Prints both. Returns true if no limit is exceeded.
pub(crate) fn show(measured: &[(&Operation, Figures)], limits: &Limits, tools: &Tools) -> bool {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(["operation", "figure", "measured", "limit", "tolerance", "verdict"]);
    let (mut breaches, mut better) = (Vec::new(), Vec::new());
    for (operation, figures) in measured {
        let mut name = operation.name;
        for (figure, value) in figures {
            let verdict = limits.verdict(operation, *figure, *value);
            let limit = limits.get(operation, *figure);
            let shown = limit.map_or_else(|| "none".to_owned(), |limit| limit.limit.to_string());
            let what = format!("{}: {} {value}, limit {shown}", operation.name, figure.name());
            let shown_verdict = match verdict {
                Verdict::Kept => "ok",
                Verdict::MuchBetter => "much better",
                Verdict::Breach => "BREACH",
                Verdict::NoLimit => "NO LIMIT",
            };
            match verdict {
                Verdict::Kept => {}
                Verdict::MuchBetter => better.push(what),
                Verdict::Breach | Verdict::NoLimit => breaches.push(what),
            }
            let tolerance = limit.map_or_else(String::new, |limit| format!("{} %", limit.tolerance));
            table.add_row([name, figure.name(), &value.to_string(), &shown, &tolerance, shown_verdict]);
            // The name is printed once for all figures.
            name = "";
        }
    }
    for number in 2..5 {
        if let Some(column) = table.column_mut(number) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    println!("{table}");
    breaches.extend(limits.orphans().into_iter().map(|orphan| format!("{orphan}: a limit without a figure")));
    summarize(&breaches, &better, limits, tools)
}

fn summarize(breaches: &[String], better: &[String], limits: &Limits, tools: &Tools) -> bool {
    if !better.is_empty() {
        println!("\nMuch better than the limit. Lower it: cargo bench --bench cost -- --bless");
        better.iter().for_each(|line| println!("  {line}"));
    }
    if breaches.is_empty() {
        println!("\nNo limit is exceeded.");
        return true;
    }
    println!("\nExceeded limits:");
    breaches.iter().for_each(|line| println!("  {line}"));
    if limits.measured_with != *tools {
        println!("Measured with   {tools:?}\nthe limits with {:?}", limits.measured_with);
    }
    println!(
        "Make it cheaper again; or, where it is worth it, explain why in the commit and: cargo bench --bench cost -- --bless"
    );
    false
}
