//! A comparison as a self-contained page: no script, no font, no network.

use anyhow::Result;

use super::chart::{colour, curves, over_time};
use super::record::{CaseSummary, Comparison};
use super::table::{CAVEAT, COLUMNS, cell, ratio_text};
use crate::engines::Peer;

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
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>Tidespool beside its peers</title><style>{STYLE}</style></head><body>\n\
         <h1>Tidespool beside its peers</h1>\n<p class=\"dim\">Tidespool {}, {}. {}, {} cores, {} MiB of memory, Linux {}, {}. \
         Medians over the rounds (least–most). A ratio above 1 means that tidespool is better. {}</p>\n",
        comparison.version,
        comparison.finished,
        escaped(&machine.cpu),
        machine.cores,
        machine.memory_mib,
        escaped(&machine.kernel),
        escaped(&machine.file_system),
        CAVEAT,
    );
    page += &overview(comparison);
    for (number, case) in comparison.cases.iter().enumerate() {
        page += &section(number, case)?;
    }
    page += "<h2>Engines</h2>\n<ul>\n";
    for (engine, settings) in &comparison.settings {
        page += &format!("<li>{}{}: {}</li>\n", key(*engine), engine.name(), escaped(settings));
    }
    page += "</ul>\n";
    for run in &comparison.runs {
        if let Some(error) = &run.error {
            let (engine, title) = (run.engine.name(), escaped(&run.title));
            page += &format!("<p class=\"failed\">Failed: {engine}: {title}: {}</p>\n", escaped(error));
        }
    }
    Ok(page + "</body></html>\n")
}

/// Returns a table with a line for each case: its main figure, and its ratios.
fn overview(comparison: &Comparison) -> String {
    let mut table = "<h2>Overview</h2>\n<div class=\"scroll\"><table><tr><th>case</th><th>compared by</th>\
                     <th>× best peer</th><th>which</th><th>× rocksdb</th><th>of raw-journal</th></tr>\n"
        .to_owned();
    for (number, case) in comparison.cases.iter().enumerate() {
        let Some(ratio) = case.ratios.first() else { continue };
        let times = |times: Option<f64>| times.map_or_else(|| "–".to_owned(), |times| format!("{times:.2}"));
        let (peer, best) = ratio.best_peer.map_or(("–", None), |(peer, times)| (peer.name(), Some(times)));
        table += &format!(
            "<tr><td><a href=\"#case-{number}\">{}</a></td><td>{}</td><td>{}</td><td>{peer}</td><td>{}</td><td>{}</td></tr>\n",
            escaped(&case.title),
            ratio.metric,
            times(best),
            times(ratio.rocksdb),
            times(ratio.raw_journal),
        );
    }
    table + "</table></div>\n"
}

fn section(number: usize, case: &CaseSummary) -> Result<String> {
    let mut section = format!(
        "<h2 id=\"case-{number}\">{}</h2>\n<div class=\"scroll\"><table><tr><th>engine</th>",
        escaped(&case.title)
    );
    for (_, heading, _) in COLUMNS {
        section += &format!("<th>{heading}</th>");
    }
    section += "</tr>\n";
    for engine in &case.engines {
        section += &format!("<tr><td>{}{}</td>", key(engine.engine), engine.engine.name());
        for (figure, _, spread) in COLUMNS {
            section += &format!("<td>{}</td>", cell(engine, figure, spread));
        }
        section += "</tr>\n";
    }
    section += "</table></div>\n";
    let ratios: Vec<String> = case.ratios.iter().filter_map(ratio_text).collect();
    if !ratios.is_empty() {
        section += &format!("<p class=\"dim\">{}</p>\n", ratios.join("; "));
    }
    section += &format!("<div class=\"charts\">{}{}</div>\n", curves(case)?, over_time(case)?);
    Ok(section)
}

fn key(engine: Peer) -> String {
    let (red, green, blue) = colour(engine);
    format!("<span class=\"key\" style=\"background:rgb({red},{green},{blue})\"></span>")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::comparison;
    use super::*;

    #[test]
    fn the_page_is_complete_and_self_contained() {
        let page = page(&comparison()).unwrap();
        assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
        for part in [
            "store 16 KiB, 64 callers, synced",
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
