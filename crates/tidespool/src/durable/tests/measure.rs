use super::*;
use crate::durable::KeyRange;

/// How many records `measure` files, and bytes of each: 0 is a locator.
const CASES: [(u32, usize); 3] = [(1_000_000, 0), (1_000_000, 200), (3_000_000, 0)];

fn locator(n: u32) -> Record {
    Record::Locator { seq: n.into(), generation: 7, offset: u64::from(n) * 64, len: 1_024, crc: n }
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

fn compare(what: &str, store: &SledStore, base: u64) {
    let (estimate, found) = (store.memory_bytes() >> 20, resident().saturating_sub(base) >> 20);
    println!("{what:<14} resident {found:>4} MiB, estimate {estimate:>4}");
}

fn measure(count: u32, len: usize, cache_mib: u64) {
    println!("{count} records of {len} bytes, cache of {cache_mib} MiB");
    let (dir, base) = (dir(), resident());
    let options = || SledOptions::new(cache_mib << 20);
    let record = |n: u32| if len == 0 { locator(n) } else { whole(n.into(), len) };
    let store = open_with(dir.path(), options()).unwrap();
    for from in (0..count).step_by(16_384) {
        apply(&store, (from..(from + 16_384).min(count)).map(|n| put(n, record(n)))).unwrap();
    }
    compare("filed", &store, base);
    store.scan(&[KeyRange::ALL], &mut |_, _| true).unwrap();
    compare("scanned", &store, base);
    close(store);
    let store = open_with(dir.path(), options()).unwrap();
    store.note_records(count.into());
    (0..200_000_u32).for_each(|n| drop(store.get(&key(n.wrapping_mul(2_654_435_761) % count)).unwrap()));
    compare("opened, read", &store, base);
    for from in (0..count).step_by(32_768) {
        apply(&store, (from..(from + 32_768).min(count)).step_by(2).map(remove)).unwrap();
    }
    compare("half removed", &store, base);
    close(store);
}

/// `cargo test --release -p tidespool --lib durable::tests::measure -- --ignored --nocapture`, one case in a process of its own: `CASE=0`.
#[test]
#[ignore = "measures, and takes minutes"]
fn estimate_and_resident_memory() {
    let case = std::env::var("CASE").ok().and_then(|case| case.parse::<usize>().ok());
    let cache = std::env::var("CACHE_MIB").ok().and_then(|mib| mib.parse().ok()).unwrap_or(16);
    for (number, (count, len)) in CASES.into_iter().enumerate() {
        if case.is_none_or(|case| case == number) {
            measure(count, len, cache);
        }
    }
}
