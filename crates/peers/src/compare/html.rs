//! A comparison as a self-contained page: no script, no font, no network.

use anyhow::Result;
use bytesize::ByteSize;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::chart::{colour, curves, over_time};
use super::record::{CaseSummary, Comparison};
use super::table::{CAVEAT, COLUMNS, cell, ratio_text};
use crate::engines::Peer;

const TITLE: &str = "Tidespool beside its peers";

/// Readable on light and dark backgrounds. An engine has the same colour in every chart.
const STYLE: &str = "\
:root{color-scheme:light dark;--fg:#1c2024;--dim:#60646c;--bg:#fff;--line:#d9d9e0}\
@media(prefers-color-scheme:dark){:root{--fg:#edeef0;--dim:#b0b4ba;--bg:#111113;--line:#363a3f}}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--fg);background:var(--bg);max-width:76rem;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2.5rem}p,li,td,th{font-variant-numeric:tabular-nums}\
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem}\
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}\
th:first-child,td:first-child{text-align:left}th{color:var(--dim);font-weight:600}\
.dim{color:var(--dim);font-size:.9rem}.failed{color:#e5484d}\
.charts{display:flex;flex-wrap:wrap;gap:1rem}svg{width:100%;height:auto;max-width:40rem;flex:1 1 26rem}\
.key{display:inline-block;width:.8em;height:.8em;border-radius:50%;margin-right:.5em}";

/// Returns the page.
pub(super) fn page(comparison: &Comparison) -> Result<String> {
    let machine = &comparison.machine;
    let sections = comparison.cases.iter().enumerate().map(|(number, case)| section(number, case));
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width,initial-scale=1";
                title { (TITLE) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { (TITLE) }
                p.dim {
                    "Tidespool " (comparison.version) ", " (comparison.finished) ". " (machine.cpu) ", " (machine.cores)
                    " cores, " (ByteSize::mib(machine.memory_mib)) " of memory, Linux " (machine.kernel) ", " (machine.file_system)
                    ". Medians over the rounds (least–most). A ratio above 1 means that tidespool is better. " (CAVEAT)
                }
                (overview(comparison))
                @for section in sections { (section?) }
                h2 { "Engines" }
                ul {
                    @for (engine, settings) in &comparison.settings {
                        li { (key(*engine)) (engine.name()) ": " (settings) }
                    }
                }
                @for (run, error) in comparison.runs.iter().filter_map(|run| Some((run, run.error.as_ref()?))) {
                    p.failed { "Failed: " (run.engine.name()) ": " (run.title) ": " (error) }
                }
            }
        }
    };
    Ok(page.into_string())
}

/// Returns a table with a line for each case: its main figure, and its ratios.
fn overview(comparison: &Comparison) -> Markup {
    let times = |times: Option<f64>| times.map_or_else(|| "–".to_owned(), |times| format!("{times:.2}"));
    let headings = ["case", "compared by", "× best peer", "which", "× rocksdb", "of raw-journal", "of bare"];
    html! {
        h2 { "Overview" }
        div.scroll {
            table {
                tr { @for heading in headings { th { (heading) } } }
                @for (number, case) in comparison.cases.iter().enumerate() {
                    @if let Some(ratio) = case.ratios.first() {
                        @let (peer, best) = ratio.best_peer.map_or(("–", None), |(peer, times)| (peer.name(), Some(times)));
                        tr {
                            td { a href={ "#case-" (number) } { (case.title) } } td { (ratio.metric) }
                            td { (times(best)) } td { (peer) } td { (times(ratio.rocksdb)) }
                            td { (times(ratio.raw_journal)) } td { (times(ratio.bare)) }
                        }
                    }
                }
            }
        }
    }
}

fn section(number: usize, case: &CaseSummary) -> Result<Markup> {
    let ratios: Vec<String> = case.ratios.iter().filter_map(ratio_text).collect();
    Ok(html! {
        h2 id={ "case-" (number) } { (case.title) }
        div.scroll {
            table {
                tr { th { "engine" } @for (_, heading, _) in COLUMNS { th { (heading) } } }
                @for engine in &case.engines {
                    tr {
                        td { (key(engine.engine)) (engine.engine.name()) }
                        @for (figure, _, spread) in COLUMNS { td { (cell(engine, figure, spread)) } }
                    }
                }
            }
        }
        p.dim { (ratios.join("; ")) }
        div.charts { (PreEscaped(curves(case)?)) (PreEscaped(over_time(case)?)) }
    })
}

fn key(engine: Peer) -> Markup {
    let (red, green, blue) = colour(engine);
    html! { span.key style={ "background:rgb(" (red) "," (green) "," (blue) ")" } {} }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::comparison;
    use super::*;

    #[test]
    fn the_page_is_complete_and_self_contained() {
        let page = page(&comparison()).unwrap();
        assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>"));
        for part in [
            "store 16.0 KiB, 64 callers, synced",
            "400 (300–500)",
            "4.00 × fjall",
            "no &lt;space&gt; left",
            "<svg",
        ] {
            assert!(page.contains(part), "{part}");
        }
        let page = page.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        for outside in ["http://", "https://", "<script", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
    }
}
